"""The image reader: accepted formats, results, and descriptions of everything else."""

from __future__ import annotations

import struct
import zlib
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageCms

from model.images.kinds import READABLE, kind_of
from model.images.profiles import SRGB, SRGB_CURVE, rgb_profile
from model.images.reader import MAX_SIDE, ImageError, image_size, read_image
from tests.image_files import FORMATS, bomb, encoded, gradient, noise, phone_exif, png_file, with_chunks

P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290)
ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290)
DISPLAY_P3 = rgb_profile(P3, SRGB_CURVE)
ADOBE_RGB = rgb_profile(ADOBE, (0, (2.19921875,)))


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    found = read_image(data).getpixel(at)
    assert isinstance(found, tuple)
    return found


def refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(data)
    return caught.value


def near(one: tuple[int, ...], other: tuple[int, ...], by: int = 2) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= by


# ---- file types


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_known_by_content(kind: str) -> None:
    data = encoded(gradient(), kind)
    assert kind_of(data) == kind
    assert read_image(data).size == image_size(data) == (32, 32)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "an empty file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", "video"),
        (b"\x1aE\xdf\xa3\x01\0\0\0webm", "video"),
        (encoded(gradient(), "TIFF"), "TIFF"),
        (encoded(gradient(), "ICO"), "ICO"),
        (encoded(gradient(), "EPS"), "EPS"),
        (encoded(gradient(), "PDF"), "PDF"),
        (encoded(gradient(), "JPEG2000"), "JPEG 2000"),
        (encoded(gradient(), "PPM"), "Netpbm"),
        (b"8BPS\0\1" + bytes(30), "PSD"),
        (b"\xff\x0a" + bytes(30), "JPEG XL"),
        (b'<?xml version="1.0"?>\n<!-- a --><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\xef\xbb\xbf  <svg/>", "SVG"),
        (b"<!DOCTYPE html><html><body><svg/></body></html>", "HTML page"),
        (b"\n<HTML><head>", "HTML page"),
        (b'{"error": "not found"}', "JSON"),
        (b"PK\3\4" + bytes(30), "ZIP"),
        (b"iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAh0lEQVR4nO3PAQ0AAAjDMO5f9", "base64"),
        (b"data:image/png;base64,iVBORw0KGgo", "data URL"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"hello", "text"),
        (bytes(range(256)), "not a known image format"),
    ],
)
def test_other_files_are_described_by_type(data: bytes, name: str) -> None:
    assert kind_of(data) not in READABLE
    error = refusal(data)
    assert error.code == "unsupported_image"
    assert name in error.detail


# ---- sizes


def test_oversized_headers_are_rejected_undecoded() -> None:
    for size in ((6325, 6325), (60_000, 60_000), (2**31 - 1, 1)):
        assert refusal(png_file(size, 8, 2, b"\0" * 100)).code == "image_too_large"


def test_webp_is_rejected_above_its_decoder_limit() -> None:
    image = Image.new("L", (5657, 5657))
    assert "WebP" in refusal(encoded(image, "WEBP")).detail
    assert read_image(encoded(image, "PNG")).size == (2829, 2829)


@pytest.mark.parametrize(("size", "ratio"), [((1, 10_000), "10000 : 1"), ((3300, 100), "33 : 1")])
def test_extreme_ratio_is_reported(size: tuple[int, int], ratio: str) -> None:
    for kind in ("PNG", "GIF", "BMP"):
        error = refusal(encoded(Image.new("L", size), kind))
        assert error.code == "image_too_narrow"
        assert ratio in error.detail
    assert read_image(encoded(Image.new("L", (3200, 100)), "PNG")).size == (3200, 100)


