"""Folders as people meet them: half downloads, adapters, saves of wrapped models, quantised files, other tokenizers.

Each is refused with a sentence that says what it is and what to do, or works as intended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.folder import read_folder
from app.cli.main import main
from model.checkpoint.checkpoint import load_checkpoint, validate_checkpoint
from model.checkpoint.manifest import GenerationDefaults
from model.checkpoint.shards import CheckpointError, find_local, unwrapped
from model.checkpoint.unwrap import unwrap
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from tests.model.spoil import LM, assert_rejected, change_json, change_lm

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 13958643712\n"


def without_manifest(folder: Path) -> Path:
    (folder / "manifest.json").unlink()
    return folder


def rename(folder: Path, change: Callable[[str], str]) -> None:
    change_lm(folder, lambda state: state.update({change(name): state.pop(name) for name in list(state)}))


@pytest.mark.parametrize("file", [LM, "config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "is a Git LFS pointer: run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "is a web page"),
        (b"\n\n<html lang='en'>" + b"x" * 5000, "is a web page"),
        (b"", "is empty"),
        (b"PK\x03\x04archive/data.pkl" + b"x" * 5000, "is a pickle"),
    ],
    ids=["lfs", "page", "page after blank lines", "empty", "pickle"],
)
def test_what_a_file_really_is_gets_said(folder: Path, file: str, content: bytes, words: str) -> None:
    without_manifest(folder)
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        validate_checkpoint(folder)
    assert error.value.code in ("broken_file", "unsupported")
    assert f"{file} {words}" in error.value.detail
    info = read_folder(folder)  # the same in the list of checkpoints
    assert f"{file} {words}" in (info.problem or "")


def test_adapter_without_its_base_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "ModalityDance/Omni-R1"}))
    assert_rejected(folder, "unsupported", "is a LoRA adapter of ModalityDance/Omni-R1")
    assert "omni-r1 convert --adapter ADAPTER --base BASE OUT" in (read_folder(folder).problem or "")
    assert find_local(str(folder)) == folder.resolve()  # its reader says what is missing


def test_unmerged_adapter_is_no_model(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    change_lm(folder, lambda state: state.update({name: torch.zeros(4, 64)}))
    assert_rejected(folder, "unsupported", name)


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("module.lm_head.weight", "lm_head.weight"),
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.lm_head.weight", "lm_head.weight"),
        ("base_model.model.model.norm.weight", "model.norm.weight"),
        ("model.layers.3._orig_mod.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("model.vqmodel.encoder.conv_in.weight", "model.vqmodel.encoder.conv_in.weight"),
        ("model.base_model.model.x", "model.base_model.model.x"),
    ],
)
def test_wrappers_are_stripped_from_names(wrapped: str, bare: str) -> None:
    assert unwrapped(wrapped) == bare


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_a_wrapped_save_is_refused_and_converts(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, prefix: str
) -> None:
    rename(folder, lambda name: prefix + name)
    assert_rejected(folder, "unexpected_tensor", "omni-r1 convert")
    assert f"{prefix}" in (read_folder(folder).problem or "")
    assert main(["convert", str(folder), str(tmp_path / "out"), "--name", "bare"]) == 0
    manifest = validate_checkpoint(tmp_path / "out")
    assert manifest.name == "bare"
    converted, original = load_file(tmp_path / "out" / LM), load_file(tiny_checkpoint / LM)
    assert converted.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in converted.items())


def test_conversion_needs_a_wrapped_folder_and_a_free_place(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="needs no conversion"):
        unwrap(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists"):
        unwrap(folder, folder)
    change_lm(folder, lambda state: state.update({"module.lm_head.weight": state["lm_head.weight"].clone()}))
    with pytest.raises(CheckpointError, match="same name"):
        unwrap(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_quantised_tensors_are_refused_by_name(folder: Path, dtype: torch.dtype) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    change_lm(folder, lambda state: state.update({name: torch.zeros(state[name].shape).to(dtype)}))
    assert_rejected(folder, "unsupported", f"{name} is stored as")
    assert "quantised" in (read_folder(folder).problem or "")


def test_quantised_config_is_refused_with_its_method(folder: Path) -> None:
    change_json(folder, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert_rejected(folder, "unsupported", "quantised (bitsandbytes")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"top_p": 7}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"temperature": "0.7"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": [1]}, "temperature"),
        ({"do_sample": "false"}, "do_sample"),
        ({"do_sample": None, "top_p": 7}, "top_p"),
        ({"do_sample": None, "temperature": "0.7"}, "temperature"),
    ],
)
def test_impossible_sampling_defaults_are_refused(folder: Path, values: Mapping[str, Any], field: str) -> None:
    change_json(folder, "generation_config.json", **{"do_sample": True, **values})
    assert_rejected(folder, "broken_file", f"generation_config.json: {field} is")
    assert field in (read_folder(folder).problem or "")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"do_sample": True, "temperature": 0, "top_p": None}, (0.0, 1.0)),
        ({"do_sample": False, "temperature": "unused", "top_p": 9}, (0.0, 1.0)),
        ({"do_sample": True, "temperature": 1, "top_p": 0.9}, (1.0, 0.9)),
        ({"do_sample": True}, (1.0, 1.0)),
        ({"temperature": 0.7, "top_p": 0.9}, (0.0, 1.0)),
        ({}, (0.0, 1.0)),
    ],
)
def test_possible_sampling_defaults_are_read(tmp_path: Path, values: Mapping[str, Any], expected: object) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    found = GenerationDefaults.read(tmp_path)
    assert (found.temperature, found.top_p) == expected


def test_padded_rows_are_never_drawn(folder: Path) -> None:
    """A vocabulary padded to a round size: the rows beyond the last token have no meaning, however likely."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    padding = 640 - size

    def pad(state: dict[str, torch.Tensor]) -> None:
        state["model.embed_tokens.weight"] = torch.cat([state["model.embed_tokens.weight"], torch.zeros(padding, 64)])
        rows = state["lm_head.weight"].mean(0) * 100
        state["lm_head.weight"] = torch.cat([state["lm_head.weight"], rows.expand(padding, 64)]).contiguous()

    change_lm(folder, pad)
    change_json(folder, "config.json", vocab_size=640)
    validate_checkpoint(folder)
    loaded = load_checkpoint(folder)
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=4)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=40)
    done = engine.generate([loaded.template.prompt_ids("?", [])], params, num_samples=4)
    drawn = {token for completion in done for token in completion.token_ids}
    assert drawn
    assert max(drawn) < size


def test_tokenizer_with_other_words_is_refused(folder: Path) -> None:
    """Same special tokens, same size, other words: without hashes only the map in config.json can say so."""
    without_manifest(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    ids = data["model"]["vocab"]
    word = next(token for token in ids if len(token) > 3 and token.isalpha() and not token.startswith("IMGIMG"))
    ids["zzzz"] = ids.pop(word)
    data["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert_rejected(folder, "wrong_vocabulary", "the tokenizer belongs to another checkpoint")


def test_other_dtypes_of_floats_still_load(folder: Path) -> None:
    change_lm(folder, lambda state: state.update({name: tensor.half() for name, tensor in state.items()}))
    validate_checkpoint(folder)
    shutil.copy(folder / LM, folder / "model.safetensors")
    save_file(load_file(folder / LM), folder / LM)
    assert load_checkpoint(folder, dtype=torch.bfloat16).transformer.dtype == torch.bfloat16
