"""The base temperatures at which a sampler gets a very deep network off its plateau: constant against continuously tempered.

    python -m benchmarks.plateau            scikit-learn's digits, 2,400 steps a trial, about 12 minutes on 2 cores
    python -m benchmarks.plateau --full     the size of `benchmarks.plateau_tuned --full`

Is it the moving temperature, or just the noise? Nothing is tuned here: every point of the grid is reported, and a run that
diverges counts as one that did not learn. A second part asks what ends the band of working temperatures on either side, and
whether the moment of the hand-over, or clipped gradients, matter. All methods side by side: benchmarks/plateau_tuned.py and
benchmarks/plateau_rates.py.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import optax
from matplotlib import pyplot as plt

import ctld_optax
from benchmarks import plateau_tuned
from benchmarks.harness import files, methods, summary, sweep
from benchmarks.harness.handover import hand_over_when
from benchmarks.harness.plateau_maps import (
    Map,
    bands_table,
    collect,
    draw_fates,
    draw_map,
    ends,
    grid,
    lost_while_sampling,
    wider,
)
from benchmarks.harness.sweep import Method, Range, Row
from ctld_optax import plotting

NAME = "plateau"
GRID = 10  # temperatures
SEEDS = 6

# Learning rate -> base temperatures, as many decades around those that work.
TEMPERATURES = {0.01: Range(1e-6, 3e-4), 0.002: Range(1e-5, 3e-3)}
RATE = 0.01  # of the variants
STRENGTHS = (0.85, 0.95, 0.99)
VARIANTS = ("CTLD, cold hand-over", "CTLD, cooled", "SGHMC, cooled", "CTLD, clipped", "SGHMC, clipped")
CLIP = 1.0  # global norm of the gradient, in both phases
HOTTER = Range(1e-5, 3e-3)  # for clipped gradients: as many decades, but the band goes on where it ends without


def tempered(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    tempering = ctld_optax.PolynomialTempering(strength=hyper["strength"])
    return methods.two_phases(hyper, key, steps, tempering=tempering)


def cooled(hyper: Mapping[str, Any], key: Any, steps: int, *, make: Callable[..., Any]) -> Any:
    """The last fifth of the sampling phase takes the base temperature linearly to zero."""
    end = methods.sampling_steps(steps)

    def temperature(count: Any) -> Any:
        return hyper["temperature"] * jnp.clip((end - count) / (0.2 * end), 0.0, 1.0)

    return make({**hyper, "temperature": temperature}, key, steps)


def clipped(hyper: Mapping[str, Any], key: Any, steps: int, *, make: Callable[..., Any]) -> Any:
    """The noise is not clipped: it is the sampler's own."""
    return optax.chain(optax.clip_by_global_norm(CLIP), make(hyper, key, steps))


