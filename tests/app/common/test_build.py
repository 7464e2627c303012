"""The build that a server reports changes with every file of the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.common import build
from app.common.build import ROOT, build_version, hash_of
from model.build import package_version


def test_build_names_package_and_pages() -> None:
    assert re.fullmatch(re.escape(package_version()) + r"\+[0-9a-f]{8}", build_version())
    assert (ROOT / "static" / "viewer" / "viewer.js").is_file()


def test_build_changes_with_every_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a.js", tmp_path / "b.css"
    first.write_text("one")
    second.write_text("two")
    seen = {hash_of([first, second])}
    assert hash_of([second, first]) in seen
    second.write_text("TWO")
    seen.add(hash_of([first, second]))
    first.rename(tmp_path / "c.js")
    seen.add(hash_of([tmp_path / "c.js", second]))
    seen.add(hash_of([second]))
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["a.js", "a.svg", "deep/a.png", "a.json", "LICENSE"])
def test_each_served_file_belongs_to_the_build(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Browsers keep a file under the address of its build for a year."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    monkeypatch.setattr(build, "STATIC", tmp_path)
    seen = set()
    for content in ("one", "two"):
        file.write_text(content)
        seen.add(build_version.__wrapped__())
    assert len(seen) == 2
