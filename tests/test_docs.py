"""README and docs/ match the code: commands, targets, routes, settings, events, links."""

from __future__ import annotations

import ast
import json
import re
import shlex
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from app.cli.main import build_parser
from app.cli.specs import build_spec
from app.common.settings import PREFIX, Settings
from app.contract.events import TRACE_EVENTS
from app.contract.events_jobs import JOB_EVENTS
from training.spec.spec import METHODS, parse_spec
from training.world.canvas import COLOUR_NAMES, SHAPES
from training.world.world import EVAL_SEED_MIN, FAMILIES, SLICES, make_task

ROOT = Path(__file__).parents[1]
TOP = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").glob("*.md"))]
MAX_LINE = 120
EVENTS = {*TRACE_EVENTS, *JOB_EVENTS}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def shell_lines() -> list[tuple[str, str]]:
    """Every command in a shell block, with continued lines joined, and its page."""
    return [
        (page.name, line.strip())
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


def words(line: str) -> list[str]:
    """The command's words without comments and leading assignments."""
    found = shlex.split(line, comments=True)
    while found and re.fullmatch(r"[A-Z0-9_]+=.*", found[0]):
        assert found.pop(0).split("=")[0] in known_variables()
    return found


def known_variables() -> set[str]:
    return {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | {
        "OMNI_R1_URL",
        "OMNI_R1_REQUIRE_BROWSER",
        "OMNI_R1_REQUIRE_GENERATORS",
        "OMNI_R1_REQUIRE_POSTGRES",
        "PORT",
        "RAY_ADDRESS",
        "PYTHON",
        "TORCH_INDEX",
    }


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words(line)[1] for _, line in shell_lines() if words(line)[0] == "make"}
    named |= {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert named
    assert named <= targets


def test_shown_command_lines_parse() -> None:
    shown = [words(line)[1:] for _, line in shell_lines() if words(line)[0].endswith("omni-r1")]
    assert shown
    for argv in shown:
        build_parser().parse_args(argv)


def test_shown_training_commands_make_valid_specs() -> None:
    shown = [words(line)[1:] for _, line in shell_lines() if " train " in line and " nano " not in line]
    for argv in shown:
        parse_spec(build_spec(build_parser().parse_args(argv)))
    assert {argv[1] for argv in shown} >= {"pesft", "perpo", "zero", "benchmark"}


def pattern(question: str) -> str:
    """A question without its colours, shapes, numbers and directions, to match others of its kind."""
    colours = (*COLOUR_NAMES, "black", "grey", "white")
    for letter, names in (("C", colours), ("S", SHAPES), ("D", ("up", "down", "left", "right"))):
        question = re.sub(rf"\b({'|'.join(names)})(es|s)?\b", letter, question)
    return re.sub(r"D((, D)* and D|(, D)+)?", "D", re.sub(r"\d+", "N", question))


def example_questions() -> set[str]:
    """The questions of shell and Python blocks, except those that need a 7B model."""
    asked = {build_parser().parse_args(words(line)[1:]).question for _, line in shell_lines() if " ask " in line}
    for page in PAGES:
        for block in (one for language in ("bash", "sh", "python") for one in blocks(page, language)):
            if "7B" not in block and re.search(r"/v1/traces|create_trace|/v1/limits", block):
                asked |= set(re.findall(r'(?:"question": |create_trace\()"([^"]+)"', block))
    return asked


def test_example_questions_belong_to_the_world() -> None:
    seeds = range(EVAL_SEED_MIN, EVAL_SEED_MIN + 150)
    kinds = [(slice_, family) for slice_, families in FAMILIES.items() for family in families]
    known = {pattern(make_task(slice_, seed, family=family).question) for slice_, family in kinds for seed in seeds}
    table = re.findall(r"^\|[^|]*\|[^|]*\| ([^|]+[?.]) \|", (ROOT / "docs" / "world.md").read_text(), re.MULTILINE)
    assert len(table) == len(kinds)
    shown = example_questions()
    assert len(shown) >= 1
    assert [question for question in (*shown, *table) if pattern(question) not in known] == []


def test_other_shown_commands_are_known() -> None:
    programs = {words(line)[0] for _, line in shell_lines()}
    ours = {"make", ".venv/bin/omni-r1", ".venv/bin/python"}
    backup = {"mkdir", "pg_dump", "pg_restore", "rsync", "sqlite3", "tar"}
    assert programs <= ours | backup | {"curl", "docker", "git", "kubectl", "ssh"}


def test_shown_python_is_valid() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            tree = ast.parse(block)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    scope: dict[str, object] = {}
                    exec(ast.unparse(node), scope)


def test_shown_json_is_valid() -> None:
    for page in PAGES:
        for block in blocks(page, "json"):
            json.loads(block)


def test_links_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if not target.startswith(("http://", "https://", "#"))
        if not (page.parent / target.split("#")[0]).exists()
    ]
    assert broken == []


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    documented = set(re.findall(r"^\| `(OMNI_R1_[A-Z_]+)`", page, re.MULTILINE))
    assert documented == {name for name in known_variables() if name.startswith(PREFIX)}


def test_named_variables_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"OMNI_R1_[A-Z_]*[A-Z]", page.read_text())}
    assert named <= known_variables()


def test_every_event_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(event for event in EVENTS if f"`{event}" not in page) == []


def test_every_route_is_documented() -> None:
    from app.http.routes.api import ROUTES

    served = {
        (method, route.path.replace(":path}", "}")) for route in ROUTES for method in route.methods if method != "HEAD"
    }
    page = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"`(GET|POST|PATCH|DELETE) (/[^`?\s]*)", page))
    assert served
    assert {f"{method} {path}" for method, path in served - documented} == set()
    assert {f"{method} {path}" for method, path in documented - served} <= {"GET /docs", "GET /openapi.json", "GET /"}


