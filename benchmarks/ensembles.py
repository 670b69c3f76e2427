"""Is one run worth an ensemble? Images with wrong labels: one sampler's mean beside networks, ensembles and early stopping.

    python -m benchmarks.ensembles                   about ... on 2 cores
    python -m benchmarks.ensembles --data digits --steps 400 --trials 2 --seeds 2

5,000 images of MNIST, a share of whose labels is wrong, an MLP of 100 hidden units, the same number of gradients for each
method: an ensemble of four trains each network for a quarter of the steps. Each method has three hyperparameters and the same number
of trials, whose best is chosen by the accuracy on images that the training does not see, *with labels that are as wrong*: who has
wrong labels to train on has no others to choose by. The same labels stop early what is stopped early. Test labels are right.

The mean over the second half of one run is read off each run, whatever trains it, so that what noise adds to averaging can
be told. CTLD's is over the steps in its window, where it is at its own temperature, and over all, each counting alike:
`posterior.log_weights` is of the Hamiltonian coupling, and at 79,510 parameters this runs by the standardized one.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import optax
from rich.console import Console

import ctld_optax
from benchmarks.harness import data, label_noise, methods, sweep, table
from benchmarks.harness.sweep import Method, Range, Stage
from ctld_optax import baselines

CSV = pathlib.Path(__file__).parent / "results" / "ensembles.csv"
WRONG = (0.3, 0.2, 0.0)  # shares of labels, in this order
STEPS = 10_000
TRIALS = 16
TUNING_SEEDS = (1000,)
SEEDS = 4
MEMBERS = 4
KEY = ("config", "method", "stage", "hyperparameters", "seed")

RATE, ADAPTIVE = Range(3e-3, 0.3), Range(1e-4, 1e-2)  # learning rates
L2 = Range(1e-4, 3e-2)
DECAY = Range(0.03, 10.0)  # of AdamW, which multiplies it by the learning rate
TEMPERATURE = Range(1e-6, 3e-4)
POINT = {"learning_rate": RATE, "friction": methods.FRICTION, "l2": L2}
SAMPLER = {"learning_rate": RATE, "temperature": TEMPERATURE, "l2": L2}


def cosine(hyper: Mapping[str, Any], steps: int) -> Any:
    return optax.cosine_decay_schedule(hyper["learning_rate"], steps)


def sgd_m_cosine(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    return optax.sgd(cosine(hyper, steps), 1.0 - hyper["friction"])


def adamw(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    return optax.adamw(cosine(hyper, steps), 1.0 - hyper["friction"], weight_decay=hyper["weight_decay"])


def dropout(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    return optax.sgd(cosine(hyper, steps), methods.MOMENTUM)


def cyclical_sghmc(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """Zhang et al., "Cyclical Stochastic Gradient MCMC for Bayesian Deep Learning", ICLR 2020: cosines, noise at the end of each."""
    rate = lambda step: hyper["learning_rate"] * 0.5 * (1.0 + jnp.cos(jnp.pi * label_noise.cycle(step, steps)))
    heat = lambda step: jnp.where(label_noise.cycle(step, steps) < label_noise.EXPLORING, 0.0, hyper["temperature"])
    return baselines.sghmc(rate, heat, methods.MOMENTUM, key=key)


def sghmc(hyper: Mapping[str, Any], key: Any, _steps: int) -> Any:
    return baselines.sghmc(hyper["learning_rate"], hyper["temperature"], methods.MOMENTUM, key=key)


def ctld(hyper: Mapping[str, Any], key: Any, _steps: int) -> Any:
    return ctld_optax.ctld(hyper["learning_rate"], hyper["temperature"], methods.MOMENTUM, key=key)


class Way(NamedTuple):
    """How to train, and in how many runs that share the steps."""

    method: Method
    members: int = 1


WAYS = {
    "sgd": Way(Method(POINT, methods.sgd_m)),
    "cosine": Way(Method(POINT, sgd_m_cosine)),
    "adamw": Way(Method({"learning_rate": ADAPTIVE, "friction": methods.FRICTION, "weight_decay": DECAY}, adamw)),
    "ensemble": Way(Method(POINT, sgd_m_cosine), MEMBERS),
    "dropout": Way(Method({"learning_rate": RATE, "dropout": Range(0.1, 0.7), "l2": L2}, dropout)),
    "cyclical": Way(Method(SAMPLER, cyclical_sghmc)),
    "sghmc": Way(Method(SAMPLER, sghmc)),
    "ctld": Way(Method(SAMPLER, ctld)),
}


class Reading(NamedTuple):
    """A method: a way to train, and what is read off its runs."""

    way: str
    reading: str


METHODS = {
    "SGD-M": Reading("sgd", "last"),
    "SGD-M, cosine": Reading("cosine", "last"),
    "AdamW, cosine": Reading("adamw", "last"),
    "SWA": Reading("sgd", "weights"),
    "SGD-M, averaged": Reading("sgd", "mean"),
    "early stopping": Reading("sgd", "stopped"),
    "MC dropout": Reading("dropout", "passes"),
    "ensemble of 4": Reading("ensemble", "last"),
    "ensemble of 4, stopped": Reading("ensemble", "stopped"),
    "cyclical SGHMC": Reading("cyclical", "cycles"),
    "SGHMC, averaged": Reading("sghmc", "mean"),
    "CTLD, window": Reading("ctld", "window"),
    "CTLD, all steps": Reading("ctld", "mean"),
}
# Not a method: it stops where the test set says, at the setting of `early stopping`.
ORACLE, ORACLE_OF = "early stopping by an oracle", "early stopping"


class Row(NamedTuple):
    """One line of the CSV: a reading of a run. While tuning nothing is known but the accuracy on the validation set."""

    config: str  # JSON
    method: str
    stage: str
    hyperparameters: str  # JSON
    seed: int
    validation: float  # accuracy against labels that are as wrong as those to train on
    accuracy: float
    nll: float
    ece: float
    entropy: float
    entropy_out: float
    detection: float
    seconds: float

    @property
    def wrong(self) -> float:
        return json.loads(self.config)["wrong"]


class Study:
    """One share of wrong labels: what it runs, and where its rows are."""

    def __init__(self, found: label_noise.Parts, config: Mapping[str, Any], path: pathlib.Path, console: Console) -> None:
        self.found, self.config, self.path, self.console = found, sweep.as_json(config), path, console
        self.wrong = float(config["wrong"])

    def rows(self, stage: Stage) -> list[Row]:
        return [row for row in table.read(self.path, Row) if (row.config, row.stage) == (self.config, stage)]

    def run(self, train: Any, names: Sequence[str], stage: Stage, hyper: Mapping[str, float], seed: int) -> None:
        """One run, and a row for each method of `names`, which are read off it; nothing if the CSV has them."""
        setting = sweep.as_json(hyper)
        there = {row.method for row in self.rows(stage) if (row.hyperparameters, row.seed) == (setting, seed)}
        if not set(names) - there:
            return
        images = label_noise.with_wrong_labels(self.found, self.wrong, seed, with_test=stage == "report")
        began = time.perf_counter()
        read = jax.device_get(train(jax.tree.map(jnp.float32, dict(hyper)), jnp.asarray(seed), images))
        seconds = round(time.perf_counter() - began, 2)
        rows: list[Row] = []
        for name in names:
            predictions = read["oracle" if name == ORACLE else METHODS[name].reading]
            validation = label_noise.validation_accuracy(predictions, images)
            scored = label_noise.scores(predictions, self.found.test_y) if stage == "report" else label_noise.UNKNOWN
            rows.append(Row(self.config, name, stage, setting, seed, validation, *scored, seconds=seconds))
        table.add(self.path, Row, rows, key=KEY, varying=["seconds"])
        told = ", ".join(f"{row.method} {row.validation if stage == 'tune' else row.accuracy:.3f}" for row in rows)
        self.console.print(f"{self.wrong:.0%} wrong, {stage}, seed {seed}, {seconds:.0f} s: {told}")

    def chosen(self, name: str, tried: Sequence[Mapping[str, float]]) -> str:
        scored: dict[str, list[float]] = {sweep.as_json(hyper): [] for hyper in tried}
        for row in self.rows("tune"):
            if row.method == name and row.hyperparameters in scored:
                scored[row.hyperparameters].append(row.validation)
        return label_noise.best_setting(scored)

    def sweep(self, way: Way, train: Any, names: Sequence[str], trials: int, seeds: Sequence[int]) -> None:
        """Tunes these methods, which share their runs, and reports each at its own best."""
        tried = sweep.settings(way.method, trials)
        for hyper in tried:
            for seed in TUNING_SEEDS:
                self.run(train, names, "tune", hyper, seed)
        best = {name: self.chosen(name, tried) for name in names}
        if ORACLE_OF in best:
            best[ORACLE] = best[ORACLE_OF]
        for setting in dict.fromkeys(best.values()):
            for seed in seeds:
                own = [name for name, chosen in best.items() if chosen == setting]
                self.run(train, own, "report", json.loads(setting), seed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.ensembles", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist", help="the images (default %(default)s)")
    parser.add_argument("--wrong", nargs="+", type=float, default=WRONG, metavar="SHARE", help="of the labels (default %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="gradients a method may take (default %(default)s)")
    parser.add_argument("--trials", type=int, default=TRIALS, help="settings a method may try (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds reported (default %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help="only these (default all)")
    parser.add_argument("--csv", type=pathlib.Path, default=CSV, help="where results are kept (default %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder of the figure (default out)")
    options = parser.parse_args(arguments)
    mpl.use("agg")
    console = Console()
    images = label_noise.parts(data.mnist() if options.data == "mnist" else data.digits(test_share=0.5))
    table.add(options.csv, Row, [], key=KEY)
    trainers = {name: label_noise.trainer(way.method, options.steps, way.members) for name, way in WAYS.items()}
    for wrong in options.wrong:
        config = {
            "data": options.data,
            "train_images": len(images.train_y),
            "wrong": wrong,
            "steps": options.steps,
            "batch": label_noise.BATCH,
            "hidden": label_noise.HIDDEN,
        }
        study = Study(images, config, options.csv, console)
        for name, way in WAYS.items():
            names = [m for m, reading in METHODS.items() if reading.way == name and m in (options.methods or METHODS)]
            if names:
                study.sweep(way, trainers[name], names, options.trials, range(10, 10 + options.seeds))


if __name__ == "__main__":
    main()
