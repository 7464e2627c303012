r"""Turns a job's checkpoint into a release: name, lineage, results, model card.

    python -m training.nano.release JOB/checkpoints/x-step-60 model/nano/nano-omni-r1 --before runs/nano/pesft \
        --evaluation results/summary.json --notes notes.md

Weights and tokenizer stay byte-identical; the training state (``train/``) is dropped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.atomic import replace_folder, staging_folder
from model.checkpoint.checkpoint import validate_checkpoint
from model.checkpoint.manifest import FILE, Manifest
from model.checkpoint.shards import CheckpointError
from training.benchmark.report import flat_metrics
from training.world.world import SLICES

ARCHITECTURE = """\
Same architecture, order of token ids, templates and file layout as the 7B Chameleon family: a transformer of
{millions:.1f} M parameters ({hidden_size} wide, {num_hidden_layers} layers, {num_attention_heads} query and
{num_key_value_heads} key/value heads) and a VQ tokenizer ({resolution} x {resolution} pixels, {num_embeddings} codes).
Loads with transformers' `ChameleonForConditionalGeneration`, which reads its images and cannot draw."""


def release(
    source: Path,
    destination: Path,
    *,
    name: str | None = None,
    before: Sequence[Path] = (),
    evaluation: Mapping[str, Any] | None = None,
    description: str | None = None,
    notes: str = "",
) -> Manifest:
    """Write the released checkpoint; an existing ``destination`` is replaced once the new one is complete.

    Args:
        source: a complete checkpoint.
        destination: the target folder.
        name: defaults to the destination's name.
        before: checkpoints between the released base and this one, newest first; their lineage is included, and the
            oldest one's base becomes this one's.
        evaluation: ``summary.json`` of ``omni-r1 evaluate``; its numbers go to metrics, lineage and card.
        description: replaces the source's.
        notes: markdown below the card's results: data, known failures.

    Raises:
        CheckpointError: the source or the result is not a valid checkpoint.
    """
    manifest = validate_checkpoint(source)
    stages = [_portable(m.lineage) for m in (manifest, *(Manifest.read(folder) for folder in before))]
    results = None if evaluation is None else evaluation["results"]
    lineage = dict(stages[0])
    if len(stages) > 1:
        lineage["before"] = stages[1:]
    if evaluation is not None:
        lineage["evaluation"] = _numbers(evaluation)
    released = replace(
        manifest,
        name=name or destination.name,
        base=Manifest.read(before[-1]).base if before else manifest.base,
        description=description or manifest.description,
        lineage=lineage,
        extra={**manifest.extra, "metrics": flat_metrics(results)} if results else manifest.extra,
    )
    with staging_folder(destination) as staging:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in (FILE, "README.md"):
                shutil.copyfile(path, staging / path.name)
        (staging / "README.md").write_text(card(released, stages, results, _sizes(source), notes), "utf-8")
        written = released.write(staging)
        validate_checkpoint(staging)
        replace_folder(staging, destination)
    return written


def card(
    manifest: Manifest,
    stages: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any] | None,
    sizes: Mapping[str, Any],
    notes: str,
) -> str:
    """The model card: description, lineage, results.

    Args:
        manifest: of the released checkpoint.
        stages: lineages, the newest first.
        results: by slice, of an evaluation.
        sizes: numbers of the architecture.
        notes: markdown at the end.
    """
    base = f"Trained from `{manifest.base}`:" if manifest.base else "Trained:"
    parts = [f"# {manifest.name}", manifest.description, ARCHITECTURE.format(**sizes), base]
    parts.append("\n".join(f"- {_stage_line(stage)}" for stage in reversed(stages)))
    if results is not None:
        parts.append(_result_lines(results))
    parts.append(f"Licence: {manifest.licence}. Everything else is in `manifest.json`, under `lineage`.")
    if notes:
        parts.append(notes.strip())
    if manifest.card_notes:
        parts.append(manifest.card_notes)
    return "\n\n".join(part for part in parts if part) + "\n"


def _stage_line(lineage: Mapping[str, Any]) -> str:
    """One stage in a sentence: name, steps, data, seed, commit, versions."""
    spec, recipe = lineage.get("spec", {}), lineage.get("recipe", {})
    said = [f"stage `{lineage.get('stage', 'unknown')}`"]
    if "step" in lineage:
        said.append(f"{lineage['step']} steps")
    data = lineage.get("data") or {}
    if "sequences" in data:
        said.append(f"{data['sequences']:,} sequences of {data['tokens']:,} tokens")
    seed = spec.get("seed", recipe.get("seed"))
    if seed is not None:
        said.append(f"seed {seed}")
    said += [f"{key} {str(lineage[key])[:12]}" for key in ("commit", "python", "torch", "device") if lineage.get(key)]
    return ", ".join(said)


def _result_lines(results: Mapping[str, Any]) -> str:
    whole = results["all"]
    low, high = whole["accuracy_ci95"]
    slices = ", ".join(f"{name} {results[name]['accuracy']:.3f}" for name in SLICES if name in results)
    drawings = f"drawings right {whole['drawings_right']:.3f}"
    broken = f"malformed {whole['malformed']:.4f}, blank {whole['blank']:.4f}"
    accuracy = f"accuracy {whole['accuracy']:.3f} (95 % interval {low:.3f} - {high:.3f}; {slices})"
    return f"Held out ({whole['tasks']:,} tasks, greedy): {accuracy}, {drawings}, {broken}."


def _numbers(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a summary for the lineage: settings, overall and per-slice results."""
    kept = {key: evaluation[key] for key in ("level", "first_seed", "text_only") if key in evaluation}
    return {**kept, "results": {k: v for k, v in evaluation["results"].items() if k == "all" or k in SLICES}}


def _portable(value: Any) -> Any:
    """A lineage without local paths: of an absolute path only the name is kept."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _sizes(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    shards = {file for name, file in index["weight_map"].items() if not name.startswith("model.vqmodel.")}
    stored = sum((folder / file).stat().st_size for file in shards)
    return {**config, **config["vq_config"], "millions": stored / 2 / 1e6}  # bf16


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.nano.release", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--before", type=Path, action="append", default=[], help="a checkpoint in between; repeatable")
    parser.add_argument("--evaluation", type=Path, help="summary.json of omni-r1 evaluate")
    parser.add_argument("--description")
    parser.add_argument("--notes", type=Path, help="markdown for the card")
    given = parser.parse_args(argv)
    try:
        manifest = release(
            given.source,
            given.destination,
            name=given.name,
            before=given.before,
            evaluation=None if given.evaluation is None else json.loads(given.evaluation.read_text("utf-8")),
            description=given.description,
            notes="" if given.notes is None else given.notes.read_text("utf-8"),
        )
    except (CheckpointError, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{manifest.name}: {given.destination}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
