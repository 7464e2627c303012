"""Numbers and tables of the oracle study (`oracle_gain.py`), from its rows alone.

Several branches belong to one task. Their shares are ratios over the tasks, and intervals come from resampling tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from training.benchmark.stats import Part, paired, rank_correlation, ratio, ratio_difference, wilson

Rows = list[list[Any]]  # the branches of each task


class OwnRow(Protocol):
    """What is needed of a model's own response."""

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        ...

    @property
    def drawings_right(self) -> bool:
        """Whether all its drawings are right, and none is missing."""
        ...


class OracleRow(Protocol):
    """What is needed of a response with reference images."""

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        ...

    @property
    def kept(self) -> int:
        """Own images in it."""
        ...


class BranchRow(Protocol):
    """What is needed of a branch."""

    task: int
    last: bool
    kind: str


def summarize(
    families: Sequence[str], own: Sequence[OwnRow], branches: Sequence[Any], oracles: Sequence[OracleRow]
) -> dict[str, Any]:
    """Shares with 95 % intervals, over all tasks, by slice and by family.

    Args:
        families: of the tasks, as "slice/family".
        own: the model's own responses.
        branches: `oracle_gain.Branch`, of any task.
        oracles: the responses with reference images.

    Returns:
        `groups`: for "all", each slice and each family the accuracies, the oracle gain, and the effects of each
        replacement, at any image (`replaced`) and at the last one (`replaced_last`); `by_drawings`: the oracle gain of
        the tasks whose own drawings are all right, and of the others; `kept_images`: own images in the oracle
        condition.
    """
    of_task: Rows = [[] for _ in families]
    for one in branches:
        of_task[one.task].append(one)
    slices = [family.partition("/")[0] for family in families]
    groups = {}
    for name in ("all", *dict.fromkeys(slices), *sorted(set(families))):
        labels = enumerate(zip(slices, families, strict=True))
        chosen = [number for number, found in labels if name in ("all", *found)]
        rows, right = [of_task[number] for number in chosen], [own[number].right for number in chosen]
        groups[name] = {
            **_gain([own[n] for n in chosen], [oracles[n] for n in chosen]),
            "replaced": _kinds(rows, right, lambda _: True),
            "replaced_last": _kinds(rows, right, lambda branch: branch.last),
        }
    by_drawings = {}
    for name, wanted in (("all right", True), ("not all right", False)):
        chosen = [number for number, one in enumerate(own) if one.drawings_right is wanted]
        if chosen:
            by_drawings[name] = _gain([own[n] for n in chosen], [oracles[n] for n in chosen])
    return {"groups": groups, "by_drawings": by_drawings, "kept_images": sum(one.kept for one in oracles)}


def _gain(own: Sequence[OwnRow], oracles: Sequence[OracleRow]) -> dict[str, Any]:
    first, second = [one.right for one in own], [one.right for one in oracles]
    return {
        "tasks": len(first),
        "as_it_is": _share(first),
        "with_reference": _share(second),
        "oracle_gain": paired(first, second),
    }


def _share(right: Sequence[bool]) -> list[float]:
    return [round(value, 4) for value in (sum(right) / len(right), *wilson(sum(right), len(right)))]


def _kinds(rows: Rows, right: Sequence[bool], chosen: Callable[[Any], bool]) -> dict[str, Any]:
    kinds = dict.fromkeys(branch.kind for branches in rows for branch in branches)
    out = {}
    for kind in kinds:
        found = [[b for b in branches if b.kind == kind and chosen(b)] for branches in rows]
        own = [
            (float(is_right * len(branches)), float(len(branches)))
            for is_right, branches in zip(right, found, strict=True)
        ]
        after = _parts(found, lambda b: b.right)
        telling = [[b for b in branches if b.follows is not None] for branches in found]
        out[kind] = {
            "branches": sum(map(len, found)),
            "codes_replaced": _interval(_parts(found, lambda b: b.replaced)),
            "changed": _interval(_parts(found, lambda b: b.changed)),
            "accuracy": _interval(after),
            "as_it_is": _interval(own),
            "difference": _rounded(ratio_difference(own, after)),
            "follows": _interval(_parts(telling, lambda b: b.follows)),
            "reliance": _reliance(found),
        }
    return out


def _reliance(rows: Rows) -> dict[str, Any]:
    """How the reliance on an image goes with what replacing it changed; None where nothing can be said."""
    known = [[b for b in branches if b.reliance is not None] for branches in rows]
    pairs = [[(b.reliance, float(b.changed)) for b in branches] for branches in known]
    later = [[(b.reliance_later, float(b.changed)) for b in branches] for branches in known]
    return {
        "correlation": _rounded(rank_correlation(pairs)),
        "correlation_later": _rounded(rank_correlation(later)),
        "changed": _interval(_parts([[b for b in some if b.changed] for some in known], lambda b: b.reliance)),
        "same": _interval(_parts([[b for b in some if not b.changed] for some in known], lambda b: b.reliance)),
    }


