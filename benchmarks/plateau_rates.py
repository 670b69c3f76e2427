"""At how many learning rates each method gets a very deep network off its plateau.

    python -m benchmarks.plateau_rates          after benchmarks.plateau_tuned: about 6 minutes on 2 cores
    python -m benchmarks.plateau_rates --full   the size of `benchmarks.plateau_tuned --full`

The other hyperparameter of a method is the one that benchmarks/plateau_tuned.py chose for it. Every point of the grid is
reported, and a run that diverges counts as one that did not learn.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from benchmarks import plateau_tuned
from benchmarks.harness import files, summary, sweep
from benchmarks.harness.plateau_maps import LEFT, Map, collect, draw_map, grid, rates_table
from benchmarks.harness.sweep import Method, Range, Row

NAME = "plateau_rates"
GRID = 10  # learning rates of a method
SEEDS = 3
HEAVY_BALL = Range(3e-4, 1.0)  # beyond those of the tuner, for SGD-M; RMSprop, Adam and Santa have the tuner's


def chosen(rows: Sequence[Row], method: str, images: str) -> dict[str, float]:
    """What was chosen for a method on these images. Raises a ValueError if it has not been tuned."""
    found = sweep.tuned(rows, plateau_tuned.NAME, method, data=images)
    if found is None:
        raise ValueError(f"{method} has not been tuned on {images}: run `python -m benchmarks.plateau_tuned` first.")
    return found


def settings(name: str, number: int, tuned: Mapping[str, float]) -> list[dict[str, float]]:
    """The setting that was `tuned`, at all learning rates."""
    rates = plateau_tuned.METHODS[name].space["learning_rate"]
    return [
        {**tuned, "learning_rate": rate} for rate in grid(HEAVY_BALL if rates == plateau_tuned.HEAVY_BALL else rates, number)
    ]


def held(rows: Sequence[Row], name: str) -> dict[str, float]:
    """What a method keeps over learning rates, as it was run last."""
    last = json.loads([row for row in rows if row.method == name][-1].hyperparameters)
    return {key: value for key, value in last.items() if key != "learning_rate"}


def draw(path: pathlib.Path, maps: Mapping[str, Map]) -> None:
    """Every method over its learning rates; in two panels, so that one curve does not hide another."""
    adaptive = [name for name in maps if plateau_tuned.METHODS[name].space["learning_rate"] != plateau_tuned.HEAVY_BALL]
    with summary.styled():
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
        for name, each in maps.items():
            draw_map(axes[int(name in adaptive)], each, color=summary.COLORS[name], label=name)
        for ax, title in zip(axes, ("Heavy-ball methods", "Methods that divide by the root of the gradients"), strict=True):
            ax.axhline(0.1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
            ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="learning rate", title=title)
            if ax.get_legend_handles_labels()[0]:
                ax.legend(fontsize="small", loc="upper right")
        axes[0].set(ylabel="test accuracy (0: diverged)")
        files.save_figure(figure, path, dpi=120)


INTRODUCTION = """\
The same network and methods; test accuracy, 0 for a run that diverged. The other hyperparameter is the one that the tuner chose
above: {fixed}."""


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """The map over learning rates, and whether SGD-M left chance level anywhere."""
    fixed = {name: held(rows, name) for name in summary.names(rows)}
    maps = {name: collect(rows, name, "learning_rate", **fixed[name]) for name in fixed}
    found = {name: each for name, each in maps.items() if each is not None}
    draw(folder / "plateau_rates.png", found)
    parts = [
        "## The plateau over learning rates",
        INTRODUCTION.format(fixed="; ".join(f"{name} {summary.in_words(fixed[name])}" for name in found)),
        "![Accuracy of every method over its learning rates](results/plateau_rates.png)",
        rates_table(found),
    ]
    if "SGD-M" in found:
        left = np.count_nonzero(found["SGD-M"].final > LEFT)
        parts.append(f"SGD-M left chance level in {left} of its {found['SGD-M'].final.size} runs.")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.plateau_rates", __doc__)
    parser.set_defaults(trials=GRID, seeds=SEEDS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    images, name, steps = plateau_tuned.load(options)
    made = plateau_tuned.experiment(images, name, steps, experiment_name=NAME)
    rows = sweep.read(options.csv)
    wanted: dict[str, tuple[Method, list[dict[str, float]]]] = {
        method: (plateau_tuned.METHODS[method], settings(method, options.trials, chosen(rows, method, name)))
        for method in options.methods or plateau_tuned.METHODS
    }
    sweep.fixed_from_command_line(made, wanted, options, summarize)


if __name__ == "__main__":
    main()