def test_large_images_shrink_by_whole_factors() -> None:
    assert read_image(bomb(6324, 6324)).size == (3162, 3162)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        image = read_image(
            encoded(gradient(2 * MAX_SIDE + 1, 600), kind, **({"quality": 95} if kind == "JPEG" else {}))
        )
        assert image.size == (-(-(2 * MAX_SIDE + 1) // 3), 200)
        assert image.getpixel((10, 10))[0] < 20  # type: ignore[index]
        assert image.getpixel((image.width - 10, 10))[0] > 235  # type: ignore[index]


# ---- metadata is never fatal


@pytest.mark.parametrize("name", [b"zTXt", b"tEXt", b"iTXt", b"prVt", b"eXIf", b"iCCP", b"sPLT"])
def test_any_amount_of_png_metadata_is_accepted(name: bytes) -> None:
    junk = Random(1).randbytes(3_000_000)
    for body in (junk, b"workflow\0\0" + zlib.compress(bytes(80_000_000)), b""):
        assert np.array_equal(read_image(with_chunks(encoded(gradient(), "PNG"), (name, body))), gradient())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_large_and_broken_profiles_are_ignored(kind: str) -> None:
    plain = read_image(encoded(gradient(), kind))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (Random(1).randbytes(2_000_000), b"x", lab, (DISPLAY_P3 or b"")[:200]):
        assert np.array_equal(read_image(encoded(gradient(), kind, icc_profile=profile)), plain)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_no_exif_tag_breaks_an_image(kind: str) -> None:
    data = encoded(noise(24, 16), kind, exif=phone_exif())
    start = max(data.find(b"II*\0"), data.find(b"MM\0*"))
    random = Random(7)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(random.randint(1, 4)):
            changed[start + random.randrange(380)] = random.randrange(256)
        assert read_image(bytes(changed)).size in ((16, 24), (24, 16))


@pytest.mark.parametrize(
    "odd",
    [
        (0x010F, 2, 2**31, 2**31),
        (0x011A, 5, 1, 0),
        (0x0111, 99, 9, 9),
        (0x8769, 4, 1, 8),
        (0x8825, 4, 1, 0),
        (0, 0, 0, 0),
    ],
)
def test_odd_tag_keeps_the_orientation(odd: tuple[int, int, int, int]) -> None:
    entries = sorted([odd, (0x0112, 3, 1, 6)])
    tiff = b"II*\0\x08\0\0\0\2\0" + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    exif = b"Exif\0\0" + tiff
    data = encoded(gradient(40, 20), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert read_image(data).size == (20, 40)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations_are_applied(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (48, 32), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 24, 16))
    data = encoded(image, kind, exif=phone_exif(orientation))
    found = np.asarray(read_image(data).convert("L")) > 128
    wanted = np.asarray(image.convert("L")) > 128
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.T[::-1, ::-1],
        8: lambda a: np.rot90(a),
    }[orientation]
    assert np.mean(found != turn(wanted)) < 0.01


# ---- truncation


def cuts(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def files() -> list[tuple[str, bytes]]:
    image = noise(100, 96)
    palette = image.quantize()
    return [
        ("PNG", encoded(image, "PNG")),
        ("JPEG", encoded(image, "JPEG")),
        ("JPEG progressive", encoded(image, "JPEG", progressive=True)),
        ("JPEG grey", encoded(image.convert("L"), "JPEG")),
        ("WEBP", encoded(image, "WEBP")),
        ("WEBP lossless", encoded(image, "WEBP", lossless=True)),
        ("WEBP alpha", encoded(Image.merge("RGBA", (*image.split(), image.getchannel("R"))), "WEBP")),
        ("GIF", encoded(palette, "GIF", interlace=0)),
        ("GIF interlaced", encoded(palette, "GIF", interlace=1)),
        ("BMP", encoded(image, "BMP")),
        ("AVIF", encoded(image, "AVIF")),
    ]


@pytest.mark.parametrize(("name", "data"), files(), ids=[name for name, _ in files()])
def test_an_image_cut_in_half_is_broken(name: str, data: bytes) -> None:
    for share in (0.1, 0.3, 0.5):
        assert refusal(cuts(data, share)).code == "image_broken"


@pytest.mark.parametrize(("name", "data"), files(), ids=[name for name, _ in files()])
def test_image_without_last_bytes_is_complete(name: str, data: bytes) -> None:
    whole = np.asarray(read_image(data)).astype(int)
    for missing in (1, 2, 3, 4, 8, 12):
        found = np.asarray(read_image(data[:-missing])).astype(int)
        assert found.shape == whole.shape
        differing = np.flatnonzero((np.abs(found - whole) > 8).any(axis=(1, 2)))
        assert len(differing) <= 1 or differing[0] >= 96 - 16 - 4 or name == "AVIF"


def test_missing_png_rows_decide() -> None:
    rows = b"".join(b"\0" + Random(y).randbytes(300) for y in range(50))
    for lacking, whole in ((0, True), (200, True), (301, True), (302, False), (900, False)):
        data = png_file((100, 50), 8, 2, rows[: len(rows) - lacking])
        if whole:
            assert pixel(data, (99, 48)) == tuple(rows[301 * 49 - 3 : 301 * 49])
        else:
            assert refusal(data).code == "image_broken"


def test_end_marker_hides_no_missing_half() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        data = encoded(noise(100, 96), "JPEG", **options)
        if "progressive" not in options:
            assert refusal(cuts(data, 0.5) + b"\xff\xd9").code == "image_broken"
        assert read_image(data + b"trailing bytes").size == (100, 96)
    grey = encoded(Image.new("RGB", (64, 64), (128, 128, 128)), "JPEG")
    assert read_image(grey).size == (64, 64)


@pytest.mark.parametrize("kind", FORMATS)
def test_broken_bytes_give_one_kind_of_error(kind: str) -> None:
    random = Random(3)
    data = encoded(noise(40, 30).quantize() if kind == "GIF" else noise(40, 30), kind)
    codes = set()
    for _ in range(150):
        changed = bytearray(cuts(data, random.choice((1, 1, 0.8))))
        for _ in range(random.randint(1, 6)):
            changed[random.randrange(min(len(changed), random.choice((64, len(changed)))))] = random.randrange(256)
        try:
            read_image(bytes(changed))
        except ImageError as error:
            codes.add(error.code)
    assert "image_broken" in codes


# ---- colours


def test_greys_are_scaled_by_depth_not_content() -> None:
    for value, wanted in ((0, 0), (255, 1), (257, 1), (0x8000, 128), (0xFFFF, 255)):
        assert pixel(png_file((1, 1), 16, 0, b"\0" + struct.pack(">H", value))) == (wanted,) * 3
    assert pixel(png_file((1, 1), 16, 2, b"\0" + struct.pack(">HHH", 255, 0x8000, 0xFFFF))) == (0, 128, 255)
    assert pixel(png_file((2, 1), 2, 0, b"\0\x10")) == (0, 0, 0)
    assert pixel(png_file((2, 1), 2, 0, b"\0\x10"), (1, 0)) == (85, 85, 85)


def as_srgb(colour: tuple[int, int, int], primaries: tuple[float, ...], gamma: float | None) -> tuple[int, ...]:
    """Convert a colour of another RGB space with the same white."""

    def matrix(xy: tuple[float, ...]) -> np.ndarray:
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in zip(xy[::2], xy[1::2], strict=True)]).T
        return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])

    values = np.array(colour) / 255
    srgb_curve = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = np.linalg.solve(matrix(SRGB), matrix(primaries) @ (srgb_curve if gamma is None else values**gamma))
    light = light.clip(0, 1)
    out = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return tuple(int(v) for v in (out * 255).round())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("colour", [(200, 120, 90), (130, 180, 140), (140, 70, 60)])
