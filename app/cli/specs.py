"""Specifications of jobs from options, presets, and files in JSON or YAML."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import yaml

from app.cli.terminal import EXIT_BAD_INPUT, CommandError
from training.spec.spec import PRESETS

# Base checkpoints of methods without their own preset, unless --base is given.
BASES = {"zero": "nano-base", "benchmark": "nano-omni-r1"}
ZERO = PRESETS["nano-zero"]
MOST_BYTES = 1_000_000  # of a file
DEEPEST = 32  # level of a file


def build_spec(args: Namespace) -> dict[str, Any]:
    """Builds the spec from the arguments: a preset or --spec, overridden by single options."""
    spec = read_spec(args.spec) if args.spec else _preset(args.method, args.preset)
    if spec.setdefault("method", args.method) != args.method:
        raise bad(f"the spec is for {spec['method']!r}: omni-r1 train {spec['method']}")
    direct = {"base_checkpoint": args.base, "seed": args.seed, "output_name": args.output_name, "gpu": args.gpu}
    spec |= {name: value for name, value in direct.items() if value is not None}
    if args.activate:
        spec["activate"] = True
    change(spec, args.set)
    return spec


def change(spec: dict[str, Any], changes: Sequence[str]) -> None:
    """Applies NAME=VALUE of --set."""
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise bad(f"--set expects NAME=VALUE, e.g. hyperparameters.steps=40, not {change!r}")
        _put(spec, name.split("."), _value(text))


def _preset(method: str, name: str | None) -> dict[str, Any]:
    if name is None:
        name = next((p.name for p in PRESETS.values() if p.card and p.spec["method"] == method), None)
        if name is None:
            spec = {"base_checkpoint": BASES.get(method, "nano-base"), "data": {"source": "unitasks"}}
            # Zero alone starts as in the pipeline.
            return spec | ({"hyperparameters": dict(ZERO.spec["hyperparameters"]["zero"])} if method == "zero" else {})
    if name not in PRESETS:
        raise bad(f"unknown preset {name!r}; presets: {', '.join(PRESETS)}")
    found: dict[str, Any] = json.loads(json.dumps(PRESETS[name].spec))
    return found


def read_spec(given: str) -> dict[str, Any]:
    """An object in JSON or YAML: the text itself if it begins with a brace, a file, or - for stdin."""
    text = given
    if given == "-":
        text = sys.stdin.read()
    elif not given.lstrip().startswith("{"):
        try:
            text = Path(given).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise bad(f"cannot read {given}: {getattr(error, 'strerror', None) or error}") from None
    if len(text.encode(errors="replace")) > MOST_BYTES:
        raise bad(f"the spec has more than {MOST_BYTES:,} bytes")
    try:
        spec = json.loads(text) if text.lstrip().startswith("{") else _yaml(text)
    except ValueError as error:
        raise bad(f"the spec is not valid JSON: {error}") from None
    except yaml.YAMLError as error:
        raise bad(f"the spec is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(spec, dict):
        raise bad("the spec must be an object")
    return spec


def _yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_SpecLoader):
        mark = event.start_mark
        if getattr(event, "anchor", None) is not None:  # a few could stand for gigabytes
            raise yaml.MarkedYAMLError("anchors and aliases are not allowed", mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError("tags are not allowed", mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.MarkedYAMLError(f"more than {DEEPEST} levels", mark)
    return yaml.load(text, Loader=_SpecLoader)


class _SpecLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with the scalars of JSON: PyYAML's own loaders read 1e-4 as a text, `no` as false, and dates."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys are different texts."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                raise yaml.MarkedYAMLError("a key must be a text that occurs once", key.start_mark)
            seen.add(key.value)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return {str(key): value for key, value in found.items()}


for _tag, _pattern, _first in (
    ("null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("bool", r"^(?:true|false)$", ["t", "f"]),
    ("int", r"^-?(?:0|[1-9][0-9]*)$", list("-0123456789")),
    ("float", r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?$", list("-0123456789")),
):
    _SpecLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _value(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    return text


def _put(spec: dict[str, Any], names: list[str], value: Any) -> None:
    at = spec
    for name in names[:-1]:
        inner = at.get(name)
        if not isinstance(inner, dict):
            inner = at[name] = {}
        at = inner
    at[names[-1]] = value


def bad(detail: str) -> CommandError:
    """The error of unusable input."""
    return CommandError(detail, EXIT_BAD_INPUT)