def waiting(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """The hand-over waits until alpha is in the window of the base temperature."""
    rate, end = hyper["learning_rate"], methods.sampling_steps(steps)
    tempering = ctld_optax.PolynomialTempering(strength=hyper["strength"])
    sampler = ctld_optax.ctld(rate, hyper["temperature"], methods.MOMENTUM, key=key, tempering=tempering)
    return hand_over_when(sampler, rate, methods.MOMENTUM, end, lambda alpha: jnp.abs(alpha) <= tempering.delta)


METHODS = {
    "SGHMC": methods.sghmc,
    "CTLD": tempered,
    "CTLD, cold hand-over": waiting,
    "CTLD, cooled": functools.partial(cooled, make=tempered),
    "SGHMC, cooled": functools.partial(cooled, make=methods.sghmc),
    "CTLD, clipped": functools.partial(clipped, make=tempered),
    "SGHMC, clipped": functools.partial(clipped, make=methods.sghmc),
}


def settings(name: str, number: int) -> list[dict[str, float]]:
    strengths = STRENGTHS if name == "CTLD" else (0.0,) if name.startswith("SGHMC") else STRENGTHS[:1]
    return [
        {"learning_rate": rate, "temperature": temperature, "strength": strength}
        for rate in ((RATE,) if name in VARIANTS else TEMPERATURES)
        for strength in strengths
        for temperature in grid(HOTTER if name.endswith("clipped") else TEMPERATURES[rate], number)
    ]


def maps(rows: Sequence[Row], rate: float) -> dict[str, Map]:
    collected = functools.partial(collect, rows, over="temperature", learning_rate=rate)
    found = {"SGHMC": collected("SGHMC")}
    found |= {f"CTLD, S = {strength:g}": collected("CTLD", strength=strength) for strength in STRENGTHS}
    found |= {name: collected(name) for name in VARIANTS}
    return {name: each for name, each in found.items() if each is not None}


def draw(path: pathlib.Path, found: Mapping[float, Mapping[str, Map]]) -> None:
    """A row a learning rate: accuracy, and the fate of each run. Last the variants."""
    looks = ((plotting.VERMILLION, "-"), (plotting.ORANGE, "--"), (plotting.PURPLE, ":"))
    plain, *others = (f"CTLD, S = {strength:g}" for strength in STRENGTHS)
    samplers = {"SGHMC": (plotting.SKY, "-")} | dict(zip([plain, *others], looks, strict=True))
    handovers = {
        plain: (plotting.VERMILLION, "-"),
        "CTLD, cold hand-over": (plotting.BLUE, "--"),
        "CTLD, cooled": (plotting.GREEN, ":"),
        "SGHMC": (plotting.SKY, "-"),
        "SGHMC, cooled": ("0.4", ":"),
    }
    clips = {"SGHMC, clipped": (plotting.SKY, "-"), "CTLD, clipped": (plotting.VERMILLION, "-")}
    panels = [
        *((f"The samplers at learning rate {rate:g}", each, samplers) for rate, each in found.items()),
        (f"Other ways to hand over, learning rate {RATE:g}", found.get(RATE, {}), handovers),
        (f"Gradients clipped at a norm of {CLIP:g}, learning rate {RATE:g}", found.get(RATE, {}), clips),
    ]
    with summary.styled():
        figure, axes = plt.subplots(len(panels), 2, figsize=(13, 4.8 * len(panels)), layout="constrained", squeeze=False)
        for (left, right), (title, each, shown) in zip(axes, panels, strict=True):
            drawn = {name: each[name] for name in shown if name in each}
            for name, one in drawn.items():
                color, line = shown[name]
                draw_map(left, one, color=color, linestyle=line, label=name)
            left.axhline(0.1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
            left.set(xscale="log", ylim=(-0.03, 1.03), xlabel="base temperature  [nats]", ylabel="test accuracy (0: diverged)")
            left.set(title=title)
            if drawn:
                left.legend(fontsize="small", loc="best")
                draw_fates(right, drawn)
        handles, labels = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=len(labels))
        files.save_figure(figure, path, dpi=110)


INTRODUCTION = """\
The same network; test accuracy, 0 for a run that diverged. Samplers sample for half the steps, then run SGD-M at the same
learning rate."""


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """The bands in decades, and what ends them."""
    found = {rate: maps(rows, rate) for rate in TEMPERATURES}
    found = {rate: each for rate, each in found.items() if each}
    draw(folder / "plateau.png", found)
    parts = [
        "## The plateau over base temperatures",
        INTRODUCTION,
        "![Accuracy over base temperatures, and the fate of every run](results/plateau.png)",
    ]
    for rate, each in found.items():
        parts += [f"### Learning rate {rate:g}", bands_table(each), bands_in_words(each)]
    parts.append(between_rates(found))
    return "\n\n".join(filter(None, parts))


def bands_in_words(found: Mapping[str, Map]) -> str:
    """Which band is wider, and what ends each of them."""
    plain, *others = (f"CTLD, S = {strength:g}" for strength in STRENGTHS)
    pairs = [(name, "SGHMC") for name in (plain, *others)]
    pairs += [("CTLD, cold hand-over", plain), ("CTLD, cooled", plain), ("SGHMC, cooled", "SGHMC"),
              ("CTLD, cooled", "SGHMC, cooled"), ("CTLD, clipped", plain), ("SGHMC, clipped", "SGHMC"),
              ("CTLD, clipped", "SGHMC, clipped")]  # fmt: skip
    number = max(len(each.values) for each in found.values())
    whole = {name: each for name, each in found.items() if len(each.values) == number}
    lines = [wider(whole, *pair) for pair in pairs if set(pair) <= whole.keys()]
    lines += [ends(name, each) for name, each in whole.items()]
    lines.append(lost_while_sampling([each for name, each in whole.items() if name in (plain, *others)]))
    return "\n".join(f"- {line}" for line in lines)


def between_rates(found: Mapping[float, Mapping[str, Map]]) -> str:
    """Whether a band is wider at a smaller learning rate."""
    slow, fast = min(TEMPERATURES), max(TEMPERATURES)
    both = {f"{name} at {rate:g}": each for rate, by_name in found.items() for name, each in by_name.items()}
    pairs = [(f"{name} at {slow:g}", f"{name} at {fast:g}") for name in found.get(slow, {})]
    lines = [wider(both, *pair) for pair in pairs if set(pair) <= both.keys()]
    return "\n".join(["### The learning rates against each other", "", *(f"- {line}" for line in lines)]) if lines else ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.plateau", __doc__)
    parser.set_defaults(trials=GRID, seeds=SEEDS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    made = plateau_tuned.experiment(*plateau_tuned.load(options), experiment_name=NAME)
    wanted = {name: (Method({}, METHODS[name]), settings(name, options.trials)) for name in options.methods or METHODS}
    sweep.fixed_from_command_line(made, wanted, options, summarize)


if __name__ == "__main__":
    main()
