"""What is kept of a run over separated modes: for the command that makes the runs, and for the site's table."""

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from scipy import stats

OURS, SEEDS = "CTLD", 8
KEY = ("problem", "method", "setting", "stage", "seed")  # of a row


class Row(NamedTuple):
    """One line of the CSV: a run of all chains."""

    problem: str
    method: str
    setting: str  # JSON: what is set by hand
    stage: str  # "pilot", of a quarter of the budget, or "report"
    seed: int
    budget: int
    chains: int
    draws: int
    gradients: int  # warm-up and all
    variation: float  # total variation of the modes' weights from the truth, all chains together
    chain_variation: float  # the same of each chain alone, mean over chains
    found: int  # modes with at least a tenth of their weight
    modes: int
    error: float  # of a mean, that of the worst coordinate, in standard deviations of the posterior
    error_square: float  # likewise of the mean of (x - mean)^2, in variances
    round_trips: float  # between the posterior and the hottest temperature, per 1,000 gradients
    seconds: float  # compilation included where the run is the first of its kind
    by: str

    @property
    def run(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in KEY)


def reported(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """The runs that count: posterior, sampler, seeds."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.stage == "report":
            found.setdefault(row.problem, {}).setdefault(row.method, []).append(row)
    return found


def chosen(rows: Iterable[Row], problem: str, method: str, settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The setting of a sampler's reported runs: what its pilots have chosen, or the only one.

    Raises:
      ValueError: if there is no such run.
    """
    if len(settings) == 1:
        return settings[0]
    for row in rows:
        if (row.problem, row.method, row.stage) == (problem, method, "report"):
            return json.loads(row.setting)
    raise ValueError(f"{method} has no setting for {problem} yet: python -m benchmarks.multimodal chooses one.")


class Beside(NamedTuple):
    """CTLD's weights beside those of the best peer.

    Attributes:
      peer: the one whose median error is the least.
      medians: of both, by their names.
      better: whose are nearer to the truth, by Mann and Whitney's test at 5 %; None if it does not tell.
      more_gradients: how many times ours the peer's are, by the medians: a population or a transition is not cut short.
    """

    peer: str
    medians: dict[str, float]
    better: str | None
    more_gradients: float

    @property
    def told(self) -> str:
        figures = "; ".join(f"{name}: {error:.2g}" for name, error in self.medians.items())
        return figures + (f", with {self.more_gradients:.2g} times the gradients" if self.more_gradients > 1.25 else "")


def beside_the_best(runs: dict[str, list[Row]]) -> Beside:
    """Of the reported runs of one posterior."""
    errors = {name: [row.variation for row in own] for name, own in runs.items()}
    middle = {name: statistics.median(own) for name, own in errors.items()}
    peer = min((name for name in middle if name != OURS), key=lambda name: middle[name])

    def is_nearer(one: str, other: str) -> bool:
        test: Any = stats.mannwhitneyu(errors[one], errors[other], alternative="less")
        return bool(test.pvalue < 0.025)

    better = OURS if is_nearer(OURS, peer) else peer if is_nearer(peer, OURS) else None
    ours, theirs = (statistics.median(row.gradients for row in runs[name]) for name in (OURS, peer))
    return Beside(peer, {name: middle[name] for name in (OURS, peer)}, better, theirs / ours)
