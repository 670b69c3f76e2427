"""What the maps of the plateau read from their rows: accuracy over a hyperparameter, fates of the runs, decades that work."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes

from benchmarks.harness import summary
from benchmarks.harness.sweep import Range, Row
from ctld_optax import plotting

LEFT = 0.2  # accuracy that shows that a run has left chance level: ten classes of nearly one size
HANDOVER = 1  # the point of a curve at which the sampling phase ends
TRAINED = 0.5  # accuracy that counts as working: the trials are short, and few runs end far above it
FATES = ("trained", "on the way", "never left", "lost again", "diverged")
FATE_COLORS = dict(zip(FATES, (plotting.GREEN, plotting.SKY, "0.75", plotting.ORANGE, plotting.VERMILLION), strict=True))


@dataclasses.dataclass(frozen=True)
class Map:
    """Results over one hyperparameter: `curves` has shape (values, seeds, points), the accuracy on the test set."""

    values: np.ndarray
    curves: np.ndarray

    @property
    def final(self) -> np.ndarray:
        """Shape (values, seeds); a run that diverged has accuracy 0."""
        return np.nan_to_num(self.curves[..., -1])

    @property
    def fates(self) -> np.ndarray:
        """Shape (values, seeds), names from `FATES`."""
        end, best = self.curves[..., -1], np.nanmax(np.nan_to_num(self.curves), axis=-1)
        conditions = [np.isnan(end), end >= TRAINED, end > LEFT, best > LEFT]
        return np.select(conditions, ["diverged", "trained", "on the way", "lost again"], "never left")

    def share(self, *fates: str) -> np.ndarray:
        """Shape (values,): the share of seeds with one of these fates."""
        return np.isin(self.fates, fates).mean(axis=1)

    def decades(self, threshold: float) -> np.ndarray:
        """Shape (seeds,): how many decades of values reach the threshold, the accuracy interpolated over their logarithm."""
        at = np.log10(self.values)
        fine = np.linspace(at[0], at[-1], 20_001)
        return np.array([(at[-1] - at[0]) * np.mean(np.interp(fine, at, row) >= threshold) for row in self.final.T])


def grid(bounds: Range, number: int) -> list[float]:
    """Log-spaced, three digits."""
    return [float(f"{value:.3g}") for value in np.geomspace(bounds.low, bounds.high, number)]


def collect(rows: Sequence[Row], method: str, over: str, **fixed: float) -> Map | None:
    """The map of a method over one hyperparameter, the others `fixed`; only values that all seeds have."""
    found: dict[float, dict[int, dict[int, float]]] = {}
    for row in rows:
        hyper: dict[str, float] = json.loads(row.hyperparameters)
        if row.method == method and over in hyper and fixed.items() <= hyper.items():
            found.setdefault(hyper[over], {}).setdefault(row.seed, {})[row.step] = row.test
    if not found:
        return None
    seeds = sorted({seed for by_seed in found.values() for seed in by_seed})
    values = sorted(value for value, by_seed in found.items() if len(by_seed) == len(seeds))
    curves = [[[found[value][seed][step] for step in sorted(found[value][seed])] for seed in seeds] for value in values]
    return Map(np.asarray(values), np.asarray(curves))


def draw_map(ax: Axes, each: Map, **style: Any) -> None:
    """The mean over seeds as a line, every seed as a dot."""
    line = ax.plot(each.values, each.final.mean(axis=1), linewidth=2.0, **style)[0]
    seeds = np.repeat(each.values[:, None], each.final.shape[1], axis=1)
    ax.plot(seeds.ravel(), each.final.ravel(), ".", color=line.get_color(), markersize=4, alpha=0.6)


def draw_fates(ax: Axes, found: Mapping[str, Map]) -> None:
    """One cell a run: a row a seed, grouped by method, a column a temperature. What was not run is white."""
    values = np.unique(np.concatenate([each.values for each in found.values()]))
    groups: list[np.ndarray] = []
    for each in found.values():
        group = np.full((each.fates.shape[1], len(values)), np.nan)
        group[:, np.searchsorted(values, each.values)] = [[FATES.index(fate) for fate in run] for run in each.fates.T]
        groups.append(group)
    cells = np.concatenate(groups)
    palette = colors.ListedColormap(list(FATE_COLORS.values()))
    ax.imshow(cells, cmap=palette, vmin=-0.5, vmax=len(FATES) - 0.5, aspect="auto", interpolation="none")
    edges = np.cumsum([0, *map(len, groups)]) - 0.5
    for edge in edges[1:-1]:
        ax.axhline(edge, color="white", linewidth=3)
    ax.set_yticks((edges[1:] + edges[:-1]) / 2, list(found))
    ax.set_xticks(range(len(values)), [f"{value:.1e}".replace("e-0", "e-") for value in values], rotation=45, ha="right")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="base temperature  [nats]", title="What became of each run")
    for fate in FATES:
        ax.plot([], [], "s", color=FATE_COLORS[fate], markersize=9, label=fate)


def rates_table(rates: Mapping[str, Map]) -> str:
    header = ["method", "learning rates", "runs that left chance", "best learning rate", "accuracy there, each seed", "mean"]
    lines = []
    for name, each in rates.items():
        best = int(np.argmax(each.final.mean(axis=1)))
        left = np.count_nonzero(each.final > LEFT)
        lines.append(
            [name, f"{len(each.values)}, {each.values[0]:g} to {each.values[-1]:g}", f"{left} of {each.final.size}",
             f"{each.values[best]:g}", " ".join(f"{value:.3f}" for value in each.final[best]),
             f"{each.final[best].mean():.3f}"]
        )  # fmt: skip
    return summary.markdown(header, lines)


def bands_table(temperatures: Mapping[str, Map]) -> str:
    """Decades of base temperatures that work, seed by seed."""
    header = [
        "sampler",
        f"decades that end above {LEFT:g}",
        f"decades that end above {TRAINED:g}",
        "each seed",
        "best mean",
        "at",
    ]
    lines = []
    for name, each in temperatures.items():
        left, trained = each.decades(LEFT), each.decades(TRAINED)
        mean = each.final.mean(axis=1)
        lines.append(
            [name, str(summary.interval(left)), str(summary.interval(trained)), " ".join(f"{value:.2f}" for value in trained),
             f"{mean.max():.3f}", f"{each.values[int(np.argmax(mean))]:.2g}"]
        )  # fmt: skip
    return summary.markdown(header, lines)


def wider(temperatures: Mapping[str, Map], name: str, than: str) -> str:
    """Whether one band is wider than another: paired by seed, 95 % t-interval."""
    verdicts: list[str] = []
    for threshold in (LEFT, TRAINED):
        first, second = temperatures[name].decades(threshold), temperatures[than].decades(threshold)
        shared = min(len(first), len(second))  # seeds are 0, 1, 2, ...
        difference = summary.interval(first[:shared] - second[:shared])
        if difference.mean - difference.half > 0.0:
            verdict = "wider"
        elif difference.mean + difference.half < 0.0:
            verdict = "**narrower**"
        else:
            verdict = "**not wider** beyond the spread of the seeds"
        verdicts.append(f"{verdict} above {threshold:g} (by {difference.mean:.2f} ± {difference.half:.2f} decades)")
    return f"{name} against {than}: " + ", ".join(verdicts) + "."


def ends(name: str, each: Map) -> str:
    """What became of the runs that did not end trained, on either side of those that did."""
    trained = np.flatnonzero(each.share("trained") > 0.0)
    if not trained.size:
        return f"{name}: no run was trained."
    sides: list[str] = []
    for side, chosen in (("colder", slice(0, trained[0])), ("hotter", slice(trained[-1] + 1, None))):
        fates, at_handover = each.fates[chosen], np.nan_to_num(each.curves[chosen][..., HANDOVER])
        if not fates.size:
            sides.append(f"{side}: none")
            continue
        counts = ", ".join(f"{fate} {np.count_nonzero(fates == fate)}" for fate in FATES if np.any(fates == fate))
        finite = np.count_nonzero(np.isfinite(each.curves[chosen][..., HANDOVER]))
        sides.append(
            f"{side}, {fates.size} runs: {counts}; at the hand-over {finite} were finite and "
            f"{np.count_nonzero(at_handover > LEFT)} above {LEFT:g}"
        )
    low, high = each.values[trained[0]], each.values[trained[-1]]
    return f"{name}: some run was trained from {low:.2g} to {high:.2g}; {'; '.join(sides)}."


def lost_while_sampling(found: Sequence[Map]) -> str:
    """Of the runs that diverged, how many had done so before the hand-over: no moment to hand over could have saved those."""
    diverged = sum(np.count_nonzero(each.fates == "diverged") for each in found)
    sampling = sum(np.count_nonzero(np.isnan(each.curves[..., HANDOVER])) for each in found)
    return f"Of {diverged} CTLD runs that diverged, {sampling} had done so while sampling, before any hand-over."
