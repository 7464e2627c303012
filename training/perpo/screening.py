"""One screening of a file's prompts before a run: those that the start weights answer always or never teach nothing.

The counts are kept in the run's folder, so that a resumed run trains on the same prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from model.seeds import mixed_seed
from training.jobs.context import JobContext, JobError
from training.perpo.functional import score
from training.perpo.rollout import Prompt, Sampler
from training.scoring.rewards import Scorer, score_all

CACHE = "screened.json"
CHUNK = 32  # prompts sampled between two reports


def screened(
    ctx: JobContext, prompts: Sequence[Prompt], sampler: Sampler, scorer: Scorer, wanted: dict[str, Any], folder: Path
) -> list[int]:
    """Positions of the prompts that some, but not all, of the sampler's trajectories answer right.

    Args:
        ctx: the job.
        prompts: the prompts.
        sampler: of the start weights.
        scorer: decides what is right.
        wanted: what the counts depend on, beside the prompts.
        folder: keeps the counts.

    Raises:
        JobError: ``no_samples``, if none is left.
        JobStopped: a signal arrived; the screening will start again.
    """
    path, trials = folder / CACHE, sampler.group_size
    wanted = {**wanted, "prompts": len(prompts), "trials": trials}
    rights = _known(path, wanted) if ctx.resume else None
    if rights is None:
        rights = _measured(ctx, prompts, sampler, scorer)
        text = json.dumps({"wanted": wanted, "right": rights})
        ctx.disk.replace(path, lambda temporary: temporary.write_text(text, "utf-8"))
    kept = [place for place, right in enumerate(rights) if 0.0 < right < trials]
    always = sum(right >= trials for right in rights)
    ctx.log.log(
        f"screening: {len(kept)} of {len(rights)} prompts are answered right by some of {trials} samples, "
        f"{always} by all and {len(rights) - len(kept) - always} by none"
    )
    if not kept:
        raise JobError("no_samples", f"each prompt is answered right by all or by none of {trials} samples")
    return kept


def _measured(ctx: JobContext, prompts: Sequence[Prompt], sampler: Sampler, scorer: Scorer) -> list[float]:
    rights: list[float] = []
    seed, began = mixed_seed(ctx.spec.seed, "screening"), ctx.clock()
    for first in range(0, len(prompts), CHUNK):
        part = prompts[first : first + CHUNK]
        groups = sampler.sample(part, seed=seed, step=0, first=first, on_finish=lambda _: ctx.check_stop())
        for group in groups:
            scores = score_all(partial(score, scorer, group.prompt, r.token_ids) for r in group.rollouts)
            rights.append(sum(reward.accuracy for reward in scores.rewards if reward is not None))
        left = (ctx.clock() - began) * (len(prompts) - len(rights)) / len(rights)
        ctx.log.progress("screening", len(rights), len(prompts), left)
    return rights


def _known(path: Path, wanted: dict[str, Any]) -> list[float] | None:
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return known["right"] if known["wanted"] == json.loads(json.dumps(wanted)) else None
