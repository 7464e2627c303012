"""The model's view of an image."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from model.images.view import model_view, open_image, png_bytes
from tests.tiny import tiny_config


def striped(width: int, height: int) -> Image.Image:
    """Left third red, middle green, right blue."""
    image = Image.new("RGB", (width, height), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, width // 3, height))
    image.paste((0, 0, 255), (width - width // 3, 0, width, height))
    return image


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(64, 64), (64, 200), (200, 64), (1, 1), (1, 5000), (5000, 1), (63, 65)])
def test_the_view_is_rgb_and_square(size: tuple[int, int], fit: str) -> None:
    view = model_view(Image.new("RGB", size, "red"), 64, fit)  # type: ignore[arg-type]
    assert (view.size, view.mode) == ((64, 64), "RGB")


def test_image_of_right_size_is_unchanged() -> None:
    image = striped(16, 16)
    assert model_view(image, 16).tobytes() == image.tobytes()


def test_crop_cuts_sides_and_pad_keeps_them() -> None:
    image = striped(96, 32)
    crop, pad = model_view(image, 32, "crop"), model_view(image, 32, "pad")
    assert crop.getpixel((1, 16)) == crop.getpixel((30, 16)) == (0, 255, 0)
    assert pad.getpixel((1, 16)) == (255, 0, 0)
    assert pad.getpixel((30, 16)) == (0, 0, 255)
    assert pad.getpixel((16, 1)) == pad.getpixel((16, 30)) == (255, 255, 255)


def test_crop_of_very_long_image_is_cheap() -> None:
    assert model_view(striped(30_000, 10), 64).getpixel((32, 32)) == (0, 255, 0)


def test_the_resolution_comes_from_the_checkpoint() -> None:
    config, _ = tiny_config(resolution=32)
    image = striped(50, 40)
    assert (
        model_view(image, config).tobytes() == model_view(image, config.vq).tobytes() == model_view(image, 32).tobytes()
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_blended_on_white(mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 16))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    view = model_view(buffer.getvalue(), 16)
    assert view.getpixel((12, 8)) == (255, 255, 255)
    assert view.getpixel((4, 8)) != (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to display
    buffer = io.BytesIO()
    striped(48, 24).save(buffer, "PNG", exif=exif)
    image = open_image(buffer.getvalue())
    assert image.size == (24, 48)
    assert image.getpixel((12, 2)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert model_view(Image.new(mode, (20, 30)), 16).mode == "RGB"


def test_png_round_trip_drops_metadata() -> None:
    image = striped(16, 16)
    again = open_image(png_bytes(image))
    assert again.tobytes() == image.tobytes()
    assert not again.getexif()


def test_an_unknown_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="crop or pad"):
        model_view(striped(20, 10), 16, "stretch")  # type: ignore[arg-type]


def test_view_outlives_the_opened_file() -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    with Image.open(io.BytesIO(out.getvalue())) as opened:
        view = model_view(opened, 64)
    assert view.copy().getpixel((3, 3)) == (255, 0, 0)
