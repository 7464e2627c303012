"""Which tokens are credited with what: advantages of trajectories and of steps, and the weights of image codes.

Advantages are normalised within a prompt's group (Eq. 13). With `credit: step` the verdict on a drawing reaches only
the tokens of its step: the sentence and the codes. With `code_weights: changed` only the codes that change an image are
credited: of a drawing, most codes repeat the image before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from model.engine.phases import Legal
from training.perpo.losses import group_advantages
from training.perpo.rollout import Rollout, RolloutGroup
from training.spec.hyperparameters import PeRPOHyperparameters

MAX_RESCALE = 4.0  # of the tokens that keep their weight
DIFFERENT = 1e-9

Codes = tuple[int, ...]


def set_credit(groups: Sequence[RolloutGroup], hp: PeRPOHyperparameters) -> None:
    """Set advantages and factors of every trajectory of these groups; all of them must be scored.

    ``trajectory``: A = (r - mu) / (sigma + eps) of the totals. ``step``: the same of the totals without the
    functional-correctness reward, but 0 where all answers of a group agree; and delta A_k for each step k.
    """
    for group in groups:
        totals = [r.reward.total for r in group.rollouts if r.reward is not None]
        by_step = hp.credit == "step"
        agree = by_step and not differ([r.reward.accuracy for r in group.rollouts if r.reward is not None])
        advantages = [0.0] * len(totals) if agree else group_advantages(totals, hp.advantage_eps)
        steps = step_advantages(verdicts_of(group), hp.advantage_eps) if by_step else [{} for _ in totals]
        for rollout, advantage, of_steps in zip(group.rollouts, advantages, steps, strict=True):
            rollout.advantage = advantage
            rollout.step_advantages = {k: hp.reward.functional * value for k, value in of_steps.items()}
        if hp.code_weights == "changed":
            places = changed_places(group)
            for rollout in group.rollouts:
                rollout.factors = code_factors(rollout, places)


def verdicts_of(group: RolloutGroup) -> list[Sequence[bool | None]]:
    """The verdicts on the drawings of each trajectory."""
    return [() if r.reward is None else r.reward.verdicts for r in group.rollouts]


def step_advantages(verdicts: Sequence[Sequence[bool | None]], eps: float) -> list[dict[int, float]]:
    """A_k of each trajectory of a group, by step k from 1.

    The verdict on drawing k is normalised over the trajectories that have a judged drawing k and whose earlier drawings
    were all right. A_k is absent, that is 0, for the others, and for all if fewer than two are left or all are equal.

    Args:
        verdicts: by trajectory and step; None: there is no drawing, or it cannot be judged.
        eps: added to the standard deviation.
    """
    out: list[dict[int, float]] = [{} for _ in verdicts]
    for k in range(1, max(map(len, verdicts), default=0) + 1):
        compared = [
            i for i, row in enumerate(verdicts) if len(row) >= k and row[k - 1] is not None and all(row[: k - 1])
        ]
        values = [float(bool(verdicts[i][k - 1])) for i in compared]
        if len(values) < 2 or not differ(values):
            continue
        for i, advantage in zip(compared, group_advantages(values, eps), strict=True):
            out[i][k] = advantage
    return out


def differ(values: Sequence[float]) -> bool:
    """Whether a group's values are not all equal."""
    return max(values) - min(values) > DIFFERENT


def is_informative(group: RolloutGroup, metric: str) -> bool:
    """Whether a group's trajectories differ in the metric; ``any``: in the accuracy or in some A_k."""
    if len(group.rollouts) < 2:
        return False
    if metric == "none":
        return True
    name = "accuracy" if metric == "any" else metric
    if differ([getattr(r.reward, name) for r in group.rollouts]):
        return True
    return metric == "any" and any(step_advantages(verdicts_of(group), 1.0))


def token_advantages(rollout: Rollout) -> list[float]:
    """The advantage of every response token: the trajectory's, and that of the step to which it belongs."""
    out = [rollout.advantage] * len(rollout.token_ids)
    spans = {} if rollout.reward is None else rollout.reward.spans
    for k, advantage in rollout.step_advantages.items():
        for place in range(*spans.get(k, (0, 0))):
            out[place] += advantage
    return out


def changed_places(group: RolloutGroup) -> dict[int, frozenset[int]]:
    """The places of the group's drawing number k (from 1) at which something happens.

    A place counts if the code of any trajectory differs there from that trajectory's own previous image, or from
    another trajectory's. One mask for all: a mask of the own samples alone would bias the gradient.
    """
    drawings: dict[int, list[tuple[Codes | None, Codes]]] = defaultdict(list)  # previous image and drawing
    for rollout in group.rollouts:
        previous = group.prompt.images[-1] if group.prompt.images else None
        for number, (_, codes) in enumerate(_images(rollout), 1):
            drawings[number].append((previous, codes))
            previous = codes
    out = {}
    for number, pairs in drawings.items():
        first = pairs[0][1]
        out[number] = frozenset(
            place
            for place in range(len(first))
            if any(
                codes[place] != first[place] or previous is None or codes[place] != previous[place]
                for previous, codes in pairs
            )
        )
    return out


def code_factors(rollout: Rollout, places: dict[int, frozenset[int]]) -> list[float]:
    """Factor of every response token's weight in the policy's loss; ``places`` are those of :func:`changed_places`.

    Codes at other places get 0 and all other drawn tokens the factor that keeps the trajectory's sum, at most
    ``MAX_RESCALE``. A drawing without a changed place stays as it is.
    """
    factors = [1.0] * len(rollout.token_ids)
    for number, (span, _) in enumerate(_images(rollout), 1):
        if not places[number]:
            continue
        codes = [i for i in range(*span) if rollout.legal[i] == Legal.CODE]
        for place, i in enumerate(codes):
            factors[i] = float(place in places[number])
    drawn = [i for i, byte in enumerate(rollout.legal) if byte != Legal.FORCED]
    kept = sum(factors[i] for i in drawn)
    scale = min(MAX_RESCALE, len(drawn) / kept) if kept else 1.0
    return [factor * scale for factor in factors]


def _images(rollout: Rollout) -> list[tuple[tuple[int, int], Codes]]:
    """Span and codes of each complete image, in order."""
    reward = rollout.reward
    if reward is None:
        return []
    return [(reward.spans[k], codes) for k, (_, codes) in enumerate(reward.steps, 1) if codes is not None]
