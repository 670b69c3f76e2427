"""Which method gets a very deep network off its plateau, each tuned at the same budget.

    python -m benchmarks.plateau_tuned          scikit-learn's digits, 2,400 steps a trial, about 6 minutes on 2 cores
    python -m benchmarks.plateau_tuned --full   5,000 images of MNIST, 10,000 steps a trial

The network of benchmarks/harness/deep_mlp.py starts on a plateau that SGD-M never leaves. The methods are those of
benchmarks/harness/methods.py, with what the plateau needs:

- The noise of AnnealSGD, SGHMC and CTLD is tuned as its *reach*: how far it alone, at constant temperature, would carry a
  weight in its phase, root mean square; the weights start with 0.1. Which temperature works falls with the learning rate, and
  which variance with its square, so that most points of a rectangle in these two are wasted: a first sweep, over such
  rectangles, held no setting for AnnealSGD that left the plateau, and three of sixteen for SGHMC.
- RMSprop has its eps outside the root: inside, Optax's default, it is 10^-4, far above the gradients of the plateau. It may
  forget faster than elsewhere: in the first sweep its choice was near the edge.
- Santa has temperatures of its own: it divides its noise, too, by the root of the gradients.

A run that diverges counts as one that did not learn.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib import pyplot as plt

from benchmarks.harness import data, deep_mlp, files, methods, summary, sweep, training
from benchmarks.harness.plateau_maps import LEFT, TRAINED
from benchmarks.harness.sweep import Experiment, Method, Range, Row

NAME = "plateau_tuned"
STEPS, FULL_STEPS = 2_400, 10_000
BATCH = 32
POINTS = 4  # of a curve; the second is the end of the sampling phase
TRIALS = 16  # a method: of two hyperparameters each
SEEDS = 8  # reported; runs end at chance or far from it, so that four would say little
AT_ONCE = 8  # trials under one vmap; more are no faster on a CPU

# Around what trained in a few trials on a tuning seed.
HEAVY_BALL, ADAPTIVE = Range(3e-4, 0.1), Range(1e-4, 0.1)  # learning rates
REACH = Range(0.03, 0.6)
SANTA = Range(3e-9, 3e-6)  # temperatures

TABLE = methods.table(HEAVY_BALL, ADAPTIVE, temperature=SANTA, variance=REACH)  # a variance is given by its reach, below


def temperature(hyper: Mapping[str, Any], steps: int) -> Any:
    """T of that reach: a sampler diffuses by 2 T learning_rate / (1 - momentum) a step."""
    sampling = methods.SAMPLING_SHARE * steps
    return hyper["reach"] ** 2 * (1.0 - methods.MOMENTUM) / (2.0 * hyper["learning_rate"] * sampling)


def variance(hyper: Mapping[str, Any], steps: int) -> Any:
    """That of AnnealSGD's first step; it falls with step^-0.55."""
    a_step = (hyper["learning_rate"] / (1.0 - methods.MOMENTUM)) ** 2 * np.sum(np.arange(1.0, steps + 1) ** -0.55)
    return hyper["reach"] ** 2 / a_step


NOISE = {"AnnealSGD": ("variance", variance), "SGHMC": ("temperature", temperature), "CTLD": ("temperature", temperature)}


def by_reach(name: str) -> Method:
    """A method of the table, its noise given by its reach."""
    make, (argument, of) = TABLE[name].make, NOISE[name]
    space = {"learning_rate": HEAVY_BALL, "reach": REACH}
    return Method(space, lambda hyper, key, steps: make({**hyper, argument: of(hyper, steps)}, key, steps))


# Two hyperparameters each: the reach of a noise hangs on the momentum.
METHODS = {
    "SGD-M": Method({"learning_rate": HEAVY_BALL, "friction": methods.FRICTION}, TABLE["SGD-M"].make),
    "RMSprop": Method(
        {"learning_rate": ADAPTIVE, "forgetting": Range(0.001, 1.0)},
        lambda hyper, _key, _steps: optax.rmsprop(hyper["learning_rate"], 1.0 - hyper["forgetting"], eps_in_sqrt=False),
    ),
    "Adam": Method({"learning_rate": ADAPTIVE, "friction": methods.FRICTION}, TABLE["Adam"].make),
    "AnnealSGD": by_reach("AnnealSGD"),
    "Santa": Method({name: TABLE["Santa"].space[name] for name in ("learning_rate", "temperature")}, TABLE["Santa"].make),
    "SGHMC": by_reach("SGHMC"),
    "CTLD": by_reach("CTLD"),
}


