"""What the sections of RESULTS.md share: intervals, tables, curves, all from rows of the CSV."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from scipy import stats

from benchmarks.harness.sweep import Row
from ctld_optax import plotting

COLORS = {
    "SGD-M": "#4d4d4d",
    "RMSprop": plotting.ORANGE,
    "Adam": plotting.GREEN,
    "AnnealSGD": plotting.PURPLE,
    "Santa": plotting.BLUE,
    "SGHMC": plotting.SKY,
    "CTLD": plotting.VERMILLION,
    "CTLD, preconditioned": "#8c3b00",
}


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
    with np.errstate(invalid="ignore"):
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


def in_words(hyper: Mapping[str, float], edges: Sequence[str] = ()) -> str:
    """A setting; an asterisk marks those hyperparameters that are listed in `edges`."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}{'*' if name in edges else ''}" for name, value in hyper.items())


def edges(rows: Sequence[Row], method: str) -> list[str]:
    """Hyperparameters whose chosen value is the smallest or largest that was tried: their range may be too narrow."""
    tried = [json.loads(row.hyperparameters) for row in rows if row.method == method and row.stage == "tune"]
    if len(tried) < 3:
        return []
    values = {name: [one[name] for one in tried] for name in tried[0]}
    return [name for name, value in chosen(rows, method).items() if value in (min(values[name]), max(values[name]))]


def results_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """One line a method: what was chosen, final figures with intervals, seconds of the fastest trial."""
    metric = rows[0].metric
    header = ["method", "chosen (* edge of the range)", *(f"{metric}, {column}" for column in columns), "s a trial, at best"]
    lines: list[list[str]] = []
    for name in names([row for row in rows if row.stage == "report"]):
        figures = [str(interval(final(rows, name, column))) for column in columns]
        seconds = min(row.seconds for row in rows if row.method == name)  # without compiling, and least disturbed by others
        lines.append([name, in_words(chosen(rows, name), edges(rows, name)), *figures, f"{seconds:.1f}"])
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


def compare(rows: Sequence[Row], column: str, first: str, second: str) -> tuple[float, float]:
    """95 % interval of Welch's t-test for the mean of `first` minus the mean of `second`."""
    test: Any = stats.ttest_ind(final(rows, first, column), final(rows, second, column), equal_var=False)
    bounds = test.confidence_interval(0.95)
    return float(bounds.low), float(bounds.high)


def plain_ticks(ax: Axes) -> None:
    """Numbers, not powers of ten, on a logarithmic axis that spans about a decade."""
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def styled() -> Any:
    """The style of the project's own pictures, while a figure is made."""
    return mpl.rc_context(cast("Any", plotting.STYLE))


def claims(rows: Sequence[Row], *, early: int) -> str:
    """The paper's claims about CTLD, each as it came out: best in the end, RMSprop and Adam ahead at first. Lower is better."""
    found = names([row for row in rows if row.stage == "report"])
    others = [name for name in found if not name.startswith("CTLD")]
    if "CTLD" not in found or not others:
        return "CTLD or its competitors are not in the CSV yet."
    return "\n".join(
        [
            "What the paper says, and what came out:\n",
            *(f"- **{column}, in the end**: {_best_at_the_end(rows, others, column)}" for column in ("train", "test")),
            f"- **at first**: {_ahead_at(rows, found, early)}",
        ]
    )


def _best_at_the_end(rows: Sequence[Row], others: Sequence[str], column: str) -> str:
    """CTLD against every other method, and whether "best" is more than chance."""
    mean = {name: finite(float(np.mean(final(rows, name, column)))) for name in (*others, "CTLD")}
    rival = min(others, key=lambda name: mean[name])
    low, high = compare(rows, column, "CTLD", rival)
    by = f"CTLD {number(mean['CTLD'])}, {rival} {number(mean[rival])}; 95 % interval of the difference {low:.2g} to {high:.2g}"
    if mean["CTLD"] < mean[rival]:
        sure = "as the paper says" if high < 0.0 else "but not beyond the spread of the seeds"
        return f"CTLD ends best, {sure} ({by})."
    ahead = [name for name in others if mean[name] <= mean["CTLD"]]
    surely = [name for name in ahead if compare(rows, column, "CTLD", name)[0] > 0.0]
    beyond = f"beyond the spread of the seeds for {_listed(surely)}" if surely else "within the spread of the seeds"
    return f"CTLD does **not** end best, against the paper. Ahead of it or level: {_listed(ahead)}; {beyond} ({by})."


def _ahead_at(rows: Sequence[Row], found: Sequence[str], early: int) -> str:
    """The order of the methods on the training figure, soon after the start."""
    steps = curves(rows, found[0], "train")[0]
    at = int(np.argmin(np.abs(steps - early)))
    value = {name: finite(float(np.mean(curves(rows, name, "train")[1][:, at]))) for name in found}
    order = sorted(found, key=lambda name: value[name])
    adaptive = [name for name in ("RMSprop", "Adam") if name in found]
    if not adaptive:
        return "RMSprop and Adam are not in the CSV yet."
    agrees = set(order[: len(adaptive)]) == set(adaptive)
    listed = ", ".join(f"{name} {number(value[name])}" for name in order)
    if agrees:
        return f"{_listed(adaptive)} lead, as the paper says (training figure at step {steps[at]}: {listed})."
    return f"{_listed(adaptive)} do not both lead, against the paper (training figure at step {steps[at]}: {listed})."


def finite(value: float) -> float:
    """A method of which a seed diverged comes last."""
    return value if math.isfinite(value) else math.inf


def _listed(found: Sequence[str]) -> str:
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
