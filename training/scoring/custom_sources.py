"""Opens the rewards of your own that a specification names, and scores responses with all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.jobs.stop import Stop
from training.scoring.custom import Case, CustomSource, CustomValue
from training.scoring.custom_process import FunctionReward
from training.scoring.custom_url import UrlReward
from training.spec.hyperparameters import CustomReward


class CustomRewards:
    """The rewards of one specification."""

    def __init__(self, settings: Sequence[CustomReward], *, stop: Stop | None = None) -> None:
        """Open all of them.

        Raises:
            training.scoring.custom.RewardError: one cannot be used.
            JobStopped: the job should stop.
        """
        self.settings = tuple(settings)
        self._sources: list[CustomSource] = []
        try:
            for one in self.settings:
                self._sources.append(_open(one, stop))
        except BaseException:
            self.close()
            raise

    def score(self, cases: Sequence[Case]) -> list[dict[str, CustomValue] | str]:
        """The values of each case by label, or why one of them is missing.

        Raises:
            training.scoring.custom.RewardError: a URL cannot be reached any more.
            JobStopped: the job should stop.
        """
        found: list[dict[str, CustomValue] | str] = [{} for _ in cases]
        for one, source in zip(self.settings, self._sources, strict=True):
            left = [k for k, values in enumerate(found) if isinstance(values, dict)]
            for k, value in zip(left, source.score([cases[k] for k in left]), strict=True):
                values = found[k]
                assert isinstance(values, dict)
                if isinstance(value, str):
                    found[k] = f"{one.label}: {value}"
                else:
                    values[one.label] = value
        return found

    def weighted(self, values: Mapping[str, CustomValue]) -> float:
        """Their share of the total reward: weight times value, added up."""
        return sum(one.weight * values[one.label].value for one in self.settings)

    def close(self) -> None:
        """End processes and close connections."""
        for source in self._sources:
            source.close()


def _open(one: CustomReward, stop: Stop | None) -> CustomSource:
    return FunctionReward(one, stop=stop) if one.url is None else UrlReward(one, stop=stop)
