"""How much of PeRPO's gradient is signal: do two sets of groups, sampled alike, ask for the same change?

Groups are sampled and scored as a PeRPO job does, from one checkpoint whose weights stay as they are. Every chunk of
groups gives one gradient for each credit: the answers' (trajectory) and the step verdicts' (step), over all codes or
over the changed ones. The clipped term at ratio 1 is linear in the advantages, so the gradient with `credit: step` is
the answers' plus delta times the verdicts', for every delta at once.

Two random halves of the chunks are compared by the cosine of their gradients, and by how many groups a half needs for
a cosine of one half. KL, entropy and weight decay are left out: they are zero at the reference, or no signal.

    python -m training.studies.gradients nano-omni-r1 --groups 128 --out results/gradients.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.checkpoint.atomic import write_file
from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import CheckpointError, resolve
from model.engine.phases import LegalIds
from training.jobs.context import JobError
from training.perpo.batch import micro_batches, policy_logprobs
from training.perpo.collect import Collector
from training.perpo.credit import is_informative, set_credit
from training.perpo.loading import make_sampler
from training.perpo.losses import clipped_loss
from training.perpo.prompts import PromptOrder, WorldPrompts
from training.perpo.rollout import RolloutGroup
from training.scoring.rewards import Scorer
from training.spec.hyperparameters import PeRPOHyperparameters
from training.spec.spec import UniTasksData
from training.world.world import parse_level

DELTAS = (0.0, 0.5, 1.0, 2.0, 4.0)
PARTS = ("answers", "verdicts", "answers changed", "verdicts changed")


@dataclass(frozen=True)
class Gradients:
    """Inner products of the gradients of C chunks of groups.

    Attributes:
        products: [P, C, P, C], P the parts in the order of `PARTS`, each gradient the mean over its chunk's groups.
        groups_a_chunk: groups in a chunk.
        accuracy: sampled, of all trajectories.
        informative: share of the groups whose answers differ.
        informative_any: share of those whose answers or some verdicts differ.
    """

    products: Tensor
    groups_a_chunk: int
    accuracy: float
    informative: float
    informative_any: float

    def of(self, weights: Sequence[float]) -> Tensor:
        """The products [C, C] of the parts' weighted sum."""
        factors = torch.tensor(weights, dtype=self.products.dtype)
        return torch.einsum("p,pcqd,q->cd", factors, self.products, factors)


def measure(
    loaded: LoadedCheckpoint, data: UniTasksData, hp: PeRPOHyperparameters, *, chunks: int, seed: int = 0
) -> Gradients:
    """Sample `chunks` times `hp.prompts_per_step` groups and take every part's gradient.

    Raises:
        ValueError: the checkpoint has no VQ, or its gradients are not finite.
        JobError: scoring fails, or a prompt leaves no room.
    """
    if loaded.vq is None:
        raise ValueError(f"{loaded.name} has no VQ: it cannot read images")
    hp = hp.model_copy(update={"filter_metric": "none", "oversampling": 1.0, "credit": "step"})
    prompts = WorldPrompts(data, seed, loaded.template, loaded.vq)
    scorer = Scorer(loaded.template, loaded.vq.codebook, loaded.manifest.perception, hp.reward)
    sampler, order = make_sampler(loaded, prompts, hp), PromptOrder(len(prompts), seed)
    collector = Collector(sampler, scorer, loaded.vq, prompts, order, hp, seed)
    found: list[list[Tensor]] = [[] for _ in PARTS]
    seen: list[RolloutGroup] = []
    cursor = 0
    for step in tqdm(range(chunks), desc="gradients", mininterval=5, disable=None):
        batch = collector.collect(step, cursor)
        cursor += batch.num_prompts
        if prompts.difficulty is not None:
            prompts.difficulty.learn(batch.seen)
        for part, gradient in enumerate(part_gradients(loaded, batch.kept, hp)):
            found[part].append(gradient)
        seen += batch.kept
    flat = torch.stack([gradient for of_part in found for gradient in of_part])
    products = (flat @ flat.T).double().view(len(PARTS), chunks, len(PARTS), chunks)
    if not bool(products.isfinite().all()):
        raise ValueError("a gradient is not finite")
    scores = [r.reward.accuracy for group in seen for r in group.rollouts if r.reward is not None]
    return Gradients(
        products,
        hp.prompts_per_step,
        fmean(scores),
        fmean(is_informative(group, "accuracy") for group in seen),
        fmean(is_informative(group, "any") for group in seen),
    )


def part_gradients(
    loaded: LoadedCheckpoint, groups: Sequence[RolloutGroup], hp: PeRPOHyperparameters
) -> tuple[Tensor, ...]:
    """The gradients [parameters] of the groups' mean objective, one for each of `PARTS`.

    They are those of the first mini-batch, where every ratio is 1; `hp.credit` must be ``step``.
    """
    return tuple(
        gradient_of(loaded, groups, hp.model_copy(update={"code_weights": weights}), keep)
        for weights in ("all", "changed")
        for keep in (_answers_only, _verdicts_only)
    )


def _answers_only(group: RolloutGroup) -> None:
    for rollout in group.rollouts:
        rollout.step_advantages = {}


def _verdicts_only(group: RolloutGroup) -> None:
    for rollout in group.rollouts:
        rollout.advantage = 0.0


