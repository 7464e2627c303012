"""Images to codes and back, partial images, and code statistics, checked by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.manifest import Perception
from model.checkpoint.memory import image_work
from model.checkpoint.shards import SHIPPED
from model.engine.commands import Configure
from model.images.codes import (
    copied_share,
    decode_codes,
    decode_partial,
    encode_images,
    fill_codes,
    flatness,
    image_stats,
    is_flat,
    perception_score,
    to_images,
    to_pixels,
    tv_energy,
)
from model.nets.vq import VQModel
from model.precision import cpu_has_bf16
from model.worker.models import Model
from tests.near_ties import assert_same_codes, assert_same_image


@pytest.fixture(scope="module")
def vq(tiny_checkpoint: Path) -> VQModel:
    model = load_checkpoint(tiny_checkpoint).vq
    assert model is not None
    return model


def test_pixels_span_minus_one_to_one() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, 255 - levels, levels], -1))
    pixels = to_pixels([image, image])
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels[0, 0, 0, 0] == -1.0
    assert pixels[0, 0, 15, 15] == pytest.approx(1.0, abs=1e-6)  # 0.989 with HF's rounded 0.0078
    assert [back.tobytes() for back in to_images(pixels)] == [image.tobytes()] * 2


def test_pixels_out_of_range_are_clamped() -> None:
    image = to_images(torch.full((1, 3, 16, 16), 1.7))[0]
    assert image.getpixel((0, 0)) == (255, 255, 255)


class Convolutions(TorchDispatchMode):
    """The precision of each."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(call):
            self.seen.append(args[0].dtype)
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "bf16"), [("cuda", True), ("cuda", False), ("mps", True), ("cpu", True)])
def test_devices_decode_in_bf16_if_they_can(
    vq: VQModel, monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool
) -> None:
    """Devices that do not exist; the pixels are in fp32 either way, and Apple's GPUs keep to it."""
    asked: list[torch.device] = []

    def autocast(choice: str, of: torch.device) -> torch.autocast:
        asked.append(of)
        return torch.autocast("cpu", torch.bfloat16)

    monkeypatch.setattr("model.nets.vq.has_bf16", lambda _device: bf16)
    monkeypatch.setattr("model.nets.vq.autocast", autocast)
    monkeypatch.setattr(VQModel, "codebook", SimpleNamespace(device=torch.device(device)))
    with Convolutions() as calls:
        pixels = vq.decode(torch.zeros((2, vq.config.codes_per_image), dtype=torch.long))
    assert pixels.dtype == torch.float32
    halves = bf16 and device != "mps"
    assert set(calls.seen) == {torch.bfloat16 if halves else torch.float32}
    assert asked == [torch.device(device)] * halves


@pytest.mark.parametrize(
    ("device", "gib", "sizes"), [("cuda", 80, [4, 2]), ("cuda", 24, [1] * 6), ("cpu", 80, [1] * 6)]
)
def test_large_gpus_decode_four_at_once(
    vq: VQModel, monkeypatch: pytest.MonkeyPatch, device: str, gib: int, sizes: list[int]
) -> None:
    """Of images as large as a 7B's, of which one fills the budget."""
    batches: list[int] = []

    def decode(codes: torch.Tensor) -> torch.Tensor:
        batches.append(len(codes))
        return torch.zeros(len(codes), 3, 16, 16)

    monkeypatch.setattr("model.images.codes.WORK_BYTES", image_work(vq.config))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, gib << 30))
    on = SimpleNamespace(config=vq.config, codebook=SimpleNamespace(device=torch.device(device)), decode=decode)
    monkeypatch.setattr(
        "model.images.codes.torch",
        SimpleNamespace(cuda=torch.cuda, tensor=no_device, Tensor=torch.Tensor, uint8=torch.uint8),
    )
    assert len(decode_codes(on, [[0] * vq.config.codes_per_image] * 6)) == 6  # type: ignore[arg-type]
    assert batches == sizes


def no_device(values: Any, device: object) -> torch.Tensor:
    return torch.tensor(values)


def test_image_becomes_n_codes(vq: VQModel) -> None:
    rows = encode_images(vq, [Image.new("RGB", (40, 20), c) for c in ("red", "blue")], ["crop", "pad"])
    assert all(len(codes) == 4 and all(0 <= code < 64 for code in codes) for codes in rows)
    assert encode_images(vq, []) == []


