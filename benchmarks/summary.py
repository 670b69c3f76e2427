"""What the sections of RESULTS.md share: intervals, tables, curves, all from rows of the CSV."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from benchmarks.sweep import Row
from ctld_optax import plotting

COLORS = {
    "SGD-M": "#4d4d4d",
    "RMSprop": plotting.ORANGE,
    "Adam": plotting.GREEN,
    "AnnealSGD": plotting.PURPLE,
    "Santa": plotting.BLUE,
    "SGHMC": plotting.SKY,
    "CTLD": plotting.VERMILLION,
}
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


class Interval(NamedTuple):
    """Mean and half width of the 95 % t-interval over seeds; infinite width with one seed, NaN if a seed diverged."""

    mean: float
    half: float
    seeds: int

    def __str__(self) -> str:
        return f"{number(self.mean)} ± {number(self.half)}" if math.isfinite(self.half) else number(self.mean)


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    array = np.asarray(values, np.float64)
    if array.size < 2:
        return Interval(float(array.mean()), math.inf, array.size)
    half = float(stats.t.ppf(0.975, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return Interval(float(array.mean()), half, array.size)


def number(value: float) -> str:
    """Four digits for a table; a figure that is not finite says so."""
    return f"{value:.4g}" if math.isfinite(value) else "diverged"


def names(rows: Sequence[Row]) -> list[str]:
    """The methods of these rows, in the order of the paper, unknown ones last."""
    found = list(dict.fromkeys(row.method for row in rows))
    return sorted(found, key=lambda name: list(COLORS).index(name) if name in COLORS else len(COLORS))


def curves(rows: Sequence[Row], method: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, shape (points,), and values, shape (seeds, points), of a method's reported trials."""
    own = [row for row in rows if row.method == method and row.stage == "report"]
    steps = sorted({row.step for row in own})
    value: dict[tuple[int, int], float] = {(row.seed, row.step): getattr(row, column) for row in own}
    return np.asarray(steps), np.asarray([[value[seed, step] for step in steps] for seed in sorted({row.seed for row in own})])


def final(rows: Sequence[Row], method: str, column: str) -> np.ndarray:
    """The last value of every reported seed."""
    return curves(rows, method, column)[1][:, -1]


def chosen(rows: Sequence[Row], method: str) -> dict[str, float]:
    return json.loads(next(row.hyperparameters for row in rows if row.method == method and row.stage == "report"))


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def in_words(hyper: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in hyper.items())


def results_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """One line a method: what was chosen, final figures with intervals, seconds of a trial."""
    metric = rows[0].metric
    header = ["method", "chosen on validation", *(f"{metric}, {column}" for column in columns), "s a trial"]
    lines = [
        [name, in_words(chosen(rows, name)), *(str(interval(final(rows, name, column))) for column in columns),
         f"{np.median([row.seconds for row in rows if row.method == name and row.stage == 'report']):.0f}"]
        for name in names([row for row in rows if row.stage == "report"])
    ]  # fmt: skip
    return markdown(header, lines)


def draw_curves(ax: Axes, rows: Sequence[Row], column: str) -> None:
    """Mean over seeds of every method, with the range of the seeds behind it."""
    for name in names([row for row in rows if row.stage == "report"]):
        steps, values = curves(rows, name, column)
        shown = np.where(np.isfinite(values), values, np.nan)
        if np.isnan(shown).all():
            continue
        ax.fill_between(steps, shown.min(0), shown.max(0), color=COLORS.get(name, "0.5"), alpha=0.15, linewidth=0)
        ax.plot(steps, shown.mean(0), color=COLORS.get(name, "0.5"), linewidth=2.4 if name == "CTLD" else 1.6, label=name)
    ax.set(xlabel="step")


def compare(rows: Sequence[Row], column: str, first: str, second: str) -> tuple[float, float, float]:
    """Mean of `first` minus mean of `second`, and the 95 % interval of Welch's t-test."""
    test: Any = stats.ttest_ind(final(rows, first, column), final(rows, second, column), equal_var=False)
    bounds = test.confidence_interval(0.95)
    return (
        float(np.mean(final(rows, first, column)) - np.mean(final(rows, second, column))),
        float(bounds.low),
        float(bounds.high),
    )


def styled() -> Any:
    return mpl.rc_context(cast("Any", STYLE))
