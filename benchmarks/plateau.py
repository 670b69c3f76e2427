"""Where each method gets a very deep network off its plateau: a map over learning rates and over base temperatures.

    python -m benchmarks.plateau            after benchmarks.plateau_tuned: about 20 minutes on 2 cores
    python -m benchmarks.plateau --full     the size of `benchmarks.plateau_tuned --full`

Over learning rates, the other hyperparameter of a method is the one that benchmarks/plateau_tuned.py chose for it. Every point
of the two grids is reported, and a run that diverges counts as one that did not learn. A third part asks what ends the band of
working temperatures on either side, and whether the moment of the hand-over matters.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

import ctld_optax
from benchmarks import methods, plateau_tuned, summary, sweep
from benchmarks.handover import hand_over_when
from benchmarks.plateau_maps import (
    LEFT,
    Map,
    bands_table,
    collect,
    draw_fates,
    draw_map,
    draw_maps,
    ends,
    lost_while_sampling,
    rates_table,
    wider,
)
from benchmarks.sweep import Method, Range, Row
from ctld_optax import plotting

NAME = "plateau"
GRID = 10  # values of each hyperparameter
SEEDS = 6

HEAVY_BALL = Range(3e-4, 1.0)  # learning rates; beyond those of the tuner, for SGD-M. RMSprop, Adam and Santa have the tuner's
# Of the map over temperatures, which at each learning rate are as many decades around those that work.
TEMPERATURES = {0.01: Range(1e-6, 3e-4), 0.002: Range(1e-5, 3e-3)}
RATE = 0.01  # of the variants
STRENGTHS = (0.85, 0.95, 0.99)
COMPARED = tuple(plateau_tuned.METHODS)
VARIANTS = ("CTLD, cold hand-over", "CTLD, cooled", "SGHMC, cooled")
SAMPLERS = ("SGHMC", "CTLD", *VARIANTS)


def constant(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    return methods.two_phases(hyper, key, steps, tempering=None)


def tempered(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    tempering = ctld_optax.PolynomialTempering(strength=hyper["strength"])
    return methods.two_phases(hyper, key, steps, tempering=tempering)


def cooled(hyper: Mapping[str, Any], key: Any, steps: int, *, make: Callable[..., Any]) -> Any:
    """The last fifth of the sampling phase takes the base temperature linearly to zero."""
    end = round(methods.SAMPLING_SHARE * steps)

    def temperature(count: Any) -> Any:
        return hyper["temperature"] * jnp.clip((end - count) / (0.2 * end), 0.0, 1.0)

    return make({**hyper, "temperature": temperature}, key, steps)


def waiting(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """The hand-over waits until alpha is in the window of the base temperature."""
    rate, end = hyper["learning_rate"], round(methods.SAMPLING_SHARE * steps)
    tempering = ctld_optax.PolynomialTempering(strength=hyper["strength"])
    sampler = ctld_optax.ctld(rate, hyper["temperature"], methods.MOMENTUM, key=key, tempering=tempering)
    return hand_over_when(sampler, rate, methods.MOMENTUM, end, lambda alpha: jnp.abs(alpha) <= tempering.delta)


METHODS = {name: method.make for name, method in plateau_tuned.METHODS.items()} | {
    "SGHMC": constant,
    "CTLD": tempered,
    "CTLD, cold hand-over": waiting,
    "CTLD, cooled": functools.partial(cooled, make=tempered),
    "SGHMC, cooled": functools.partial(cooled, make=constant),
}


def grid(bounds: Range, number: int) -> list[float]:
    """Log-spaced, three digits."""
    return [float(f"{value:.3g}") for value in np.geomspace(bounds.low, bounds.high, number)]


def temperature_map(name: str, number: int) -> list[dict[str, float]]:
    strengths = STRENGTHS if name == "CTLD" else (0.0,) if name.startswith("SGHMC") else STRENGTHS[:1]
    return [
        {"learning_rate": rate, "temperature": temperature, "strength": strength}
        for rate in ((RATE,) if name in VARIANTS else TEMPERATURES)
        for strength in strengths
        for temperature in grid(TEMPERATURES[rate], number)
    ]


def rate_map(name: str, number: int, chosen: Mapping[str, float]) -> list[dict[str, float]]:
    """The `chosen` setting at all learning rates."""
    tuner = plateau_tuned.METHODS[name].space["learning_rate"]
    heavy_ball = tuner == plateau_tuned.METHODS["SGD-M"].space["learning_rate"]
    strength = {"CTLD": {"strength": STRENGTHS[0]}, "SGHMC": {"strength": 0.0}}.get(name, {})
    return [{**chosen, **strength, "learning_rate": rate} for rate in grid(HEAVY_BALL if heavy_ball else tuner, number)]


def plan(number: int, names: Sequence[str], chosen: Mapping[str, Mapping[str, float]]) -> dict[str, list[dict[str, float]]]:
    """What is run of each method, in this order."""
    rates = {name: rate_map(name, number, chosen[name]) for name in names if name in COMPARED}
    temperatures = {name: temperature_map(name, number) for name in names if name in SAMPLERS}
    return {name: temperatures.get(name, []) + rates.get(name, []) for name in names}


def tuned(rows: Sequence[Row], names: Sequence[str], **config: float | str) -> dict[str, dict[str, float]]:
    """What benchmarks/plateau_tuned.py chose for these methods. Raises a ValueError if one has not been tuned."""
    found = {name: sweep.tuned(rows, plateau_tuned.NAME, name, **config) for name in names}
    if lacking := [name for name, chosen in found.items() if chosen is None]:
        raise ValueError(f"{', '.join(lacking)} has not been tuned: run `python -m benchmarks.plateau_tuned` first.")
    return {name: chosen for name, chosen in found.items() if chosen is not None}


def held(rows: Sequence[Row], name: str) -> dict[str, float] | None:
    """What a method keeps over learning rates, as it was run last; None if it was not run."""
    settings: list[dict[str, float]] = [json.loads(row.hyperparameters) for row in rows if row.method == name]
    away = [setting for setting in settings if setting["learning_rate"] not in TEMPERATURES]  # there is the other map
    return {key: value for key, value in away[-1].items() if key != "learning_rate"} if away else None


def maps_over_rates(rows: Sequence[Row]) -> dict[str, Map]:
    kept = {name: held(rows, name) for name in COMPARED}
    found = {name: collect(rows, name, "learning_rate", **fixed) for name, fixed in kept.items() if fixed is not None}
    return {name: each for name, each in found.items() if each is not None}


def maps_over_temperatures(rows: Sequence[Row], rate: float) -> dict[str, Map]:
    collected = functools.partial(collect, rows, over="temperature", learning_rate=rate)
    found = {"SGHMC": collected("SGHMC")}
    found |= {f"CTLD, S = {strength:g}": collected("CTLD", strength=strength) for strength in STRENGTHS}
    found |= {name: collected(name) for name in VARIANTS}
    return {name: each for name, each in found.items() if each is not None}


def draw(path: pathlib.Path, rates: Mapping[str, Map], temperatures: Mapping[float, Mapping[str, Map]]) -> None:
    looks = ((plotting.VERMILLION, "-"), (plotting.ORANGE, "--"), (plotting.PURPLE, ":"))
    plain, *others = (f"CTLD, S = {strength:g}" for strength in STRENGTHS)
    shades = {"SGHMC": (plotting.SKY, "-")} | dict(zip([plain, *others], looks, strict=True))
    handovers = {
        plain: (plotting.VERMILLION, "-"),
        "CTLD, cold hand-over": (plotting.BLUE, "--"),
        "CTLD, cooled": (plotting.GREEN, ":"),
        "SGHMC": (plotting.SKY, "-"),
        "SGHMC, cooled": ("0.4", ":"),
    }
    with summary.styled():
        figure = plt.figure(figsize=(13, 15), layout="constrained")
        axes = figure.subplots(3, 2)
        for name, each in rates.items():
            draw_map(axes[0, 0], each, color=summary.COLORS[name], label=name)
        draw_maps(axes[0, 1], temperatures.get(RATE, {}), handovers)
        for place, (rate, found) in enumerate(temperatures.items()):
            draw_maps(axes[1, place], found, shades)
            draw_fates(axes[2, place], found)
            axes[1, place].set(title=f"The samplers at learning rate {rate:g}")
            axes[2, place].set(title=f"What became of each run at learning rate {rate:g}")
        axes[0, 0].set(xlabel="learning rate", title="Every method over its learning rates")
        axes[0, 1].set(title=f"Other ways to hand over to SGD-M, learning rate {RATE:g}")
        for ax in axes[:2].flat:
            ax.axhline(0.1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
            ax.set(xscale="log", ylim=(-0.03, 1.03), ylabel="test accuracy (0: diverged)")
            if ax.get_legend_handles_labels()[0]:
                ax.legend(frameon=False, fontsize="small", loc="upper right" if ax is axes[0, 0] else "upper left")
        for ax in axes[len(temperatures) and 2 :, len(temperatures) :].flat:
            ax.set_axis_off()
        figure.savefig(path, dpi=120)
        plt.close(figure)


INTRODUCTION = """\
The same network and the same methods; test accuracy, 0 for a run that diverged. Over learning rates, each method keeps the
other hyperparameter that the tuner chose for it above: {fixed}. Samplers sample for half the steps, then run SGD-M at the same
learning rate."""


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """The maps, the bands in decades, and what ends them."""
    rates = maps_over_rates(rows)
    temperatures = {rate: maps_over_temperatures(rows, rate) for rate in TEMPERATURES}
    temperatures = {rate: found for rate, found in temperatures.items() if found}
    draw(folder / "plateau.png", rates, temperatures)
    parts = [
        "## The plateau, mapped",
        INTRODUCTION.format(fixed="; ".join(f"{name} {summary.in_words(held(rows, name) or {})}" for name in rates)),
        "![Accuracy over learning rate and temperature, and the fate of every run](results/plateau.png)",
        rates_table(rates),
    ]
    if "SGD-M" in rates:
        left = np.count_nonzero(rates["SGD-M"].final > LEFT)
        parts.append(f"SGD-M left chance level in {left} of its {rates['SGD-M'].final.size} runs.")
    for rate, found in temperatures.items():
        parts += [f"Over base temperatures, at learning rate {rate:g}:", bands_table(found), bands_in_words(found)]
    return "\n\n".join(parts)


def bands_in_words(found: Mapping[str, Map]) -> str:
    """Which band is wider, and what ends each of them."""
    plain, *others = (f"CTLD, S = {strength:g}" for strength in STRENGTHS)
    pairs = [(name, "SGHMC") for name in (plain, *others)]
    pairs += [("CTLD, cold hand-over", plain), ("CTLD, cooled", plain), ("SGHMC, cooled", "SGHMC"),
              ("CTLD, cooled", "SGHMC, cooled")]  # fmt: skip
    number = max(len(each.values) for each in found.values())
    whole = {name: each for name, each in found.items() if len(each.values) == number}
    lines = [wider(whole, *pair) for pair in pairs if set(pair) <= whole.keys()]
    lines += [ends(name, each) for name, each in whole.items()]
    lines.append(lost_while_sampling([each for name, each in whole.items() if name in (plain, *others)]))
    return "\n".join(f"- {line}" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.plateau", __doc__)
    parser.set_defaults(trials=GRID, seeds=SEEDS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    images, name, steps = plateau_tuned.load(options)
    made = plateau_tuned.experiment(images, name, steps, experiment_name=NAME)
    names = options.methods or list(METHODS)
    chosen = tuned(sweep.read(options.csv), [name for name in names if name in COMPARED], data=name)
    wanted = {name: (Method({}, METHODS[name]), tried) for name, tried in plan(options.trials, names, chosen).items()}
    sweep.fixed_from_command_line(made, wanted, options, summarize)


if __name__ == "__main__":
    main()