def _parts(rows: Rows, value: Callable[[Any], float]) -> list[Part]:
    return [(float(sum(value(branch) for branch in branches)), float(len(branches))) for branches in rows]


def _interval(parts: Sequence[Part]) -> list[float] | None:
    return _rounded(ratio(parts))


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(value, 4) for value in values]


def tables(result: dict[str, Any]) -> str:
    """The study in Markdown; brackets hold 95 % intervals."""
    groups = {name: row for name, row in result["groups"].items() if "/" not in name}
    families = {name: row for name, row in result["groups"].items() if "/" in name}
    lines = ["| tasks | n | as it is | with reference images | oracle gain |", "|---|---|---|---|---|"]
    rows = {**groups, **{f"own drawings {name}": row for name, row in result["by_drawings"].items()}}
    for name, row in rows.items():
        gain = row["oracle_gain"]
        cells = [shown(row["as_it_is"]), shown(row["with_reference"])]
        cells.append(shown([gain["difference"], *gain["difference_ci95"]], sign=True))
        lines.append(f"| {name} | {row['tasks']} | {' | '.join(cells)} |")
    for scope, title in (("replaced", "any image"), ("replaced_last", "the last image")):
        lines += ["", *_effects(groups["all"][scope], title)]
        for key, measure in (("changed", "answers changed"), ("accuracy", "accuracy")):
            lines += ["", *_by_group(groups, scope, key, f"{title}, {measure}")]
    lines += ["", *_by_group(families, "replaced_last", "accuracy", "the last image, accuracy")]
    lines += ["", "| gives the other task's answer | any image | the last image |", "|---|---|---|"]
    for name, row in groups.items():
        cells = [shown(row[scope].get("other task", {}).get("follows")) for scope in ("replaced", "replaced_last")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    kinds = [kind for kind in groups["all"]["replaced"] if kind != "itself"]
    for scope, key, title in (
        ("replaced", "correlation", "any image: answer's reliance and change"),
        ("replaced", "correlation_later", "any image: reliance of all that follows, and change"),
        ("replaced_last", "correlation", "the last image: answer's reliance and change"),
    ):
        lines += ["", f"| correlation, {title} | {' | '.join(kinds)} |", "|" + "---|" * (len(kinds) + 1)]
        for name, row in groups.items():
            found = [row[scope].get(kind, {}).get("reliance", {}).get(key) for kind in kinds]
            lines.append(f"| {name} | {' | '.join(shown(one, sign=True) for one in found)} |")
    lines += ["", "| mean reliance (nats) on the last image | answer changes | stays |", "|---|---|---|"]
    for kind in kinds:
        one = groups["all"]["replaced_last"][kind]["reliance"]
        lines.append(f"| replaced by {kind} | {shown(one['changed'])} | {shown(one['same'])} |")
    check = result["kept_steps"]
    margins = ", ".join(f"{found['margin']:.1e}" for found in check["differing"]) or "none"
    lines += [
        "",
        f"Unedited: {check['reproduced']} of {check['traces']} traces reproduced ({check['branches']} branches), "
        f"margins of the others: {margins}.",
        f"Own images in the oracle condition: {result['kept_images']}. {result['seconds']} s.",
    ]
    return "\n".join(lines)


def _effects(kinds: dict[str, Any], title: str) -> list[str]:
    lines = [f"| {title}, replaced by | branches | codes replaced | answers changed | accuracy | difference |"]
    lines.append("|---|---|---|---|---|---|")
    for kind, found in kinds.items():
        share = "–" if found["codes_replaced"] is None else f"{found['codes_replaced'][0]:.2f}"
        cells = [shown(found["changed"]), shown(found["accuracy"]), shown(found["difference"], sign=True)]
        lines.append(f"| {kind} | {found['branches']} | {share} | {' | '.join(cells)} |")
    return lines


def _by_group(groups: dict[str, Any], scope: str, key: str, title: str) -> list[str]:
    kinds = [kind for kind in dict.fromkeys(k for row in groups.values() for k in row[scope]) if kind != "itself"]
    lines = [f"| {title} | {' | '.join(('as it is', *kinds)) if key == 'accuracy' else ' | '.join(kinds)} |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for name, row in groups.items():
        found = row[scope]
        cells = [shown(found.get(kind, {}).get(key)) for kind in kinds]
        if key == "accuracy":
            cells = [shown(found.get("itself", {}).get("as_it_is")), *cells]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def shown(values: Sequence[float] | None, *, sign: bool = False) -> str:
    """A share with its interval; a dash for None."""
    if values is None:
        return "–"
    plus = "+" if sign else ""
    return f"{values[0]:{plus}.3f} ({values[1]:{plus}.3f} … {values[2]:{plus}.3f})"
