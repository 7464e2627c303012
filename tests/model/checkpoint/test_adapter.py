"""LoRA adapters on disk: PEFT opens ours, we open PEFT's, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.cli.main import main
from model.checkpoint.adapter import load_adapter, merge_adapter, save_adapter
from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.parts import WEIGHTS, read_settings
from model.checkpoint.shards import ADAPTER, CheckpointError
from model.low_rank import LoRASettings
from model.nets.attention import CausalAttention
from model.nets.lora import MergedState, attach, pairs
from tests.tiny import make_tiny_checkpoint

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # in peft
SETTINGS = LoRASettings(3, 6.0, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny", qk_norm="heads")


@pytest.fixture
def ours(base: Path, tmp_path: Path) -> tuple[LoadedCheckpoint, Path]:
    """A checkpoint with filled pairs, and their folder."""
    loaded = load_checkpoint(base)
    attach(loaded.transformer, SETTINGS, seed=1)
    torch.manual_seed(2)
    for _, pair in pairs(loaded.transformer):
        torch.nn.init.normal_(pair.b, std=0.05)
    save_adapter(tmp_path / "adapter", loaded.transformer, SETTINGS, base="tiny")
    return loaded, tmp_path / "adapter"


def token_ids(loaded: LoadedCheckpoint) -> Tensor:
    return torch.tensor([loaded.template.prompt_ids("Which colour is below the red star?")])


def our_logits(loaded: LoadedCheckpoint) -> Tensor:
    ids = token_ids(loaded)
    with torch.no_grad():
        hidden = loaded.transformer(ids, torch.arange(ids.shape[1])[None], CausalAttention())
        return loaded.transformer.logits(hidden)


def reference(base: Path) -> Any:
    from transformers import ChameleonForConditionalGeneration

    return ChameleonForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()


def assert_same_answers(theirs: Any, loaded: LoadedCheckpoint) -> None:
    with torch.no_grad():
        expected = theirs(input_ids=token_ids(loaded)).logits
    seen = expected > -1e30  # transformers masks the logits of image codes
    torch.testing.assert_close(our_logits(loaded)[seen], expected[seen], rtol=1e-4, atol=1e-5)


def test_peft_opens_ours(base: Path, ours: tuple[LoadedCheckpoint, Path]) -> None:
    from peft import PeftModel

    loaded, adapter = ours
    theirs = PeftModel.from_pretrained(reference(base), adapter).eval()
    assert_same_answers(theirs, loaded)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_open_peft_s(base: Path, tmp_path: Path, rslora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=8, target_modules=["k_proj", "gate_proj", "o_proj"], use_rslora=rslora)
    theirs = get_peft_model(reference(base), config).eval()
    torch.manual_seed(4)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_checkpoint(base)
    settings = load_adapter(loaded.transformer, tmp_path / "theirs")
    assert {*settings.targets} == {"k_proj", "gate_proj", "o_proj"}
    assert_same_answers(theirs, loaded)


def test_a_merged_checkpoint_answers_like_the_adapter(
    base: Path, tmp_path: Path, ours: tuple[LoadedCheckpoint, Path]
) -> None:
    loaded, adapter = ours
    merged = load_checkpoint(merge_adapter(adapter, base, tmp_path / "merged"))
    assert merged.manifest.lineage["adapter"] == "adapter"
    assert merged.manifest.base == loaded.manifest.name
    torch.testing.assert_close(our_logits(merged), our_logits(loaded), rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="exists already"):
        merge_adapter(adapter, base, tmp_path / "merged")


@pytest.mark.parametrize("named", [False, True], ids=["given", "from the config"])
def test_convert_merges_an_adapter_into_its_base(
    base: Path, tmp_path: Path, ours: tuple[LoadedCheckpoint, Path], named: bool
) -> None:
    loaded, adapter = ours
    save_adapter(adapter, loaded.transformer, SETTINGS, base=str(base) if named else "no-such-base")
    given = [] if named else ["--base", str(base)]
    assert main(["convert", "--adapter", str(adapter), *given, str(tmp_path / "out")]) == 0
    assert main(["convert", str(adapter), str(tmp_path / "same"), *given]) == 0
    assert main(["convert", "--adapter", str(base), str(tmp_path / "none")]) == 2
    merged = load_checkpoint(tmp_path / "out").transformer.state_dict()
    for name, value in MergedState(loaded.transformer).items():
        assert torch.equal(merged[name], value), name


def test_convert_warns_of_another_base(
    base: Path, ours: tuple[LoadedCheckpoint, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, adapter = ours
    for name, warned in ((base.name, False), ("another", True)):
        save_adapter(adapter, loaded.transformer, SETTINGS, base=name)
        assert main(["convert", str(adapter), str(tmp_path / name), "--base", str(base)]) == 0
        assert ("names another as its base" in capsys.readouterr().err) == warned


def test_convert_names_a_base_that_is_missing(
    ours: tuple[LoadedCheckpoint, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, adapter = ours
    save_adapter(adapter, loaded.transformer, SETTINGS, base="no-such-base")
    assert main(["convert", str(adapter), str(tmp_path / "out")]) == 2
    assert "no-such-base" in capsys.readouterr().err


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / ADAPTER).read_text())
        (folder / ADAPTER).write_text(json.dumps({**config, **changes}))

    return change


def change_tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])


FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no config": (lambda folder: (folder / ADAPTER).unlink(), "missing_file", "no LoRA adapter"),
    "no JSON": (lambda folder: (folder / ADAPTER).write_text("{"), "broken_file", ADAPTER),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "missing_file", WEIGHTS),
    "cut off": (cut, "broken_file", WEIGHTS),
    "DoRA": (change_config(use_dora=True), "unsupported", "use_dora"),
    "another method": (change_config(peft_type="IA3"), "unsupported", "IA3"),
    "biases": (change_config(bias="all"), "unsupported", "bias"),
    "whole modules": (change_config(modules_to_save=["lm_head"]), "unsupported", "modules_to_save"),
    "ranks by module": (change_config(rank_pattern={"q_proj": 4}), "unsupported", "rank_pattern"),
    "rank as text": (change_config(r="3"), "broken_file", "r '3'"),
    "rank zero": (change_config(r=0), "broken_file", "r 0"),
    "dropout of everything": (change_config(lora_dropout=1.0), "broken_file", "lora_dropout 1.0"),
    "another rank": (change_config(r=4), "unexpected_shape", "rank 4"),
    "another width": (
        change_tensors(
            lambda tensors: {name: t.repeat(1, 2) if "lora_A" in name else t for name, t in tensors.items()}
        ),
        "unexpected_shape",
        "the base and rank 3 need",
    ),
    "more layers": (
        change_tensors(lambda t: t | {k.replace("layers.0.", "layers.77."): v.clone() for k, v in t.items()}),
        "unexpected_tensor",
        "layers.77.",
    ),
    "fewer layers": (
        change_tensors(lambda t: {k: v for k, v in t.items() if "layers.0." not in k}),
        "missing_tensor",
        "layers.0.",
    ),
    "half a pair": (
        change_tensors(lambda t: {k: v for k, v in t.items() if "0.self_attn.q_proj.lora_B" not in k}),
        "broken_file",
        "only one of its two",
    ),
    "an embedding": (
        change_tensors(lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 2)}),
        "unsupported",
        "lora_embedding_A",
    ),
    "nothing": (change_tensors(lambda t: {}), "broken_file", "no tensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_cannot_be_used_says_why(base: Path, ours: tuple[LoadedCheckpoint, Path], fault: str) -> None:
    break_it, code, words = FAULTS[fault]
    break_it(ours[1])
    with pytest.raises(CheckpointError) as refused:
        load_adapter(load_checkpoint(base).transformer, ours[1])
    assert refused.value.code == code
    assert words in refused.value.detail


def test_settings_survive_the_disk(ours: tuple[LoadedCheckpoint, Path]) -> None:
    settings = read_settings(ours[1])
    assert (settings.rank, settings.alpha, settings.scale) == (SETTINGS.rank, SETTINGS.alpha, SETTINGS.scale)
