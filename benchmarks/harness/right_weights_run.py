"""What is kept of a run that is to have the weights of all modes right: for the command, and for the pages' tables."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.harness.multimodal_run import OURS, SEEDS

CLOSE = 0.05
KEY = ("problem", "method", "setting", "budget", "seed")  # of a row


class Row(NamedTuple):
    """One line of the CSV: a run of all chains."""

    problem: str
    method: str
    setting: str  # JSON: what is set by hand
    budget: int
    seed: int
    gradients: int  # warm-up and all
    modes: int
    found: int  # modes with at least a tenth of their weight
    worst: float  # largest error of a mode's weight
    variation: float  # their total variation
    seconds: float  # compilation included where the run is the first of its kind
    by: str

    @property
    def run(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in KEY)

    @property
    def is_right(self) -> bool:
        return self.found == self.modes and self.worst <= CLOSE


def least(rows: Sequence[Row], problem: str, method: str, seeds: int = SEEDS) -> int | None:
    """The first budget at which every seed is right."""
    own = [row for row in rows if (row.problem, row.method) == (problem, method)]
    for budget in sorted({row.budget for row in own}):
        if len({row.seed for row in own if row.budget == budget and row.is_right}) >= seeds:
            return budget
    return None


def needed(rows: Sequence[Row], problem: str, method: str, seeds: int = SEEDS) -> str:
    """That budget in words, or beyond which one it is."""
    found = least(rows, problem, method, seeds)
    if found is not None:
        return f"{found:,}"
    own = [row for row in rows if (row.problem, row.method) == (problem, method)]
    if not own:
        return "not run"
    most = max(row.budget for row in own)
    return "not finished" if all(row.is_right for row in own if row.budget == most) else f"more than {most:,}"


def compared(rows: Sequence[Row], seeds: int = SEEDS) -> dict[str, dict[str, int | None]]:
    """By posterior, each sampler's first budget at which every seed is right, or None where it is beyond what CTLD needs.

    Only posteriors that CTLD gets right, and on which each sampler of the file has been right, or wrong with as many gradients.
    """
    methods, told = dict.fromkeys(row.method for row in rows), dict[str, dict[str, int | None]]()
    for problem in dict.fromkeys(row.problem for row in rows):
        ours = least(rows, problem, OURS, seeds)
        wrong = {row.method for row in rows if (row.problem, row.budget) == (problem, ours) and not row.is_right}
        budgets = {method: least(rows, problem, method, seeds) for method in methods}
        if (
            ours is not None
            and len(methods) > 1
            and all(budget is not None or method in wrong for method, budget in budgets.items())
        ):
            told[problem] = budgets
    return told