def task(images: data.Split) -> training.Task:
    half = len(images.test_y) // 2
    parts = {
        "train": (images.train_x, images.train_y),
        "validation": (images.test_x[:half], images.test_y[:half]),
        "test": (images.test_x[half:], images.test_y[half:]),
    }

    def loss(params: Any, memory: Any, arrays: Any, _frozen: Any, _step: Any, key: Any) -> tuple[jax.Array, Any]:
        return deep_mlp.minibatch_loss(params, key, *arrays["train"], size=BATCH), memory

    def evaluate(params: Any, arrays: Any, _frozen: Any) -> list[jax.Array]:
        diverged = ~jnp.isfinite(deep_mlp.loss(params, *arrays["validation"]))
        return [jnp.where(diverged, jnp.nan, deep_mlp.accuracy(params, *arrays[part])) for part in parts]

    return training.Task(
        init=lambda key: deep_mlp.MODEL.init(key, jnp.zeros((1, images.train_x.shape[1]))),
        begin=lambda _arrays: (),
        loss=loss,
        evaluate=evaluate,
        data=jax.tree.map(jnp.asarray, parts),
    )


def experiment(images: data.Split, name: str, steps: int, *, experiment_name: str = NAME) -> Experiment:
    prepare = training.curves_of(task(images), steps=steps, points=POINTS)
    config = {
        "data": name,
        "train_images": len(images.train_y),
        "steps": steps,
        "batch": BATCH,
        "hidden_layers": deep_mlp.HIDDEN_LAYERS,
        "width": deep_mlp.WIDTH,
        "sampling_share": methods.SAMPLING_SHARE,
    }
    return Experiment(experiment_name, "accuracy", config, prepare, AT_ONCE, last_step=steps, maximize=True)


INTRODUCTION = """\
Twenty hidden ReLU layers with N(0, 0.1²) weights, after Neelakantan et al. (2015), on {images} images of digits, {steps} steps;
accuracy, higher is better, 0 for a run that diverged. The noise of AnnealSGD, SGHMC and CTLD is tuned as its reach: how far it
alone, at constant temperature, would carry a weight in its phase, root mean square. RMSprop has its eps outside the root:
inside, Optax's default, it is far above the gradients of the plateau. Santa has its own range of temperatures."""


def without_divergence(rows: Sequence[Row]) -> list[Row]:
    """Reported runs that diverged count as accuracy 0."""
    zero = dict.fromkeys(("train", "validation", "test"), 0.0)
    return [row._replace(**zero) if row.stage == "report" and math.isnan(row.test) else row for row in rows]