def test_every_warning_of_a_job_is_explained_and_the_pages_say_the_same() -> None:
    source = "".join(path.read_text() for path in (ROOT / "training").rglob("*.py"))
    sent = set(re.findall(r'(?:log\.warning|\badd|_warn)\(\s*"([a-z_]+)"', source))
    sent |= set(re.findall(r'"warning", \{"code": "([a-z_]+)"', source)) | {"copied_pictures", "capped_pictures"}
    sent.add("checkpoint_exists")  # sent by the server when it registers a checkpoint
    script = (ROOT / "static" / "training" / "words.js").read_text()
    entry = r"^  (\w+): \{\n    title: '.*',\n    means:\s+'(.*)',\n    todo:\s+'(.*)',$"
    shown = re.findall(entry, script, re.MULTILINE)
    page = (ROOT / "docs" / "training-page.md").read_text()
    assert {code for code, _, _ in shown} == sent
    assert re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", page, re.MULTILINE) == shown


def test_shown_jobs_are_accepted() -> None:
    shown = [json.loads(block) for page in PAGES for block in blocks(page, "json")]
    jobs = [spec for spec in shown if "method" in spec]
    assert {spec["method"] for spec in jobs} == set(METHODS)
    for spec in jobs:
        parse_spec(spec)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_finished(page: Path) -> None:
    assert not re.search(r"TODO|FIXME|TBD|lorem", page.read_text(), re.IGNORECASE)


def test_every_invariant_has_its_named_tests() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## What must stay true")[2]
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", text, re.MULTILINE)
    named = {(number, file) for number, files in rows for file in re.findall(r"`([^`]+)`", files)}
    assert sorted({int(number) for number, _ in named}) == list(range(1, 16))
    written = {
        (number, str(path.relative_to(ROOT)))
        for path in (ROOT / "tests").rglob("test_*.py")
        for number in re.findall(r"^(?:async )?def test_invariant_(\d+)_", path.read_text(), re.MULTILINE)
    }
    assert named == written


def test_shown_questions_belong_to_the_world() -> None:
    """They are meant to be tried on the embedded model."""
    asked = {make_task(slice_, seed).question for slice_ in SLICES for seed in range(10**9, 10**9 + 300)}
    shown = set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        shown |= set(re.findall(r'omni-r1 ask \S+ "([^"]+)"', text))
        shown |= {q for q in re.findall(r'"question": "([^"]+)"', text) if "<image" not in q}
        shown |= set(re.findall(r'create_trace\("([^"]+)"', text))
    assert shown
    assert shown <= asked


def test_twelve_steps_name_existing_functions() -> None:
    text = (ROOT / "docs" / "trace-in-twelve-steps.md").read_text()
    steps = re.findall(r"^## (\d+)\. [^\n]*\n\n(.*?)(?=^## |^---$)", text, re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in steps] == list(range(1, 13))
    for number, body in steps:
        names = re.findall(r"`([\w.]+):([\w.]+)`", body)
        assert len(names) == 1, f"step {number} names {names}"
        module, qualname = names[0]
        assert callable(reduce(getattr, qualname.split("."), import_module(module)))


def test_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\(([\w-]+\.md)\)", index))


def test_readme_numbers_come_from_results() -> None:
    """Every accuracy and difference in the README's table stands in docs/results.md."""
    rows = re.findall(r"^\|[^|]+\| [\d,]+ \|(.*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    results = re.sub(r"\b0(?=\.\d)", "", (ROOT / "docs" / "results.md").read_text()).replace("\u2212", "-")
    numbers = [number.replace("\u2212", "-") for row in rows for number in re.findall(r"[+\u2212]?\.\d{3}", row)]
    assert len(numbers) >= 5
    assert [number for number in numbers if number not in results] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_at_most_120_characters(page: Path) -> None:
    long = [
        number
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > MAX_LINE and not line.lstrip().startswith("|") and "://" not in line
    ]
    assert long == []


def test_ci_runs_the_script_that_people_run() -> None:
    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in steps
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+) </dev/null", (ROOT / ".ci" / "run").read_text())) <= targets


def test_citation_names_the_released_version() -> None:
    import tomllib

    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert "arXiv:2601.09536" in str(citation["references"])


def test_named_files_exist() -> None:
    named = {
        (page.name, path)
        for page in PAGES
        if page.name != "lab-log.md"
        for path in re.findall(r"`((?:app|model|training|static|tests|containers|docs)/[\w./-]+)`", page.read_text())
    }
    assert [(page, path) for page, path in sorted(named) if "NAME" not in path and not (ROOT / path).exists()] == []


def test_named_modules_exist() -> None:
    named = {
        (page.name, module)
        for page in PAGES
        if page.name != "lab-log.md"
        for module in re.findall(r"python -m ((?:app|model|training|tests)[\w.]*)", page.read_text())
    }
    assert [(page, module) for page, module in sorted(named) if find_spec(module) is None] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_headings_exist() -> None:
    links = [
        (page, *target.split("#"))
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s:]*#[^)\s]+)\)", page.read_text())
    ]
    assert links
    missing = [
        f"{page.name}: {path}#{anchor}"
        for page, path, anchor in links
        if anchor not in anchors((page.parent / path) if path else page)
    ]
    assert missing == []


def test_readme_seed_gives_the_question_it_shows() -> None:
    text = (ROOT / "README.md").read_text()
    (slice_, seed), (question,) = (
        re.findall(r"slice=(\w+)&seed=(\d+)", text)[0],
        re.findall(r'"question": "([^"]+)"', text),
    )
    assert make_task(slice_, int(seed)).question == question
