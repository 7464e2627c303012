"""Meta's release layout becomes ours, logit for logit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import load_checkpoint, validate_checkpoint
from model.checkpoint.convert import convert_meta, split_halves
from model.checkpoint.shards import CheckpointError
from model.nets.transformer import CausalAttention
from tests.tiny import interleave, make_tiny_checkpoint


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("meta") / "Anole-tiny", layout="meta")


@pytest.fixture
def copy(released: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(released, tmp_path / "source"))


def test_rotary_permutation_by_hand() -> None:
    """One head of 6: pairs (x0 y0)(x1 y1)(x2 y2) become halves x0 x1 x2 | y0 y1 y2; heads stay apart."""
    rows = torch.tensor([0, 10, 1, 11, 2, 12, 100, 110, 101, 111, 102, 112])
    assert split_halves(rows, 6).tolist() == [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    weight = torch.randn(12, 5)
    assert torch.equal(interleave(split_halves(weight, 6), 6), weight)
    assert not torch.equal(split_halves(weight, 6), weight)


def test_interleaved_attention_scores_are_kept() -> None:
    """The dot product after Meta's interleaved rotation equals that after HF's half-split one, at every distance."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=generator)
    angles = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)

    def meta(x: torch.Tensor, position: int) -> torch.Tensor:
        turned = torch.view_as_complex(x.view(4, 2)) * torch.polar(
            torch.ones(4, dtype=torch.float64), position * angles
        )
        return torch.view_as_real(turned).flatten()

    def halves(x: torch.Tensor, position: int) -> torch.Tensor:
        a, b = x[:4], x[4:]
        cos, sin = (position * angles).cos(), (position * angles).sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin])

    for i, j in [(0, 0), (3, 1), (40, 7)]:
        expected = meta(q, i) @ meta(k, j)
        torch.testing.assert_close(halves(split_halves(q, 8), i) @ halves(split_halves(k, 8), j), expected)


def test_conversion_keeps_logits_and_images(released: Path, tmp_path: Path) -> None:
    """The same random model written in both layouts; Meta's keeps one q/k norm for all heads."""
    converted = load_checkpoint(convert_meta(released, tmp_path / "converted"))
    original = load_checkpoint(make_tiny_checkpoint(tmp_path / "hf", qk_norm="dim"))
    validate_checkpoint(converted.folder)
    assert converted.vocab == original.vocab
    assert converted.config.transformer == original.config.transformer
    assert converted.config.vq == original.config.vq
    prompt = original.template.prompt_ids("Where is the red star?", [(1, 2, 3, 4)])
    assert converted.template.prompt_ids("Where is the red star?", [(1, 2, 3, 4)]) == prompt
    ids = torch.tensor([prompt])
    positions = torch.arange(len(prompt))[None]
    ours, theirs = (
        c.transformer.logits(c.transformer(ids, positions, CausalAttention())) for c in (converted, original)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    assert converted.vq is not None
    assert original.vq is not None
    codes = converted.vq.encode(pixels)
    assert torch.equal(codes, original.vq.encode(pixels))
    assert torch.equal(converted.vq.decode(codes), original.vq.decode(codes))


def test_manifest_states_licence_and_capabilities(released: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(convert_meta(released, tmp_path / "anole", template="tagged"))
    assert loaded.name == "anole"
    assert loaded.template.name == "tagged"
    assert "non-commercial" in loaded.manifest.licence
    assert loaded.can_draw


def test_widths_come_from_tensors_without_params_file(copy: Path, tmp_path: Path) -> None:
    (copy / "models" / "7b" / "params.json").unlink()
    t = load_checkpoint(convert_meta(copy, tmp_path / "out")).config.transformer
    assert (t.num_heads, t.num_kv_heads, t.head_dim, t.num_layers, t.intermediate_size) == (4, 2, 16, 2, 96)
    assert (t.max_position_embeddings, t.rope_theta) == (4096, 10000.0)


@pytest.mark.parametrize(
    "name",
    ["models/7b/consolidated.pth", "tokenizer/vqgan.ckpt", "tokenizer/vqgan.yaml", "tokenizer/text_tokenizer.json"],
)
def test_a_missing_file_is_named(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(Exception, match=Path(name).name):
        convert_meta(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("touched"),))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "name",
    [
        "models/7b/consolidated.pth",
        "tokenizer/vqgan.ckpt",
        "tokenizer/vqgan.yaml",
        "tokenizer/text_tokenizer.json",
    ],
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"", "is empty"),
    ],
)
def test_what_a_file_really_is_gets_said(copy: Path, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        convert_meta(copy, tmp_path / "out")
    assert (error.value.code, f"{name} {words}" in error.value.detail) == ("broken_file", True), error.value


def test_pickle_with_code_is_rejected(copy: Path, tmp_path: Path) -> None:
    path = copy / "models" / "7b" / "consolidated.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError) as error:
        convert_meta(copy, tmp_path / "out")
    assert error.value.code == "broken_file"
    torch.save({"evil": Evil()}, path)
    with pytest.raises(CheckpointError) as error:
        convert_meta(copy, tmp_path / "out")
    assert error.value.code == "broken_file"


def test_unknown_tensor_and_split_model_are_rejected(copy: Path, tmp_path: Path) -> None:
    path = copy / "models" / "7b" / "consolidated.pth"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"layers.0.attention.extra.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="extra"):
        convert_meta(copy, tmp_path / "out")
    path.rename(path.with_name("consolidated.00.pth"))
    path.with_name("consolidated.01.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="several files"):
        convert_meta(copy, tmp_path / "out")


def test_the_image_token_is_renamed_once(released: Path, tmp_path: Path) -> None:
    source = json.loads((released / "tokenizer" / "text_tokenizer.json").read_text())
    assert "<image>" not in source["model"]["vocab"]
    folder = convert_meta(released, tmp_path / "out")
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocab["<image>"] == source["model"]["vocab"]["<reserved08707>"]
    assert "<reserved08707>" not in vocab
