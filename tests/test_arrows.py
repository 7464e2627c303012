"""The table of arrows in docs/architecture.md checked against the source; light modules; sizes."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOUSES = ("app", "model", "training")
MAX_ARROWS_IN_APP = 45
MAX_FILES = 16  # per folder, without `__init__.py`
MAX_LINES = 400
OURS = {".py", ".js", ".mjs"}
VENDORED = ("static/swagger", "node_modules")

HEAVY = ("torch", "gradio", "transformers", "pandas", "pyarrow", "obstore", "ray")
# These must not import heavy modules, so that the server and the command line start instantly.
LIGHT = {
    "app.cli.main",
    "app.client",
    "app.client.sse",
    "app.client.types",
    "app.common.build",
    "app.common.metrics",
    "app.common.settings",
    "app.contract.problems",
    "app.engine",
    "app.contract.schemas",
    "app.http.auth",
    "app.http.deps",
    "app.http.login",
    "app.jobs.runner",
    "app.jobs.service",
    "app.main",
    "app.storage.database",
    "app.storage.dialects",
    "app.storage.images",
    "app.traces.service",
    "model.checkpoint.manifest",
    "model.checkpoint.shards",
    "model.cluster.engine",
    "model.config",
    "model.engine.client",
    "model.engine.messages",
    "model.worker.narrator",
    "model.engine.phases",
    "model.engine.scheduler",
    "model.engine.sequence",
    "model.images.reader",
    "model.images.view",
    "model.log_lines",
    "model.text.template",
    "model.text.tokenizer",
    "model.text.vocab",
    "training.data.rows",
    "training.data.traces",
    "training.jobs.context",
    "training.jobs.log",
    "training.jobs.worker",
    "training.scoring.grading",
    "training.skills",
    "training.spec.spec",
    "training.world.checkers",
    "training.world.task",
    "training.world.world",
}


def folder(module: str) -> str:
    """The folder of a module; migrations belong to the storage folder."""
    path = module.replace(".", "/")
    parent = path if (ROOT / path).is_dir() else str(Path(path).parent)
    return re.sub("/migrations.*", "", parent)


def sources() -> list[Path]:
    return sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    """All modules imported anywhere in the file, including functions and type checking."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # `from model.engine import narrator` imports model.worker.narrator
                whole = f"{node.module}.{alias.name}"
                is_module = (ROOT / (whole.replace(".", "/") + ".py")).exists()
                yield whole if is_module or (ROOT / whole.replace(".", "/")).is_dir() else node.module


def arrows() -> dict[str, set[str]]:
    """The folders that each folder's modules import from."""
    found: dict[str, set[str]] = {}
    for path in sources():
        here = folder(module_name(path))
        there = {folder(name) for name in imports(path) if name.split(".")[0] in HOUSES}
        found.setdefault(here, set()).update(there - {here})
    return found


def table() -> dict[str, set[str]]:
    """The rows of the table in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)` \| ((?:`[\w/]+`(?:, )?)+|–) \|$", page, re.MULTILINE)
    return {name: set(re.findall(r"`([\w/]+)`", allowed)) for name, allowed in rows}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The names on one cycle; empty without one."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        for other in sorted(graph.get(name, ())):
            if other not in done and (found := walk(other, [*path, name])):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_arrows_match_the_table() -> None:
    found, allowed = arrows(), table()
    assert {name: sorted(to) for name, to in found.items()} == {name: sorted(to) for name, to in allowed.items()}


def test_no_import_cycles() -> None:
    modules = {
        module_name(path): {name for name in imports(path) if name.split(".")[0] in HOUSES} for path in sources()
    }
    assert circle(arrows()) == []
    assert circle(modules) == []


def test_cycles_are_detected() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_packages_point_one_way() -> None:
    below = {"model": {"model"}, "training": {"model", "training"}, "app": set(HOUSES)}
    for name, others in arrows().items():
        assert {other.split("/")[0] for other in others} <= below[name.split("/")[0]], name
    assert arrows()["app/ui"] <= {"app/client", "app/common", "training/spec"}  # the pages use the API over HTTP


def test_app_has_few_arrows() -> None:
    inside = [(name, to) for name, others in arrows().items() for to in others if name[:3] == to[:3] == "app"]
    assert len(inside) <= MAX_ARROWS_IN_APP


def test_imports_are_absolute_and_name_modules() -> None:
    """`model` is a common variable name."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.level)
        or (isinstance(node, ast.Import) and any(alias.name in HOUSES for alias in node.names))
    ]
    assert wrong == []


def test_init_files_contain_only_imports() -> None:
    for path in (path for path in sources() if path.name == "__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, (ast.ImportFrom, ast.Assign, ast.Expr)) for node in body), path


def test_folders_and_files_stay_small() -> None:
    folders: dict[Path, int] = {}
    for house in (*HOUSES, "static", "tests"):
        for path in (ROOT / house).rglob("*"):
            if path.suffix in OURS and not any(part in str(path) for part in VENDORED) and path.name != "__init__.py":
                folders[path.parent] = folders.get(path.parent, 0) + 1
                assert len(path.read_text().splitlines()) <= MAX_LINES, path
    assert {str(path.relative_to(ROOT)): count for path, count in folders.items() if count > MAX_FILES} == {}


def test_light_modules_import_no_torch_or_gradio() -> None:
    """Imports them in turn in one fresh interpreter; names the first one that loads a heavy module."""
    script = (
        "import importlib, json, sys\n"
        "found = {}\n"
        f"for name in {sorted(LIGHT)!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [h for h in {HEAVY!r} if h in sys.modules]\n"
        "    if heavy:\n"
        "        found[name] = heavy\n"
        "        break\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}
