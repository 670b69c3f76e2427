"""Where each method gets a very deep network off its plateau: a map over learning rates and over base temperatures.

    python -m benchmarks.plateau            scikit-learn's digits, 2,400 steps a trial, about 20 minutes on 2 cores
    python -m benchmarks.plateau --full     5,000 images of MNIST, 10,000 steps a trial

The network of benchmarks/deep_mlp.py starts on a plateau that SGD-M never leaves. Nothing is tuned here: every point of the two
grids is reported, and a run that diverges counts as one that did not learn. A third part asks what ends the band of working
temperatures on either side, and whether the moment of the hand-over matters.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib import pyplot as plt

import ctld_optax
from benchmarks import data, deep_mlp, methods, summary, sweep, training
from benchmarks.handover import hand_over_when
from benchmarks.plateau_maps import (
    LEFT,
    Map,
    bands_table,
    collect,
    draw_fates,
    draw_map,
    ends,
    lost_while_sampling,
    rates_table,
    wider,
)
from benchmarks.sweep import Experiment, Method, Range, Row
from ctld_optax import baselines, plotting

NAME = "plateau"
STEPS, FULL_STEPS = 2_400, 10_000
BATCH = 32
POINTS = 4  # of a curve; the second is the end of the sampling phase
AT_ONCE = 15  # trials under one vmap, a divisor of GRID * SEEDS; more are no faster on a CPU
GRID = 10  # values of each hyperparameter
SEEDS = 3

RATE = 0.01  # of the map over temperatures
HEAVY_BALL, ADAPTIVE = Range(1e-3, 1.0), Range(1e-5, 3e-2)  # learning rates of the other map
TEMPERATURES = Range(1e-6, 3e-4)
STRENGTHS = (0.85, 0.95, 0.99)
# What the map over learning rates holds fixed: the best of a few trials on seeds that are not reported.
FIXED = {"SGHMC": 8e-5, "CTLD": 4e-5}
VARIANCE = 0.03  # of AnnealSGD
SANTA = {"temperature": 1e-7, "annealing": 0.5}

MOMENTUM = methods.MOMENTUM
SHARE = methods.SAMPLING_SHARE
VARIANTS = ("CTLD, cold hand-over", "CTLD, cooled", "SGHMC, cooled")


def sampler(hyper: Mapping[str, Any], key: Any, *, tempered: bool = True, **changes: Any) -> Any:
    tempering = ctld_optax.PolynomialTempering(strength=hyper["strength"]) if tempered else None
    temperature = changes.pop("temperature", hyper["temperature"])
    return ctld_optax.ctld(hyper["learning_rate"], temperature, MOMENTUM, key=key, tempering=tempering, **changes)


def switched(hyper: Mapping[str, Any], key: Any, steps: int, **changes: Any) -> Any:
    """Half the steps sampling, then SGD-M at the same learning rate."""
    sgd = optax.sgd(hyper["learning_rate"], MOMENTUM)
    return ctld_optax.phase_switch(sampler(hyper, key, **changes), sgd, round(SHARE * steps))


def cooled(hyper: Mapping[str, Any], key: Any, steps: int, **changes: Any) -> Any:
    """The last fifth of the sampling phase takes the base temperature linearly to zero."""
    end = round(SHARE * steps)

    def temperature(count: Any) -> Any:
        return hyper["temperature"] * jnp.clip((end - count) / (0.2 * end), 0.0, 1.0)

    return switched(hyper, key, steps, temperature=temperature, **changes)


def waiting(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """The hand-over waits until alpha is in the window of the base temperature."""
    window = ctld_optax.PolynomialTempering().delta
    return hand_over_when(
        sampler(hyper, key), hyper["learning_rate"], MOMENTUM, round(SHARE * steps), lambda alpha: jnp.abs(alpha) <= window
    )


def _santa(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    rate, temperature = hyper["learning_rate"], SANTA["temperature"]
    return baselines.santa(rate, temperature, key=key, exploration_steps=round(SHARE * steps), annealing=SANTA["annealing"])


# Optax's default puts RMSprop's eps under the root, where it is 10^-4, far above the gradients of the plateau.
METHODS = {
    name: Method({}, make)
    for name, make in {
        "SGD-M": lambda hyper, _key, _steps: optax.sgd(hyper["learning_rate"], MOMENTUM),
        "RMSprop": lambda hyper, _key, _steps: optax.rmsprop(hyper["learning_rate"], eps_in_sqrt=False),
        "Adam": lambda hyper, _key, _steps: optax.adam(hyper["learning_rate"]),
        "AnnealSGD": lambda hyper, key, _steps: baselines.anneal_sgd(hyper["learning_rate"], VARIANCE, MOMENTUM, key=key),
        "Santa": _santa,
        "SGHMC": functools.partial(switched, tempered=False),
        "CTLD": switched,
        "CTLD, cold hand-over": waiting,
        "CTLD, cooled": cooled,
        "SGHMC, cooled": functools.partial(cooled, tempered=False),
    }.items()
}
COMPARED = tuple(name for name in METHODS if name not in VARIANTS)


def grid(bounds: Range, number: int) -> list[float]:
    """Log-spaced, three digits."""
    return [float(f"{value:.3g}") for value in np.geomspace(bounds.low, bounds.high, number)]


def temperature_map(name: str, number: int) -> list[dict[str, float]]:
    strengths = STRENGTHS if name == "CTLD" else (0.0,) if name.startswith("SGHMC") else STRENGTHS[:1]
    return [
        {"learning_rate": RATE, "temperature": temperature, "strength": strength}
        for strength in strengths
        for temperature in grid(TEMPERATURES, number)
    ]


def rate_map(name: str, number: int) -> list[dict[str, float]]:
    rates = grid(ADAPTIVE if name in ("RMSprop", "Adam", "Santa") else HEAVY_BALL, number)
    strength = STRENGTHS[0] if name == "CTLD" else 0.0
    fixed = {"temperature": FIXED[name], "strength": strength} if name in FIXED else {}
    return [{"learning_rate": rate} | fixed for rate in rates]


def plan(number: int) -> dict[str, list[dict[str, float]]]:
    """What is run of each method, in this order."""
    both = {name: temperature_map(name, number) + rate_map(name, number) for name in FIXED}
    one = {name: rate_map(name, number) for name in COMPARED if name not in FIXED}
    return both | one | {name: temperature_map(name, number) for name in VARIANTS}


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


def experiment(images: data.Split, name: str, steps: int) -> Experiment:
    prepare = training.curves_of(task(images), steps=steps, points=POINTS)
    config = {
        "data": name,
        "train_images": len(images.train_y),
        "steps": steps,
        "batch": BATCH,
        "hidden_layers": deep_mlp.HIDDEN_LAYERS,
        "width": deep_mlp.WIDTH,
        "sampling_share": SHARE,
        "anneal_sgd_variance": VARIANCE,
        "santa": json.dumps(SANTA),
    }
    return Experiment(NAME, "accuracy", config, prepare, AT_ONCE, maximize=True)


def maps_over_rates(rows: Sequence[Row]) -> dict[str, Map]:
    found = {
        name: collect(rows, name, "learning_rate", **({"temperature": FIXED[name]} if name in FIXED else {}))
        for name in COMPARED
    }
    # The map over temperatures has runs at one learning rate; a map over rates has several.
    return {name: each for name, each in found.items() if each is not None}


def maps_over_temperatures(rows: Sequence[Row]) -> dict[str, Map]:
    # The map over learning rates has one run at this learning rate, at a temperature that is not of the grid.
    gridded = [row for row in rows if json.loads(row.hyperparameters).get("temperature") not in FIXED.values()]
    collected = functools.partial(collect, gridded, over="temperature", learning_rate=RATE)
    found = {"SGHMC": collected("SGHMC")}
    found |= {f"CTLD, S = {strength:g}": collected("CTLD", strength=strength) for strength in STRENGTHS}
    found |= {name: collected(name) for name in VARIANTS}
    return {name: each for name, each in found.items() if each is not None}


def draw(path: pathlib.Path, rates: Mapping[str, Map], temperatures: Mapping[str, Map]) -> None:
    with summary.styled():
        figure = plt.figure(figsize=(13, 10), layout="constrained")
        axes = figure.subplot_mosaic([["rates", "temperatures"], ["fates", "handovers"]])
        for name, each in rates.items():
            draw_map(axes["rates"], each, color=summary.COLORS[name], label=name)
        looks = ((plotting.VERMILLION, "-"), (plotting.ORANGE, "--"), (plotting.PURPLE, ":"))
        tempered = [f"CTLD, S = {strength:g}" for strength in STRENGTHS]
        shades = {"SGHMC": (plotting.SKY, "-")} | dict(zip(tempered, looks, strict=True))
        for name in [name for name in shades if name in temperatures]:
            color, line = shades[name]
            draw_map(axes["temperatures"], temperatures[name], color=color, linestyle=line, label=name)
        plain = f"CTLD, S = {STRENGTHS[0]:g}"
        styles = {
            plain: (plotting.VERMILLION, "-"),
            "CTLD, cold hand-over": (plotting.BLUE, "--"),
            "CTLD, cooled": (plotting.GREEN, ":"),
            "SGHMC": (plotting.SKY, "-"),
            "SGHMC, cooled": ("0.4", ":"),
        }
        for name in [name for name in styles if name in temperatures]:
            color, line = styles[name]
            draw_map(axes["handovers"], temperatures[name], color=color, linestyle=line, label=name)
        if temperatures:
            draw_fates(axes["fates"], temperatures)
        axes["rates"].set(xlabel="learning rate", title="Every method over its learning rates")
        axes["temperatures"].set(xlabel="base temperature  [nats]", title=f"The samplers at learning rate {RATE:g}")
        axes["handovers"].set(xlabel="base temperature  [nats]", title="Other ways to hand over to SGD-M")
        for name in ("rates", "temperatures", "handovers"):
            axes[name].axhline(0.1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
            axes[name].set(xscale="log", ylim=(-0.03, 1.03), ylabel="test accuracy (0: diverged)")
            if axes[name].get_legend_handles_labels()[0]:
                axes[name].legend(frameon=False, fontsize="small", loc="upper left" if name != "rates" else "upper right")
        figure.savefig(path, dpi=120)
        plt.close(figure)


INTRODUCTION = f"""\
Twenty hidden ReLU layers with N(0, 0.1²) weights, after Neelakantan et al. (2015); test accuracy, higher is better, 0 for a run
that diverged. Samplers sample for half the steps, then run SGD-M at the same learning rate. Over learning rates the other
hyperparameters stand still: {", ".join(f"{name} T = {value:g}" for name, value in FIXED.items())}, AnnealSGD variance
{VARIANCE:g} with momentum {MOMENTUM:g}, Santa {summary.in_words(SANTA)}, chosen in a few trials on other seeds. RMSprop
has its eps outside the root: inside, Optax's default, it is far above the gradients of the plateau."""


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """The maps, the bands in decades, and what ends them."""
    rates, temperatures = maps_over_rates(rows), maps_over_temperatures(rows)
    draw(folder / "plateau.png", rates, temperatures)
    parts = [
        "## The plateau of a very deep network",
        INTRODUCTION,
        "![Accuracy over learning rate and temperature, and the fate of every run](results/plateau.png)",
        rates_table(rates),
    ]
    if "SGD-M" in rates:
        left = np.count_nonzero(rates["SGD-M"].final > LEFT)
        parts.append(f"SGD-M left chance level in {left} of its {rates['SGD-M'].final.size} runs.")
    if temperatures:
        parts.append(bands_table(temperatures))
        pairs = [(name, "SGHMC") for name in temperatures if name.startswith("CTLD, S")]
        plain = f"CTLD, S = {STRENGTHS[0]:g}"
        pairs += [("CTLD, cold hand-over", plain), ("CTLD, cooled", plain), ("SGHMC, cooled", "SGHMC"),
                  ("CTLD, cooled", "SGHMC, cooled")]  # fmt: skip
        number = max(len(each.values) for each in temperatures.values())
        whole = {name: each for name, each in temperatures.items() if len(each.values) == number}
        lines = [wider(whole, *pair) for pair in pairs if set(pair) <= whole.keys()]
        lines += [ends(name, each) for name, each in whole.items()]
        lines.append(lost_while_sampling([each for name, each in whole.items() if name.startswith("CTLD, S")]))
        parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.plateau", __doc__)
    parser.set_defaults(trials=GRID, seeds=SEEDS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    images = data.mnist() if options.full else data.digits()
    own = experiment(images, "mnist" if options.full else "digits", options.steps or (FULL_STEPS if options.full else STEPS))
    planned = plan(options.trials)
    wanted = {name: (METHODS[name], planned[name]) for name in options.methods or planned}
    sweep.fixed_from_command_line(own, wanted, options, summarize)


if __name__ == "__main__":
    main()
