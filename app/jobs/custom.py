"""Rewards and task families of your own: which ones the server knows, and which a job may use. Blocking.

A file is code: anyone who may start a job may run it. Only those in OMNI_R1_REWARDS_DIR are accepted, and none
without that setting. Entry points belong to packages that the operator installed. Nothing is imported here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.contract.problems import field_problem
from training.entry_points import REWARDS, TASKS, installed, package_of
from training.spec.hyperparameters import CustomReward

MAX_FILES = 100  # of the folder that are listed
MAX_BYTES = 1_000_000  # of a file that is listed
SETTING = "OMNI_R1_REWARDS_DIR"


class CustomRules:
    """What one server accepts."""

    def __init__(self, folder: Path | None) -> None:
        """``folder`` holds the files that may be used; None: no files."""
        self._folder = None if folder is None else folder.resolve()

    def checked(self, rewards: Sequence[CustomReward], where: str) -> list[dict[str, Any]]:
        """The rewards as JSON with the absolute paths of their files; 422 for one that may not be used."""
        return [self._checked(one, f"{where}.{k}") for k, one in enumerate(rewards)]

    def _checked(self, one: CustomReward, where: str) -> dict[str, Any]:
        if one.name is not None and one.name not in (known := installed(REWARDS)):
            names = ", ".join(known) or "none"
            raise field_problem("invalid", f"{where}.name", f"no installed package has this reward; installed: {names}")
        if one.file is None:
            return one.model_dump(mode="json")
        return one.model_copy(update={"file": self._file(one.file, f"{where}.file")}).model_dump(mode="json")

    def _file(self, given: str, where: str) -> str:
        if self._folder is None:
            detail = f"rewards from files are off; set {SETTING} to the folder that holds them"
            raise field_problem("path_not_allowed", where, detail)
        name, _, function = given.rpartition(":")
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder):
            raise field_problem("path_not_allowed", where, f"is outside {SETTING}; move the file there")
        if not path.is_file():
            raise field_problem("invalid", where, f"there is no such file in {SETTING}")
        return f"{path}:{function}"

    def family(self, name: str, where: str) -> None:
        """422 unless an installed package has this task family."""
        if name not in (known := installed(TASKS)):
            names = ", ".join(known) or "none"
            raise field_problem("invalid", where, f"no installed package has this task family; installed: {names}")

    def known(self) -> dict[str, Any]:
        """What a job may name: rewards of packages, then functions of the folder's files; task families."""
        named, families = (
            [{"name": name, "package": package_of(point)} for name, point in installed(group).items()]
            for group in (REWARDS, TASKS)
        )
        files = [{"file": file, "description": text} for file, text in self._functions()]
        return {"rewards": [*named, *files], "families": families, "files_allowed": self._folder is not None}

    def _functions(self) -> Iterator[tuple[str, str]]:
        """The public functions of two arguments, with the first lines of their docstrings."""
        if self._folder is None:
            return
        for path in sorted(self._folder.glob("[!_.]*.py"))[:MAX_FILES]:
            try:
                if not path.resolve().is_relative_to(self._folder) or path.stat().st_size > MAX_BYTES:
                    continue
                tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError, RecursionError):
                continue  # a job that names it gets the reason
            for node in tree.body:
                if isinstance(node, ast.FunctionDef) and len(node.args.args) == 2 and not node.name.startswith("_"):
                    yield f"{path.name}:{node.name}", (ast.get_docstring(node) or "").partition("\n")[0]


def use_allowed(spec: Mapping[str, Any], rules: CustomRules, where: str) -> None:
    """Check the rewards of a resolved specification, and make the paths of their files absolute."""
    hyper = spec["hyperparameters"]
    for part, prefix in ((hyper, ""), (hyper.get("perpo"), "perpo.")):
        reward = (part or {}).get("reward")
        if reward and reward.get("custom"):
            given = [CustomReward.model_validate(one) for one in reward["custom"]]
            reward["custom"] = rules.checked(given, f"{where}.{prefix}reward.custom")