def tried(rows: Sequence[Row], method: str) -> np.ndarray:
    """Validation accuracy of every setting that the tuner tried, shape (settings, seeds), 0 where it diverged."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row.method, row.stage) == (method, "tune"):
            found.setdefault(row.hyperparameters, []).append(float(np.nan_to_num(row.validation)))
    return np.array(list(found.values()))


def draw(path: pathlib.Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Left the settings, which show how easily a method is tuned; right the runs of the best one."""
    with summary.styled():
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
        for place, name in enumerate(names):
            for ax, values in zip(axes, (tried(rows, name).mean(1), summary.final(rows, name, "test")), strict=True):
                beside = place + np.linspace(-0.25, 0.25, len(values))  # so that no dot hides another
                ax.plot(beside, np.sort(values), "o", color=summary.COLORS[name], markersize=5, alpha=0.8)
                ax.plot([place - 0.35, place + 0.35], [values.mean()] * 2, color=summary.COLORS[name], linewidth=2)
        axes[0].set(title="Every setting that was tried, validation set (bar: mean)", ylabel="accuracy (0: diverged)")
        axes[1].set(title="The best setting on new seeds, test set (bar: mean)")
        for ax in axes:
            ax.set_xticks(range(len(names)), names)
            ax.set(ylim=(-0.03, 1.03))
            ax.axhline(0.1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
        axes[0].text(len(names) - 0.5, 0.11, "chance", ha="right", va="bottom", color="0.5", fontsize="small")
        files.save_figure(figure, path, dpi=120)


def outcomes(rows: Sequence[Row], names: Sequence[str]) -> str:
    """How many settings and how many runs left chance level."""
    lines: list[list[str]] = []
    for name in names:
        settings, final = tried(rows, name), summary.final(rows, name, "test")
        lines.append(
            [name, f"{np.count_nonzero(settings.mean(1) > LEFT)} of {len(settings)}",
             f"{np.count_nonzero(settings.mean(1) >= TRAINED)} of {len(settings)}",
             f"{np.count_nonzero(final > LEFT)} of {len(final)}", f"{np.count_nonzero(final >= TRAINED)} of {len(final)}",
             f"{np.median(final):.3f}", f"{final.min():.3f}"]
        )  # fmt: skip
    header = ["method", f"settings above {LEFT:g}, validation", f"above {TRAINED:g}", f"runs of the best above {LEFT:g}, test",
              f"above {TRAINED:g}", "median", "worst"]  # fmt: skip
    return summary.markdown(header, lines)


def noise_in_words(rows: Sequence[Row], names: Sequence[str], steps: int) -> str:
    """What the chosen reach is, as the argument of each method."""
    said = [
        f"{name} {argument} {of(summary.chosen(rows, name), steps):.2g}"
        for name, (argument, of) in NOISE.items()
        if name in names
    ]
    return f"The reach that was chosen, as an argument: {', '.join(said)}." if said else ""


def verdict(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Who wins, and CTLD against each of the others: 95 % interval of the difference of the means."""
    mean = {name: summary.final(rows, name, "test").mean() for name in names}
    order = sorted(names, key=lambda name: -mean[name])
    lines = [f"- Test accuracy, best first: {', '.join(f'{name} {mean[name]:.3f}' for name in order)}."]
    if "CTLD" in names:
        for name in [name for name in order if name != "CTLD"]:
            low, high = summary.compare(rows, "test", "CTLD", name)
            word = "**worse** than" if high < 0.0 else "better than" if low > 0.0 else "not to be told from"
            lines.append(f"- CTLD is {word} {name}: difference {low:+.3f} to {high:+.3f}.")
    if "SGD-M" in names:
        final, settings = summary.final(rows, "SGD-M", "test"), tried(rows, "SGD-M")
        left, runs = (np.count_nonzero(final > LEFT) + np.count_nonzero(settings > LEFT)), final.size + settings.size
        lines.append(f"- SGD-M left chance level in {left} of its {runs} runs, those of the tuner included.")
    return "\n".join(lines)


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """What each method reaches at its best, and how many of its settings work."""
    config = json.loads(rows[-1].config)
    rows = without_divergence(rows)
    names = summary.names([row for row in rows if row.stage == "report"])
    draw(folder / "plateau_tuned.png", rows, names)
    return "\n\n".join(
        [
            "## The plateau of a very deep network",
            INTRODUCTION.format(images=config["train_images"], steps=config["steps"]),
            summary.results_table(rows, ("train", "test")),
            outcomes(rows, names),
            noise_in_words(rows, names, config["steps"]),
            "![Every setting that was tried, and the best one on new seeds](results/plateau_tuned.png)",
            verdict(rows, names),
        ]
    )


def load(options: Any) -> tuple[data.Split, str, int]:
    """The images, their name and the number of steps that the command line asks for."""
    if options.full:
        return data.mnist(), "mnist", options.steps or FULL_STEPS
    return data.digits(), "digits", options.steps or STEPS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.plateau_tuned", __doc__)
    parser.set_defaults(seeds=SEEDS, trials=TRIALS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    sweep.run_from_command_line(experiment(*load(options)), METHODS, options, summarize)


if __name__ == "__main__":
    main()
