"""What is kept of a run over separated modes: for the command that makes the runs, and for the site's table."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from scipy import stats

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


def err_less(ones: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether the weights of the ones are nearer to the truth than those of the others: Mann and Whitney's test, at 5 %."""
    test: Any = stats.mannwhitneyu([row.variation for row in ones], [row.variation for row in others], alternative="less")
    return bool(test.pvalue < 0.025)
