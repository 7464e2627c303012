"""The build that a server reports changes with every file of the pages."""

from __future__ import annotations

import re
from pathlib import Path

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