def gradient_of(
    loaded: LoadedCheckpoint,
    groups: Sequence[RolloutGroup],
    hp: PeRPOHyperparameters,
    keep: Callable[[RolloutGroup], None],
) -> Tensor:
    """The gradient [parameters] of the groups' mean objective with the advantages that `keep` leaves."""
    policy, legal = loaded.transformer, LegalIds.of(loaded.template, loaded.vocab)
    for group in groups:
        for rollout in group.rollouts:
            rollout.factors = None
    set_credit(groups, hp)
    for group in groups:
        keep(group)
    policy.requires_grad_(True).zero_grad(set_to_none=True)
    for micro in micro_batches(groups, device=policy.device):
        if not bool(micro.advantages.any()):
            continue
        logprobs, _ = policy_logprobs(policy, micro, legal, temperature=hp.temperature, precision=hp.precision)
        loss, _, _ = clipped_loss(
            logprobs, logprobs.detach(), micro.advantages, clip_low=hp.clip_low, clip_high=hp.clip_high
        )
        (micro.weights * micro.factors * loss).sum().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
    flat = torch.cat([grad.flatten().cpu() for grad in grads])
    policy.zero_grad(set_to_none=True)
    return flat


def compare_halves(products: Tensor, groups_a_chunk: int, *, splits: int = 10, seed: int = 0) -> dict[str, float]:
    """Signal and noise of gradients with these products [C, C].

    Returns:
        ``cosine`` and ``cosine_sd`` over the random splits into halves, and ``groups_for_half``: how many groups a half
        needs for an expected cosine of .5, infinite if no signal is left.
    """
    count = len(products)
    random, cosines = Random(seed), list[float]()
    for _ in range(splits):
        order = random.sample(range(count), count)
        first, second = order[: count // 2], order[count // 2 : count // 2 * 2]
        dot, *squares = (products[a][:, b].sum().item() for a, b in ((first, second), (first, first), (second, second)))
        scale = (squares[0] * squares[1]) ** 0.5
        cosines.append(dot / scale if scale > 0 else 0.0)
    size = products.diagonal().mean().item()
    signal = (products.sum() - products.diagonal().sum()).item() / (count * (count - 1))
    needed = groups_a_chunk * (size - signal) / signal if signal > 0 else float("inf")
    return {"cosine": fmean(cosines), "cosine_sd": stdev(cosines), "groups_for_half": needed}


def summarize(found: Gradients, *, splits: int = 10, seed: int = 0) -> dict[str, Any]:
    """Halves compared for the answers alone and for the answers plus delta times the verdicts, as plain JSON."""
    rows = []
    for weights, first in (("all", 0), ("changed", 2)):
        for delta in DELTAS:
            mix = [0.0] * len(PARTS)
            mix[first], mix[first + 1] = 1.0, delta
            numbers = compare_halves(found.of(mix), found.groups_a_chunk, splits=splits, seed=seed)
            rows.append({"code_weights": weights, "functional": delta, **_plain(numbers)})
    return {
        "groups": found.products.shape[1] * found.groups_a_chunk,
        "accuracy": round(found.accuracy, 4),
        "informative": round(found.informative, 4),
        "informative_any": round(found.informative_any, 4),
        "rows": rows,
    }


def _plain(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: round(value, 4) if abs(value) != float("inf") else None for name, value in numbers.items()}


def table(summary: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    lines = [
        f"{summary['groups']} groups, sampled accuracy {summary['accuracy']:.3f}, informative by their answers "
        f"{summary['informative']:.2f}, by answers or verdicts {summary['informative_any']:.2f}",
        "",
        "| `code_weights` | `reward.functional` | cosine of halves | groups a half for a cosine of .5 |",
        "|---|---|---|---|",
    ]
    for row in summary["rows"]:
        needed = "no signal" if row["groups_for_half"] is None else f"{row['groups_for_half']:,.0f}"
        cosine = f"{row['cosine']:.3f} ± {row['cosine_sd']:.3f}"
        lines.append(f"| {row['code_weights']} | {row['functional']:g} | {cosine} | {needed} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.studies.gradients", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a name or a folder")
    parser.add_argument("--groups", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=8, help="groups whose gradients are taken together")
    parser.add_argument("--samples", type=int, default=8, help="trajectories of a group")
    parser.add_argument("--level", default="adaptive", help="adaptive, normal, hard, or 1 to 6")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a .json file")
    args = parser.parse_args(argv)
    if args.chunk < 1 or args.groups < 4 * args.chunk or args.samples < 2 or args.splits < 2:
        parser.error("--groups must be at least four chunks, --samples and --splits at least 2")
    torch.set_num_threads(args.threads)
    try:
        adaptive = args.level == "adaptive"
        level = "normal" if adaptive else parse_level(args.level)
        chosen = {"level": level, "difficulty": "adaptive" if adaptive else "fixed"}
        data = UniTasksData.model_validate({"num_samples": 10_000, **chosen})
        hp = PeRPOHyperparameters.model_validate(
            {"prompts_per_step": args.chunk, "rollouts_per_prompt": args.samples, "reward": {"functional": 1.0}}
        )
        loaded = load_checkpoint(resolve(args.checkpoint))
        found = measure(loaded, data, hp, chunks=args.groups // args.chunk, seed=args.seed)
    except (CheckpointError, JobError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    summary = summarize(found, splits=args.splits, seed=args.seed)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"checkpoint": loaded.name, "level": args.level, **summary}, indent=1) + "\n"
        write_file(args.out, lambda path: path.write_text(text))
    sys.stdout.write(table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