def test_wide_colours_become_srgb(kind: str, colour: tuple[int, int, int]) -> None:
    options = {"WEBP": {"lossless": True}, "PNG": {}}.get(kind, {"quality": 98, "subsampling": "4:4:4"})
    image = Image.new("RGB", (16, 16), colour)
    for profile, primaries, gamma in ((DISPLAY_P3, P3, None), (ADOBE_RGB, ADOBE, 2.19921875)):
        wanted = as_srgb(colour, primaries, gamma)
        assert not near(wanted, colour, 6)
        assert near(pixel(encoded(image, kind, icc_profile=profile, **options)), wanted, 4)


def test_png_colour_chunks_have_precedence() -> None:
    def grey(*chunks: tuple[bytes, bytes]) -> int:
        return pixel(png_file((1, 1), 8, 0, b"\0\x80", *chunks))[0]

    linear = (b"gAMA", struct.pack(">I", 100_000))
    assert grey(linear) == 188
    assert grey((b"sRGB", b"\0"), linear) == grey((b"gAMA", struct.pack(">I", 45_455))) == grey() == 128
    assert grey((b"cICP", bytes([1, 13, 0, 1])), linear) == 128
    assert grey((b"gAMA", bytes(4))) == grey((b"cHRM", bytes(32))) == 128
    wide = png_file((1, 1), 8, 2, b"\0\xc8\x64\x32", (b"cICP", bytes([12, 13, 0, 1])))
    assert near(pixel(wide), (215, 93, 31))


