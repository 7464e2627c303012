"""Saving and loading checkpoints. Invariant 11 lives here."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.checkpoint import load_checkpoint, load_vq, resolve, save_checkpoint, validate_checkpoint
from model.checkpoint.manifest import Manifest
from model.checkpoint.shards import CheckpointError, read_entries
from model.config import ModelConfig
from model.images.codes import decode_codes
from model.nets.transformer import CausalAttention
from tests.model.spoil import LM, assert_rejected, change_json, change_lm
from tests.tiny import make_tiny_checkpoint, tiny_config, tiny_modules

pytestmark = pytest.mark.slow

IDS = torch.tensor([[0, 69, 5, 9, 12, 60, 68, 100, 101, 200]])


def logits(folder: Path, **options: Any) -> torch.Tensor:
    loaded = load_checkpoint(folder, **options)
    hidden = loaded.transformer(IDS, torch.arange(IDS.shape[1])[None], CausalAttention())
    return loaded.transformer.logits(hidden)


def test_save_and_load_is_bit_exact(tiny_checkpoint: Path) -> None:
    config, _ = tiny_config()
    transformer, vq = tiny_modules(config)
    loaded = load_checkpoint(tiny_checkpoint)
    assert loaded.config == config
    for name, tensor in transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], tensor), name
    assert loaded.vq is not None
    for name, tensor in vq.state_dict().items():
        assert torch.equal(loaded.vq.state_dict()[name], tensor), name
    assert loaded.can_see
    assert loaded.can_draw
    assert not any(p.requires_grad for p in [*loaded.transformer.parameters(), *loaded.vq.parameters()])
    validate_checkpoint(tiny_checkpoint)


def test_saving_rounds_only_once(tmp_path: Path) -> None:
    first = make_tiny_checkpoint(tmp_path / "a", dtype=torch.bfloat16)
    loaded = load_checkpoint(first)
    assert loaded.vq is not None
    again = save_checkpoint(
        tmp_path / "b",
        config=loaded.config,
        transformer_state=loaded.transformer.state_dict(),
        vq_file=first / "model-vq.safetensors",
        tokenizer=first / "tokenizer.json",
        manifest=loaded.manifest,
    )
    for name in (LM, "model-vq.safetensors", "config.json", "tokenizer.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name


def test_exports_untie_head_and_expand_norms(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    entries = read_entries(tiny_checkpoint)
    assert entries["model.layers.0.self_attn.q_norm.weight"].shape == (4, 16)
    assert entries["model.layers.0.self_attn.k_norm.bias"].shape == (2, 16)
    assert {entry.file for entry in entries.values()} == {LM, "model-vq.safetensors"}


@pytest.mark.parametrize("shards", [1, 3])
def test_any_sharding_and_dtype_loads(tiny_checkpoint: Path, tmp_path: Path, shards: int) -> None:
    """One model.safetensors, or shards cut anywhere with mixed bf16 and fp32, like the released folders."""
    folder = tmp_path / "resharded"
    shutil.copytree(tiny_checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors*", "manifest.json"))
    state = load_file(tiny_checkpoint / LM) | load_file(tiny_checkpoint / "model-vq.safetensors")
    state = {n: t if "vqmodel" in n else t.bfloat16() for n, t in state.items()}
    names = sorted(state)
    if shards == 1:
        save_file(state, folder / "model.safetensors")
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-0000{i + 1}-of-00003.safetensors"
            part = {name: state[name] for name in names[i::shards]}
            save_file(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    validate_checkpoint(folder)
    assert Manifest.read(folder).derived
    loaded = load_checkpoint(folder)
    assert loaded.can_draw
    for name, tensor in loaded.transformer.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())


def test_dtype_applies_to_transformer_only(tiny_checkpoint: Path) -> None:
    loaded = load_checkpoint(tiny_checkpoint, dtype=torch.bfloat16)
    assert loaded.transformer.dtype == torch.bfloat16
    assert loaded.vq is not None
    assert loaded.vq.codebook.dtype == torch.float32


def test_both_qk_norm_shapes_are_equivalent(tmp_path: Path) -> None:
    """One (head_dim,) vector for all heads, as in older files, equals the same vector per head."""
    flat = make_tiny_checkpoint(tmp_path / "dim", qk_norm="dim")
    assert read_entries(flat)["model.layers.0.self_attn.q_norm.weight"].shape == (16,)
    validate_checkpoint(flat)
    wide = Path(shutil.copytree(flat, tmp_path / "heads"))

    def widen(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            if "q_norm" in name or "k_norm" in name:
                state[name] = state[name].expand(4 if "q_norm" in name else 2, 16).contiguous()

    change_lm(wide, widen)
    assert torch.equal(logits(flat), logits(wide))


@pytest.mark.parametrize("rows", [1, 2])
def test_shared_norms_are_expanded_per_head(tmp_path: Path, rows: int) -> None:
    """(1, head_dim) is one row for all heads, (model_parallel_size, head_dim) one for each shard's heads, in order."""
    shared = make_tiny_checkpoint(tmp_path / "shared")
    wide = Path(shutil.copytree(shared, tmp_path / "wide"))
    change_json(shared, "config.json", model_parallel_size=2)
    generator = torch.Generator().manual_seed(3)
    norms: dict[str, torch.Tensor] = {}

    def share(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            if "q_norm" in name or "k_norm" in name:
                norms[name] = state[name] = torch.rand((rows, 16), generator=generator) + 0.5

    def widen(state: dict[str, torch.Tensor]) -> None:
        for name, norm in norms.items():
            state[name] = norm.repeat_interleave((4 if "q_norm" in name else 2) // rows, 0).contiguous()

    change_lm(shared, share)
    change_lm(wide, widen)
    validate_checkpoint(shared)
    assert torch.equal(logits(shared), logits(wide))


def test_both_spellings_of_the_vq_config_load(folder: Path) -> None:
    new = json.loads((folder / "config.json").read_text())["vq_config"]
    old = {
        "ch": new["base_channels"],
        "ch_mult": new["channel_multiplier"],
        "out_ch": 3,
        "in_channels": 3,
        "n_embed": new["num_embeddings"],
        "double_z": False,
        "z_channels": new["latent_channels"],
        "embed_dim": new["embed_dim"],
        "num_res_blocks": 1,
        "resolution": 16,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    before = ModelConfig.read(folder)
    change_json(folder, "config.json", vq_config=old)
    assert ModelConfig.read(folder) == before
    assert load_checkpoint(folder).can_draw


def test_tied_head_is_read_from_embedding(folder: Path) -> None:
    change_lm(folder, lambda state: state.__delitem__("lm_head.weight"))
    assert_rejected(folder, "missing_tensor", "lm_head.weight")
    change_json(folder, "config.json", tie_word_embeddings=True)
    validate_checkpoint(folder)
    state = load_checkpoint(folder).transformer.state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


def test_checkpoint_without_decoder_cannot_draw(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "blind", decoder=False)
    validate_checkpoint(folder)
    loaded = load_checkpoint(folder)
    assert (loaded.can_see, loaded.can_draw) == (True, False)
    assert not loaded.manifest.capabilities.images_in_answer
    assert loaded.vq is not None
    with pytest.raises(ValueError, match="no VQ decoder"):
        decode_codes(loaded.vq, [(0, 1, 2, 3)])


def test_vq_may_come_from_another_place(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A folder, a file with HF's names, or a file with bare names completes a checkpoint without decoder."""
    folder = make_tiny_checkpoint(tmp_path / "blind", decoder=False)
    bare = tmp_path / "vq.safetensors"
    state = load_file(tiny_checkpoint / "model-vq.safetensors")
    save_file({name.removeprefix("model.vqmodel."): tensor for name, tensor in state.items()}, bare)
    images = []
    for source in (tiny_checkpoint, tiny_checkpoint / "model-vq.safetensors", bare):
        loaded = load_checkpoint(folder, vq=source)
        assert loaded.can_draw
        assert loaded.manifest.capabilities.images_in_answer
        assert loaded.vq is not None
        images.append(decode_codes(loaded.vq, [(0, 1, 2, 3)])[0].tobytes())
    assert len(set(images)) == 1


def test_vq_of_other_shape_is_rejected(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config, _ = tiny_config()
    other = ModelConfig(config.transformer, replace(config.vq, embed_dim=16), config.vocabulary_map)
    with pytest.raises(CheckpointError, match="unexpected_shape"):
        load_vq(tiny_checkpoint, other)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="has no VQ encoder"):
        load_vq(tmp_path / "a.safetensors", config)


def test_projection_and_old_buffers_are_ignored(folder: Path) -> None:
    change_lm(
        folder,
        lambda state: state.update(
            {"perception.weight": torch.zeros(8, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
        ),
    )
    validate_checkpoint(folder)
    load_checkpoint(folder)


def test_save_rejects_taken_place_and_wrong_state(tiny_checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    state = loaded.transformer.state_dict()

    def save(place: Path, transformer_state: dict[str, torch.Tensor]) -> None:
        save_checkpoint(
            place,
            config=loaded.config,
            transformer_state=transformer_state,
            vq_file=tiny_checkpoint / "model-vq.safetensors",
            tokenizer=tiny_checkpoint / "tokenizer.json",
            manifest=loaded.manifest,
        )

    with pytest.raises(CheckpointError, match="exists"):
        save(tiny_checkpoint, state)
    with pytest.raises(CheckpointError, match="missing_tensor"):
        save(tmp_path / "new", {name: tensor for name, tensor in state.items() if name != "model.norm.weight"})
    with pytest.raises(CheckpointError, match="not_finite"):
        save(tmp_path / "new", state | {"model.norm.weight": torch.full((64,), float("nan"))})
    assert list(tmp_path.iterdir()) == []


def test_save_may_overwrite_and_add_files(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "step_000001", seed=1)
    before = logits(folder)
    newer = make_tiny_checkpoint(tmp_path / "other", seed=2)
    loaded = load_checkpoint(newer)

    def train_state(staging: Path) -> None:
        (staging / "train").mkdir()
        (staging / "train" / "step.json").write_text("{}")

    save_checkpoint(
        folder,
        config=loaded.config,
        transformer_state=loaded.transformer.state_dict(),
        vq_file=newer / "model-vq.safetensors",
        tokenizer=newer / "tokenizer.json",
        manifest=loaded.manifest,
        dtype=None,
        write_extra=train_state,
        overwrite=True,
    )
    assert torch.equal(logits(folder), logits(newer))
    assert not torch.equal(logits(folder), before)
    assert (folder / "train" / "step.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "step_000001"]


_KILLED_SAVES = """
# Forks one saving process for each case; each kills itself at the count-th call of a stage. Prints how each one ended.
import json, os, signal, sys
import torch
torch.set_num_threads(1)
import model.checkpoint.atomic, model.checkpoint.checkpoint, tests.tiny

def kill_at(module, name, count):
    real, calls = getattr(module, name), []
    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(module, name, call)

real_save = model.checkpoint.checkpoint.save_checkpoint
tests.tiny.save_checkpoint = lambda *args, **kwargs: real_save(*args, **{**kwargs, "overwrite": True})
ends = []
for target, stage, count in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        module = model.checkpoint.atomic if stage == "_sync" else model.checkpoint.checkpoint
        kill_at(module, stage, count)
        tests.tiny.make_tiny_checkpoint(target, seed=2)
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""
STAGES = [
    ("_save_tensors", 1),
    ("_save_tensors", 2),
    ("_write_json", 3),
    ("validate_checkpoint", 1),
    ("_sync", 1),
    ("_sync", 9),
    ("replace_folder", 1),
]


def kill_saves(cases: list[tuple[Path, str, int]]) -> None:
    arguments = json.dumps([(str(target), stage, count) for target, stage, count in cases])
    done = subprocess.run([sys.executable, "-c", _KILLED_SAVES, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [-signal.SIGKILL] * len(cases)


def test_invariant_11_killed_save_leaves_only_old_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    homes = [tmp_path / f"{stage}-{count}-{place}" for stage, count in STAGES for place in ("old", "new")]
    for home in homes:
        shutil.copytree(tiny_checkpoint, home / "old")
    kill_saves(
        [(home / home.name.split("-")[2], home.name.split("-")[0], int(home.name.split("-")[1])) for home in homes]
    )
    for home in homes:
        assert [path.name for path in home.iterdir() if not path.name.startswith(".")] == ["old"], home.name
        validate_checkpoint(home / "old")
        assert torch.equal(logits(home / "old"), logits(tiny_checkpoint)), home.name


def test_next_save_removes_leftovers(tmp_path: Path) -> None:
    kill_saves([(tmp_path / "a", "replace_folder", 1)])
    assert [path.name.startswith(".a.saving-") for path in tmp_path.iterdir()] == [True]
    make_tiny_checkpoint(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_resolve_finds_path_name_or_hub_id(tiny_checkpoint: Path, tmp_path: Path) -> None:
    requested: list[str] = []

    def download(repo_id: str, **options: Any) -> str:
        requested.append(repo_id)
        assert not any("bin" in pattern or "pth" in pattern for pattern in options["allow_patterns"])
        return str(tiny_checkpoint)

    assert resolve(str(tiny_checkpoint)) == tiny_checkpoint.resolve()
    shutil.copytree(tiny_checkpoint, tmp_path / "mine")
    assert resolve("mine", roots=[tmp_path]) == (tmp_path / "mine").resolve()
    assert requested == []
    assert resolve("ModalityDance/Omni-R1", download=download) == tiny_checkpoint
    assert requested == ["ModalityDance/Omni-R1"]


def test_hub_id_uses_hub_client(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **_: str(tiny_checkpoint))
    assert load_checkpoint(resolve("GAIR/Anole-7b")).can_draw


def test_unknown_name_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repo_id: str, **_: Any) -> str:
        raise OSError("no route to host")

    for name, code in [
        ("nothing-like-it", "not_found"),
        ("/no/such/folder/at/all", "not_found"),
        ("../x/../y", "not_found"),
    ]:
        with pytest.raises(CheckpointError) as error:
            resolve(name, download=offline)
        assert error.value.code == code, name
    with pytest.raises(CheckpointError) as error:
        resolve("owner/name", download=offline)
    assert error.value.code == "download_failed"
    assert "no route to host" in error.value.detail
    with pytest.raises(CheckpointError) as error:
        resolve(str(tmp_path))
    assert error.value.code == "missing_file"
