"""Levels at which a run learns: those of each family that the policy passes neither hardly ever nor nearly always.

The pass rate of every graded level is estimated while the run goes on, with older steps forgotten. A task's level is a
function of (seed, number of the prompt, estimates at the step's start), and there are no other random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from statistics import fmean

from training.perpo.rollout import RolloutGroup
from training.world.world import TRAINED_GRADES

PASSED = (0.2, 0.8)  # expected pass rates that teach
FORGET = 0.9  # share of the earlier results that each step keeps
PRIOR_TRIALS = 8.0  # the prior weighs as much as so many trajectories
FIRST_RATES = {level: 1.05 - 0.15 * level for level in TRAINED_GRADES}  # before anything is known
BOUNDS = (0.02, 0.98)

State = dict[str, dict[int, list[float]]]


class Difficulty:
    """Chooses levels by the estimated pass rates."""

    def __init__(self, families: Iterable[str], seed: int) -> None:
        """``seed`` is the job's."""
        self._seed = seed
        self._results: State = {family: {level: [0.0, 0.0] for level in TRAINED_GRADES} for family in families}

    def expected(self, family: str) -> dict[int, float]:
        """The expected pass rate of every level.

        (passed + k m) / (trials + k) with k = `PRIOR_TRIALS`. The prior m is `FIRST_RATES` plus the family's mean
        deviation from it, so that a level learns from its neighbours.
        """
        results = self._results[family]
        surplus = sum(passed - trials * FIRST_RATES[level] for level, (passed, trials) in results.items())
        offset = surplus / (sum(trials for _, trials in results.values()) + PRIOR_TRIALS)
        rates = {}
        for level, (passed, trials) in results.items():
            prior = min(BOUNDS[1], max(BOUNDS[0], FIRST_RATES[level] + offset))
            rates[level] = (passed + PRIOR_TRIALS * prior) / (trials + PRIOR_TRIALS)
        return rates

    def level(self, family: str, number: int) -> int:
        """The level of prompt ``number``: any with an expected rate in `PASSED`, or the one nearest to one half."""
        rates = self.expected(family)
        fitting = [level for level, rate in rates.items() if PASSED[0] <= rate <= PASSED[1]]
        if not fitting:
            return min(rates, key=lambda level: abs(rates[level] - 0.5))
        return Random(f"{self._seed}/{number}").choice(fitting)

    def learn(self, groups: Iterable[RolloutGroup]) -> dict[str, float]:
        """Take in a step's results.

        Returns:
            `levels/mean` and `levels/expected`, the mean level and the rate that was expected of the step's prompts;
            and the mean level of each family.
        """
        levels: dict[str, list[int]] = {}
        expected: list[float] = []
        found: list[tuple[str, int, list[float]]] = []
        for group in groups:
            task, scores = group.prompt.task, [r.reward.accuracy for r in group.rollouts if r.reward is not None]
            assert task is not None and isinstance(task.split, int)  # noqa: PT018
            levels.setdefault(task.family, []).append(task.split)
            expected.append(self.expected(task.family)[task.split])
            found.append((task.family, task.split, scores))
        for result in (result for of_levels in self._results.values() for result in of_levels.values()):
            result[0] *= FORGET
            result[1] *= FORGET
        for family, level, scores in found:
            self._results[family][level][0] += sum(scores)
            self._results[family][level][1] += len(scores)
        every = [level for of_family in levels.values() for level in of_family]
        by_family = {f"levels/{family}": fmean(of_family) for family, of_family in sorted(levels.items())}
        return {"levels/mean": fmean(every), "levels/expected": fmean(expected), **by_family} if every else {}

    def state(self) -> State:
        """Plain values to resume from."""
        return {family: {level: list(pair) for level, pair in rows.items()} for family, rows in self._results.items()}

    def load(self, state: Mapping[str, Mapping[int, list[float]]]) -> None:
        """Restore a saved state."""
        self._results = {family: {level: list(pair) for level, pair in rows.items()} for family, rows in state.items()}
