"""The arrows of docs/architecture.md, read from the source: who may import whom, and who stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSES = ("app", "model", "training")
BUILDERS = ("app.main", "app.cli.main")  # build the real parts and may import anything, lazily

APP_MAY_IMPORT = {
    "app",
    "model.config",
    "model.engine.client",
    "model.engine.messages",
    "model.engine.narrator",
    "model.images.reader",
    "model.log_lines",
    "model.checkpoint.manifest",
    "model.images.view",
    "model.text.places",
    "model.checkpoint.shards",
    "model.text.template",
    "model.text.tokenizer",
    "model.text.vocab",
    "training.jobs.disk",
    "training.data.traces",
    "training.scoring.grading",
    "training.home_paths",
    "training.jobs.context",
    "training.jobs.folder",
    "app.jobs.watch",
    "app.jobs.runner",
    "training.data.rows",
    "training.skills",
    "training.spec.spec",
    "training.world",
    "app.jobs.process",
}
UI_MAY_IMPORT = {"app.common.build", "app.client", "app.client.types", "app.client.sse", "app.ui", "training.spec.spec"}

# Import without these, so that the server and the command line start at once. Named with ○ in docs/architecture.md.
HEAVY = ("torch", "gradio", "transformers", "pandas", "pyarrow")
LIGHT = {
    "app.storage.images",
    "app.http.auth",
    "app.common.build",
    "app.cli.main",
    "app.client",
    "app.client.types",
    "app.storage.database",
    "app.http.deps",
    "app.storage.dialects",
    "app.contract.problems",
    "app.jobs.service",
    "app.http.login",
    "app.main",
    "app.common.metrics",
    "app.contract.schemas",
    "app.common.settings",
    "app.client.sse",
    "app.traces.service",
    "model.config",
    "model.engine.client",
    "model.engine.messages",
    "model.engine.phases",
    "model.engine.scheduler",
    "model.engine.sequence",
    "model.engine.narrator",
    "model.images.reader",
    "model.log_lines",
    "model.checkpoint.manifest",
    "model.images.view",
    "model.checkpoint.shards",
    "model.text.template",
    "model.text.tokenizer",
    "model.text.vocab",
    "training.data.traces",
    "training.scoring.grading",
    "training.jobs.context",
    "training.jobs.log",
    "app.jobs.runner",
    "training.data.rows",
    "training.skills",
    "training.spec.spec",
    "training.world.checkers",
    "training.world.task",
    "training.world.world",
    "training.jobs.worker",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    return sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py"))


def imports(tree: ast.Module, module: str) -> Iterator[str]:
    """Every module that is imported anywhere in the file, functions and type checking included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:  # `from model import events` imports model.engine.narrator
                whole = f"{source}.{alias.name}"
                yield whole if (ROOT / (whole.replace(".", "/") + ".py")).exists() else source


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def wrong_arrow(importer: str, imported: str) -> bool:
    """Whether `importer` may not import `imported`; both are dotted names, `imported` one of ours."""
    if importer.startswith("model.") or importer == "model":
        return not within(imported, {"model"})
    if importer.startswith("training.") or importer == "training":
        return not within(imported, {"model", "training"})
    if importer in BUILDERS or importer.startswith("app.cli_"):
        return False
    if importer.startswith("app.ui"):
        return not within(imported, UI_MAY_IMPORT)
    return not within(imported, APP_MAY_IMPORT)


def test_no_import_points_the_other_way() -> None:
    wrong = [
        f"{module} imports {imported}"
        for path in sources()
        for module in [module_name(path)]
        for imported in imports(ast.parse(path.read_text()), module)
        if imported.split(".")[0] in HOUSES and wrong_arrow(module, imported)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("model.nets.vq", "training.pesft.losses"),
        ("model.nets.vq", "app.common.settings"),
        ("training.jobs.loop", "app.storage.database"),
        ("app.traces.service", "model.nets.transformer"),
        ("app.traces.service", "training.jobs.loop"),
        ("app.ui.studio", "app.traces.service"),
        ("app.ui.studio", "model.engine.narrator"),
    ],
)
def test_the_rule_knows_a_wrong_arrow(importer: str, imported: str) -> None:
    assert wrong_arrow(importer, imported)


def test_nobody_imports_a_bare_house() -> None:
    """`model` is the name that everyone gives a variable."""
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(alias.name in HOUSES for alias in node.names)
    ]
    assert bare == []


def test_init_files_are_empty() -> None:
    assert [str(path) for path in sources() if path.name == "__init__.py" and path.read_text().strip()] == []


def test_light_modules_import_without_torch_and_gradio() -> None:
    """Each in turn in one fresh interpreter; the first module after which something heavy is loaded is named."""
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