def test_batch_encoding_equals_single_images(vq: VQModel) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(5)]
    together, alone = (
        torch.tensor(c) for c in (encode_images(vq, images), [encode_images(vq, [i])[0] for i in images])
    )
    assert_same_codes(vq, to_pixels(images), together, alone)


def test_large_images_pass_the_vq_in_batches_that_fit(vq: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images within the memory of two: batches of 2, 2 and 1, in order, encoded and decoded."""
    monkeypatch.setattr("model.images.codes.WORK_BYTES", 2 * image_work(vq.config))
    sizes: list[int] = []
    for name in ("encode", "decode"):
        whole = getattr(VQModel, name)

        def counted(model: VQModel, batch: torch.Tensor, whole: Any = whole) -> Any:
            sizes.append(len(batch))
            return whole(model, batch)

        monkeypatch.setattr(VQModel, name, counted)
    images = [Image.new("RGB", (16, 16), (50 * n, 0, 90)) for n in range(5)]
    codes = encode_images(vq, images)
    assert len(decode_codes(vq, codes)) == 5
    assert sizes == [2, 2, 1, 2, 2, 1]
    assert_same_codes(vq, to_pixels(images[4:]), torch.tensor(codes[4:]), torch.tensor(encode_images(vq, images[4:])))


def test_codes_decode_to_model_size(vq: VQModel) -> None:
    images = decode_codes(vq, [(1, 2, 3, 4), (4, 3, 2, 1)])
    assert [p.size for p in images] == [(16, 16)] * 2
    assert images[0].tobytes() != images[1].tobytes()
    assert decode_codes(vq, []) == []
    with pytest.raises(ValueError, match="4 codes, got 3"):
        decode_codes(vq, [(1, 2, 3)])


def test_partial_image_is_filled_from_previous(vq: VQModel) -> None:
    assert fill_codes(vq, [7, 8], (1, 2, 3, 4)) == [7, 8, 3, 4]
    assert fill_codes(vq, [], (1, 2, 3, 4)) == [1, 2, 3, 4]
    assert fill_codes(vq, [7, 8, 9, 10], (1, 2, 3, 4)) == [7, 8, 9, 10]


def test_partial_image_is_filled_with_mean_code(vq: VQModel) -> None:
    assert fill_codes(vq, [7]) == [7, 7, 7, 7]  # the code nearest to the mean of one vector is itself
    filled = fill_codes(vq, [])
    distance = (vq.codebook - vq.codebook.mean(0)).square().sum(1)
    assert filled == [int(distance.argmin())] * 4


def test_last_partial_equals_the_image(vq: VQModel) -> None:
    codes = (9, 8, 7, 6)
    images = [decode_partial(vq, codes[:k], (1, 2, 3, 4)) for k in range(5)]
    assert images[0].tobytes() == decode_codes(vq, [(1, 2, 3, 4)])[0].tobytes()
    assert images[4].tobytes() == decode_codes(vq, [codes])[0].tobytes()


def test_energy_by_hand() -> None:
    """Grid of 2 x 3, D = 2:   (0,0) (1,0) (1,2)     horizontal |d|^2: 1, 4, 0, 4   -> E_h = 9/4
                               (0,1) (0,1) (2,1)     vertical   |d|^2: 1, 2, 2      -> E_v = 5/3
    E_2D = (9/4 + 5/3) / 2 = 47/24."""
    grid = torch.tensor([[[0.0, 0], [1, 0], [1, 2]], [[0, 1], [0, 1], [2, 1]]])
    assert float(tv_energy(grid)) == pytest.approx(47 / 24)
    assert float(tv_energy(grid)) != pytest.approx(47 / 12)  # without the division by D
    batch = torch.stack([grid, grid * 2])
    torch.testing.assert_close(tv_energy(batch), torch.tensor([47 / 24, 47 / 6]))


def test_single_row_has_no_vertical_neighbours() -> None:
    assert float(tv_energy(torch.tensor([[[0.0], [3.0]]]))) == 9.0
    assert float(tv_energy(torch.tensor([[[5.0]]]))) == 0.0


def test_score_by_hand() -> None:
    """s = 1 / (1 + 1.5 / 3) = 2/3; a smoother image than the 95th percentile (0.6) scores like that."""
    assert perception_score(1.5, Perception(tau=3.0)) == pytest.approx(2 / 3)
    assert perception_score(0.0, Perception(tau=3.0)) == 1.0
    assert perception_score(0.0, Perception(tau=3.0, energy_p95=0.6)) == pytest.approx(1 / 1.2)
    assert perception_score(1.5, Perception(tau=3.0, energy_p95=0.6)) == pytest.approx(2 / 3)


def test_flatness_is_share_of_commonest_code() -> None:
    assert flatness((1, 1, 1, 2)) == 0.75
    assert flatness((1, 2, 3, 4)) == 0.25
    assert flatness(()) == 0.0


def test_blank_image_is_flat_and_earns_nothing(vq: VQModel) -> None:
    assert is_flat((5, 5, 5, 5), Perception(), 0.0)
    assert not is_flat((5, 5, 6, 6), Perception(), 1.0)
    assert not is_flat((5, 5, 5, 6), Perception(flat_share_max=0.7), 1.0)
    assert image_stats(vq, (5, 5, 5, 5)).perception_reward == 0.0
    assert image_stats(vq, (5, 5, 5, 5)).tv == 0.0
    assert 0.0 < image_stats(vq, (5, 6, 7, 8)).perception_reward < 1.0


def test_image_of_similar_codes_is_flat() -> None:
    perception = Perception(energy_p95=1.5)  # 95 % of the references have more energy; a third of it is .5
    assert is_flat((1, 2, 3, 4), perception, 0.49)
    assert not is_flat((1, 2, 3, 4), perception, 0.51)
    assert not is_flat((1, 2, 3, 4), Perception(), 0.0)  # without a scale only the codes count


def test_shipped_guard_catches_any_plain_canvas() -> None:
    loaded = load_checkpoint(SHIPPED / "nano-base")
    assert loaded.vq is not None
    colours = ["white", "black", "grey", "red", "green", "blue", "orange", "magenta"]
    canvases = encode_images(loaded.vq, [Image.new("RGB", (64, 64), colour) for colour in colours])
    assert max(len(set(codes)) for codes in canvases) > 3  # one colour, several codes
    rewards = [image_stats(loaded.vq, codes, loaded.manifest.perception).perception_reward for codes in canvases]
    assert rewards == [0.0] * len(colours)


def test_image_stats_use_the_codebook(vq: VQModel) -> None:
    facts = image_stats(vq, (5, 6, 7, 7), Perception(tau=2.0))
    vectors = vq.codebook[torch.tensor([[5, 6], [7, 7]])]
    energy = float(tv_energy(vectors))
    assert (facts.codes, facts.flatness) == (3, 0.5)
    assert facts.tv == pytest.approx(energy)
    assert facts.perception_reward == pytest.approx(1 / (1 + energy / 2.0))
    assert set(facts.to_json()) == {"codes", "flatness", "tv", "perception_reward"}


def test_copied_image_is_recognised() -> None:
    assert copied_share((1, 2, 3, 4), (1, 2, 3, 5)) == 0.75
    with pytest.raises(ValueError, match="longer"):
        copied_share((1, 2), (1, 2, 3))


@pytest.mark.parametrize("in_bf16", [True, False])
def test_decoding_is_independent_of_the_batch(in_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded by the embedded checkpoint with and without bf16; the statistics are exactly equal."""
    if in_bf16 and not cpu_has_bf16():
        pytest.skip("this CPU has no bf16 in hardware")
    monkeypatch.setattr("model.nets.vq.has_bf16", lambda _device: in_bf16)
    model = Model.load(
        "nano", str(SHIPPED / "nano-omni-r1"), 1, device=torch.device("cpu"), settings=Configure("cpu", 2, None)
    )
    codes = torch.randint(0, 512, (5, 64), generator=torch.Generator().manual_seed(0)).tolist()
    alone = [model.draw([grid])[0] for grid in codes]
    assert len({result.png for result in alone}) == 5
    for company in (2, 4, 5):
        together = [result for i in range(0, 5, company) for result in model.draw(codes[i : i + company])]
        for one, other in zip(alone, together, strict=True):
            assert one.stats == other.stats
            assert_same_image(one.png, other.png)


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bf16 in hardware")
def test_bf16_decodes_like_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    vq = load_checkpoint(SHIPPED / "nano-omni-r1").vq
    assert vq is not None
    codes = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(1))
    pixels = []
    for in_bf16 in (True, False):
        monkeypatch.setattr("model.nets.vq.has_bf16", lambda _device, in_bf16=in_bf16: in_bf16)
        pixels.append(vq.decode(codes))
    assert (pixels[0] - pixels[1]).abs().mean() < 1 / 127.5  # one of 256 levels
    assert not torch.equal(*pixels)
