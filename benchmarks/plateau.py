"""Where each method gets a very deep network off its plateau: a map over learning rates and over base temperatures.

    python -m benchmarks.plateau            scikit-learn's digits, 2,400 steps a trial, about 20 minutes on 2 cores
    python -m benchmarks.plateau --full     5,000 images of MNIST, 10,000 steps a trial

The network of benchmarks/deep_mlp.py starts on a plateau that SGD-M never leaves. Nothing is tuned here: every point of the two
grids is reported, and a run that diverges counts as one that did not learn. A third part asks what ends the band of working
temperatures on either side, and whether the moment of the hand-over matters.
"""

import dataclasses
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
from matplotlib.axes import Axes
from rich.console import Console

import ctld_optax
from benchmarks import data, deep_mlp, methods, summary, sweep, training
from benchmarks.handover import hand_over_when
from benchmarks.sweep import Experiment, Method, Point, Range, Row
from ctld_optax import baselines, plotting

NAME = "plateau"
STEPS, FULL_STEPS = 2_400, 10_000
BATCH = 32
POINTS = 4  # of a curve; the second is the end of the sampling phase
AT_ONCE = 12  # trials under one vmap; more are no faster on a CPU
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

LEFT = 0.2  # accuracy that shows that a run has left chance level: ten classes of nearly one size
TRAINED = 0.9  # accuracy that counts as working
MOMENTUM = methods.MOMENTUM
SHARE = methods.SAMPLING_SHARE
FATES = ("trained", "on the way", "never left", "lost again", "diverged")
FATE_COLORS = dict(zip(FATES, (plotting.GREEN, plotting.SKY, "0.75", plotting.ORANGE, plotting.VERMILLION), strict=True))
VARIANTS = ("CTLD, cold hand-over", "CTLD, cooled", "SGHMC, cooled")


def sampler(hyper: Mapping[str, Any], key: Any, *, tempered: bool = True, **changes: Any) -> Any:
    tempering = ctld_optax.PolynomialTempering(strength=hyper["strength"]) if tempered else None
    arguments = {"temperature": hyper["temperature"], "tempering": tempering} | changes
    return ctld_optax.ctld(hyper["learning_rate"], momentum=MOMENTUM, key=key, **arguments)


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
    return baselines.santa(hyper["learning_rate"], key=key, exploration_steps=round(SHARE * steps), **SANTA)


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


def plan(number: int) -> list[tuple[str, list[dict[str, float]]]]:
    """What is run, in this order."""
    parts = [(name, temperature_map(name, number)) for name in ("SGHMC", "CTLD")]
    parts += [(name, rate_map(name, number)) for name in COMPARED]
    return parts + [(name, temperature_map(name, number)) for name in VARIANTS]


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
    def prepare(method: Method) -> sweep.Trainer:
        fit = training.Fit(task(images), method, steps=steps, points=POINTS)

        def train(hyper: Mapping[str, jax.Array], seeds: jax.Array) -> Sequence[Point]:
            return fit(hyper, seeds)[1]

        return train

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
        fine = np.linspace(*np.log10(self.values[[0, -1]]), 20_001)
        span = fine[-1] - fine[0]
        return np.array([span * np.mean(np.interp(fine, np.log10(self.values), row) >= threshold) for row in self.final.T])


def collect(rows: Sequence[Row], method: str, over: str, **fixed: float) -> Map | None:
    """The map of a method over one hyperparameter, the others `fixed`; only values that all seeds have."""
    found: dict[float, dict[int, dict[int, float]]] = {}
    for row in rows:
        hyper: dict[str, float] = json.loads(row.hyperparameters)
        if row.method == method and over in hyper and all(hyper.get(name) == value for name, value in fixed.items()):
            found.setdefault(hyper[over], {}).setdefault(row.seed, {})[row.step] = row.test
    if not found:
        return None
    seeds = sorted({seed for by_seed in found.values() for seed in by_seed})
    values = sorted(value for value, by_seed in found.items() if len(by_seed) == len(seeds))
    curves = [[[found[value][seed][step] for step in sorted(found[value][seed])] for seed in seeds] for value in values]
    return Map(np.asarray(values), np.asarray(curves))


def maps_over_rates(rows: Sequence[Row]) -> dict[str, Map]:
    found = {
        name: collect(rows, name, "learning_rate", **({"temperature": FIXED[name]} if name in FIXED else {}))
        for name in COMPARED
    }
    # The map over temperatures has runs at one learning rate; a map over rates has several.
    return {name: each for name, each in found.items() if each is not None}


def maps_over_temperatures(rows: Sequence[Row]) -> dict[str, Map]:
    found = {"SGHMC": collect(rows, "SGHMC", "temperature", learning_rate=RATE)}
    for strength in STRENGTHS:
        found[f"CTLD, S = {strength:g}"] = collect(rows, "CTLD", "temperature", learning_rate=RATE, strength=strength)
    for name in VARIANTS:
        found[name] = collect(rows, name, "temperature", learning_rate=RATE)
    return {name: each for name, each in found.items() if each is not None}


def summarize(rows: Sequence[Row], folder: pathlib.Path) -> str:
    """The maps, the bands in decades, and what ends them."""
    return "TODO"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep.parser("benchmarks.plateau", __doc__)
    parser.set_defaults(trials=GRID, seeds=SEEDS)
    options = parser.parse_args(arguments)
    mpl.use("agg")
    console = Console()
    images = data.mnist() if options.full else data.digits()
    own = experiment(images, "mnist" if options.full else "digits", options.steps or (FULL_STEPS if options.full else STEPS))
    trainers: dict[str, sweep.Trainer] = {}
    try:
        for name, settings in plan(options.trials):
            if not options.methods or name in options.methods:
                trainer = trainers.setdefault(name, own.prepare(METHODS[name]))
                wanted = [(hyper, seed) for hyper in settings for seed in range(options.seeds)]
                sweep.run(own, name, trainer, "report", wanted, options.csv, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the trials that ended are in the CSV, and the same command goes on from there.")
    rows = sweep.newest(sweep.read(options.csv), NAME)
    if rows:
        options.out.mkdir(parents=True, exist_ok=True)
        console.print(summarize(rows, options.out), markup=False)


if __name__ == "__main__":
    main()
