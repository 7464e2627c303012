"""Image or file name: the content decides, whatever the length and the alphabet."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.image_files import encoded, noise
from training.data.row_images import SampleError, find_value, open_value

SIDES = (1, 4, 8, 9, 10, 12, 14, 16, 40)  # base64 of 92 to 6,000 characters


def image(side: int) -> bytes:
    return encoded(noise(side, side), "PNG")


def spellings(data: bytes) -> dict[str, str]:
    plain = base64.b64encode(data).decode()
    safe = base64.urlsafe_b64encode(data).decode()
    return {
        "plain": plain,
        "unpadded": plain.rstrip("="),
        "lines": base64.encodebytes(data).decode(),
        "url-safe": safe,
        "url-safe, unpadded": safe.rstrip("="),
        "data URL": f"data:image/png;base64,{plain}",
        "data URL of another type": f"data:application/octet-stream;base64,{plain}",
        "data URL without a type": f"data:;base64,{safe}",
    }


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("spelling", spellings(b""))
def test_base64_of_any_length_is_an_image(side: int, spelling: str, tmp_path: Path) -> None:
    text = spellings(image(side))[spelling]
    assert open_value(text, tmp_path).size == (side, side)
    find_value(text, tmp_path)


def test_lengths_cross_those_of_names() -> None:
    lengths = [len(base64.b64encode(image(side))) for side in SIDES]
    assert min(lengths) < 255
    assert any(256 <= length < 1_024 for length in lengths)
    assert max(lengths) > 4_096


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[:40] + "!" + text[41:], "character 41 is '!'"),
        (lambda text: text[:60] + "." + text[61:], "character 61 is '.'"),
        (lambda text: text.rstrip("=")[: len(text.rstrip("=")) // 4 * 4 - 3], "cut off"),
        (lambda text: text[: len(text) // 8 * 4], "cut off|damaged|broken"),
        (lambda text: "data:image/png;base64," + text[:40] + "!", "the data URL is broken"),
    ],
)
def test_broken_base64_is_no_file_name(side: int, spoil: Any, words: str, tmp_path: Path) -> None:
    text = spoil(base64.b64encode(image(side)).decode())
    with pytest.raises(SampleError, match=words) as caught:
        open_value(text, tmp_path)
    assert caught.value.code == "broken_picture"


@pytest.mark.parametrize("name", ["deadbeef", "AAAA", "iVBORw0KGgo", "R0lGODdh", "photo_1-2", "a/b/c/d"])
def test_file_may_be_named_like_base64(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(image(4))
    assert open_value(name, tmp_path).size == (4, 4)
    find_value(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("deadbeef", "broken_picture", "neither a path nor base64"),
        ("A" * 300, "broken_picture", "not a supported image"),
        ("A" * 1_023, "broken_picture", "not a supported image"),
        ("a" * 300 + ".png", "missing_picture", "no image"),
        ("images/17.png", "missing_picture", "no image"),
        ("https://example.com/a.png", "missing_picture", "web address"),
        ("a b c", "broken_picture", "neither a path nor base64"),
        (base64.b64encode(b"%PDF-1.7 " + b"x" * 300).decode(), "broken_picture", "PDF"),
    ],
)
def test_other_text_is_described(text: str, code: str, words: str, tmp_path: Path) -> None:
    for look in (open_value, find_value):
        with pytest.raises(SampleError, match=words) as caught:
            look(text, tmp_path)
        assert caught.value.code == code