def test_fitting_grey_and_cmyk_profiles_are_used() -> None:
    grey = Image.new("L", (16, 16), 100)
    assert near(pixel(encoded(grey, "JPEG", icc_profile=ADOBE_RGB)), (100, 100, 100), 6)
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for profile in (None, DISPLAY_P3):
        red, green, blue = pixel(encoded(cmyk, "JPEG", icc_profile=profile) if profile else encoded(cmyk, "JPEG"))
        assert red > 240
        assert max(green, blue) < 20


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    for kind in ("PNG", "WEBP", "AVIF"):
        assert near(pixel(encoded(clear, kind)), (255, 255, 255), 3)
        assert near(pixel(encoded(half, kind)), (127, 127, 127), 3)
    assert near(pixel(encoded(Image.new("LA", (4, 4), (0, 64)), "PNG")), (191, 191, 191))
    palette = gradient().quantize(16)
    index = palette.getpixel((0, 0))
    for kind in ("PNG", "GIF"):
        assert pixel(encoded(palette, kind, transparency=index)) == (255, 255, 255)
    assert near(pixel(encoded(Image.new("P", (2, 2), 0), "PNG", transparency=bytes([128]))), (127, 127, 127))


def test_transparent_colour_is_compared_at_its_depth() -> None:
    def key(depth: int, colour: int, row: bytes, value: bytes) -> tuple[int, ...]:
        return pixel(png_file((1, 1), depth, colour, b"\0" + row, (b"tRNS", value)))

    white = (255, 255, 255)
    assert key(16, 0, b"\x12\x34", b"\x12\x34") == white
    assert key(16, 0, b"\x12\x34", b"\x12\x35") == (18, 18, 18)
    assert key(8, 2, b"\1\2\3", b"\0\1\0\2\0\3") == white
    assert key(8, 2, b"\1\2\3", b"\0\1\0\2\0\4") == (1, 2, 3)
    assert key(1, 0, b"\0", b"\0\0") == white
    assert key(1, 0, b"\0", b"\0\1") == (0, 0, 0)
    assert key(4, 0, b"\x40", b"\0\4") == white


def test_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "WEBP", "PNG", "AVIF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert near(pixel(data, (1, 1)), (0, 255, 0), 3)


def test_a_gif_frame_lies_on_its_screen() -> None:
    data = bytearray(encoded(Image.new("P", (4, 4), 0), "GIF"))
    data[6:10] = struct.pack("<HH", 10, 8)
    at = data.index(b",\0\0\0\0\4\0\4\0")
    data[at + 1 : at + 5] = struct.pack("<HH", 5, 3)
    image = read_image(bytes(data))
    assert image.size == (10, 8)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((5, 3)) == (0, 0, 0)


def test_every_mode_becomes_rgb_without_metadata() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = read_image(encoded(Image.new(mode, (5, 3)), "PNG"))
        assert (image.mode, image.size, image.info) == ("RGB", (5, 3), {})
