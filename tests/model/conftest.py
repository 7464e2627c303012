"""A vocabulary, tokenizer and both templates without weights; tiny checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.config import ModelConfig
from model.text.template import Template
from model.text.tokenizer import TextTokenizer
from model.text.vocab import Vocabulary
from tests.tiny import make_drawing_checkpoint, tiny_config


@pytest.fixture(scope="session")
def described() -> tuple[ModelConfig, dict[str, Any]]:
    """Config and tokenizer object of a tiny checkpoint (4 codes per image, 64 codes)."""
    return tiny_config()


@pytest.fixture(scope="session")
def vocab(described: tuple[ModelConfig, dict[str, Any]]) -> Vocabulary:
    return Vocabulary.from_parts(*described)


@pytest.fixture(scope="session")
def tokenizer(described: tuple[ModelConfig, dict[str, Any]]) -> TextTokenizer:
    return TextTokenizer.from_object(described[1])


@pytest.fixture(scope="session")
def plain(vocab: Vocabulary, tokenizer: TextTokenizer) -> Template:
    return Template("plain", vocab, tokenizer)


@pytest.fixture(scope="session")
def tagged(vocab: Vocabulary, tokenizer: TextTokenizer) -> Template:
    return Template("tagged", vocab, tokenizer)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint for tests that damage it."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="session")
def loaded(tiny_checkpoint: Path) -> LoadedCheckpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def drawing_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that draws about every tenth token at temperature 1 and never ends by itself."""
    folder = tmp_path_factory.mktemp("checkpoints") / "drawing"
    return make_drawing_checkpoint(folder, verifier="What was done between the two images?")
