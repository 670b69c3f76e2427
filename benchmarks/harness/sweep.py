"""One tuner for every method, and one CSV that holds every result.

A *trial* is one training run: a method, its hyperparameters, a seed. `sweep` gives each method the same number of trials from
the same quasi-random sequence, keeps the one with the best validation figure, and trains it again on seeds that the tuner has
not seen. The rows of a trial come into the CSV in one piece when it ends, so that a sweep that was interrupted, or that
gains a method or more trials, runs what is missing and nothing else. `python -m benchmarks.paper` draws all tables and figures
from the CSV and nothing else.

An experiment is a module that is listed in benchmarks/paper.py and has

    main(arguments)                builds an `Experiment` and calls `sweep` (`run_from_command_line` does most of it)
    summarize(rows, folder)        returns its section of RESULTS.md, Markdown from "## Title" on, and draws its figures into
                                   `folder`, which the page knows as results/. `rows` are those of its newest configuration;
                                   every number in the text is computed from them. `summary`, beside this, has the helpers.
"""

import argparse
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy.stats import qmc

from benchmarks.harness import table

CSV = pathlib.Path(__file__).parents[1] / "results" / "experiments.csv"
TRIALS = 24  # a method; 24 different learning rates each
TUNING_SEEDS = (1000, 1001)  # far from those that are reported; of one alone, the best setting may be one that was lucky
REPORT_SEEDS = (10, 11, 12, 13)  # 0 to 3 were reported once, and led to wider ranges: they are not new any more

Hyperparameters = Mapping[str, float]
Stage = Literal["tune", "report"]


class Range(NamedTuple):
    """Of a hyperparameter; tried at log-uniform points."""

    low: float
    high: float


class Method(NamedTuple):
    """A way to train. `make(hyperparameters, key, steps)` is called with traced hyperparameters and a traced key."""

    space: Mapping[str, Range]
    make: Callable[[Mapping[str, Any], Any, int], Any]


class Point(NamedTuple):
    """What is measured after `step` steps, each of shape (trials,)."""

    step: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    temperature: np.ndarray  # of the noise, in units of the base temperature; 0 without noise, NaN if unknown to us


# Hyperparameters and seeds, each of shape (trials,) -> the curve of these trials, run side by side. Compiled at its first call.
Trainer = Callable[[Mapping[str, jax.Array], jax.Array], Sequence[Point]]


class Experiment(NamedTuple):
    """What is trained. `prepare(method)` is called once a method, so that tuning and report share one compiled program."""

    name: str
    metric: str
    config: Mapping[str, int | float | str]  # all that makes two results comparable
    prepare: Callable[[Method], Trainer]
    at_once: int  # trials under one vmap, best a divisor of both the trials and the report seeds
    last_step: int  # of a trial: one without the row of it was cut short
    maximize: bool = False


class Row(NamedTuple):
    """One line of the CSV: a trial at one step."""

    experiment: str
    config: str  # JSON
    method: str
    stage: str
    hyperparameters: str  # JSON
    seed: int
    step: int
    metric: str
    train: float
    validation: float
    test: float  # NaN while tuning: the tuner cannot look at it
    temperature: float
    seconds: float  # wall time of the trials that ran together, divided by their number

    @property
    def trial(self) -> tuple[str, ...]:
        """What a trial is known by. Not the commit: a change that makes old rows worthless must change the config."""
        return trial_id(self.experiment, self.config, self.method, self.stage, self.hyperparameters, self.seed)


def trial_id(experiment: str, config: str, method: str, stage: str, hyperparameters: str, seed: int) -> tuple[str, ...]:
    return (experiment, config, method, stage, hyperparameters, str(seed))


def as_json(mapping: Mapping[str, Any]) -> str:
    return json.dumps(dict(mapping), sort_keys=True)


def read(path: pathlib.Path = CSV) -> list[Row]:
    """All rows, in the order of the file."""
    return table.read(path, Row)


def add(path: pathlib.Path, rows: Iterable[Row]) -> None:
    key = ("experiment", "config", "method", "stage", "hyperparameters", "seed", "step", "metric")
    table.add(path, Row, rows, key=key, varying=["seconds"])


def settings(method: Method, trials: int) -> list[dict[str, float]]:
    """The hyperparameters to try: a scrambled Halton sequence, log-uniform in each range, three digits.

    The first `trials` points of one sequence: more trials later add to those made before, and two methods with the same
    range of learning rates try the same learning rates.
    """
    points = qmc.Halton(len(method.space), scramble=True, rng=0).random(trials)
    return [
        {
            name: float(f"{low * (high / low) ** u:.3g}")
            for (name, (low, high)), u in zip(method.space.items(), point, strict=True)
        }
        for point in points
    ]


def run(
    experiment: Experiment,
    name: str,
    trainer: Trainer,
    stage: Stage,
    wanted: Sequence[tuple[Hyperparameters, int]],
    path: pathlib.Path,
    console: Console,
) -> None:
    """Runs those of the `wanted` (hyperparameters, seed) that the CSV does not hold to the end, `at_once` at a time.

    A reported trial keeps its whole curve, a tuning trial the last point without the test figure.
    """
    config = as_json(experiment.config)
    add(path, [])  # a file that is not ours is to be heard of before anything runs
    done = {row.trial for row in read(path) if row.step >= experiment.last_step}
    missing = [
        (hyper, seed)
        for hyper, seed in wanted
        if trial_id(experiment.name, config, name, stage, as_json(hyper), seed) not in done
    ]
    for first in range(0, len(missing), experiment.at_once):
        batch = missing[first : first + experiment.at_once]
        began = time.perf_counter()
        stacked = {key: jnp.asarray([hyper[key] for hyper, _ in batch], jnp.float32) for key in batch[0][0]}
        seeds = jnp.asarray([seed for _, seed in batch])
        points = trainer(stacked, seeds)
        seconds = (time.perf_counter() - began) / len(batch)
        if points[-1].step != experiment.last_step:
            raise ValueError(f"{experiment.name} ends at step {points[-1].step}, and its last_step is {experiment.last_step}.")
        rows = [
            Row(experiment.name, config, name, stage, as_json(hyper), seed, point.step, experiment.metric,
                float(point.train[i]), float(point.validation[i]), float(point.test[i]) if stage == "report" else math.nan,
                float(point.temperature[i]), round(seconds, 2))
            for i, (hyper, seed) in enumerate(batch)
            for point in (points if stage == "report" else points[-1:])
        ]  # fmt: skip
        add(path, rows)
        console.print(f"{experiment.name}: {stage} {name}, {len(batch)} trials of {seconds:.1f} s")


def best(rows: Sequence[Row], experiment: Experiment, method: str, tried: Sequence[Hyperparameters]) -> dict[str, float]:
    """The setting of the best validation figure, mean over the tuning seeds; only those `tried` count.

    A trial that diverged is the worst of all. Raises a ValueError if a setting was not run.
    """
    config, sign = as_json(experiment.config), -1.0 if experiment.maximize else 1.0
    scores: dict[str, list[float]] = {as_json(hyper): [] for hyper in tried}
    for row in rows:
        if (row.experiment, row.config, row.method, row.stage) == (experiment.name, config, method, "tune"):
            score = sign * row.validation
            scores.get(row.hyperparameters, []).append(score if math.isfinite(score) else math.inf)
    lacking = [hyper for hyper, found in scores.items() if not found]
    if lacking:
        raise ValueError(f"{experiment.name}: {method} was not tried at {lacking[0]}. Run the tuning trials first.")
    return json.loads(min(scores, key=lambda hyper: float(np.mean(scores[hyper]))))


def sweep(
    experiment: Experiment,
    methods: Mapping[str, Method],
    *,
    path: pathlib.Path = CSV,
    trials: int = TRIALS,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    report_seeds: Sequence[int] = REPORT_SEEDS,
    console: Console | None = None,
) -> None:
    """Tunes every method with `trials` settings on the tuning seeds, then trains the best on the report seeds."""
    console = console or Console()
    if trials < 1 or not tuning_seeds or not report_seeds:
        raise ValueError(f"a sweep needs trials, got trials={trials}, seeds {list(tuning_seeds)} and {list(report_seeds)}.")
    if shared := set(tuning_seeds) & set(report_seeds):
        raise ValueError(f"the report must use new seeds, but {sorted(shared)} were used for tuning too.")
    for name, method in methods.items():
        tried, trainer = settings(method, trials), experiment.prepare(method)
        run(experiment, name, trainer, "tune", [(h, s) for h in tried for s in tuning_seeds], path, console)
        chosen = best(read(path), experiment, name, tried)
        console.print(f"{experiment.name}: {name} at its best of {trials}: {as_json(chosen)}")
        run(experiment, name, trainer, "report", [(chosen, s) for s in report_seeds], path, console)


def newest(rows: Sequence[Row], experiment: str) -> list[Row]:
    """The rows of an experiment's configuration that was written last."""
    own = [row for row in rows if row.experiment == experiment]
    return [row for row in own if row.config == own[-1].config]


def tuned(rows: Sequence[Row], experiment: str, method: str, **config: float | str) -> dict[str, float] | None:
    """The setting that was reported last for a method, in a configuration that has these entries; None if there is none."""
    found = [row for row in rows if (row.experiment, row.method, row.stage) == (experiment, method, "report")]
    found = [row for row in found if config.items() <= json.loads(row.config).items()]
    return json.loads(found[-1].hyperparameters) if found else None


def parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """The options that all experiments share."""
    made = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--full", action="store_true", help="the paper's size (hours)")
    made.add_argument("--steps", type=int, help="of each trial (default: see the top of the file)")
    made.add_argument("--trials", type=int, default=TRIALS, help="settings a method may try (default %(default)s)")
    made.add_argument("--seeds", type=int, default=len(REPORT_SEEDS), help="number of seeds reported (default %(default)s)")
    made.add_argument("--methods", nargs="+", metavar="NAME", help="only these (default all)")
    made.add_argument("--csv", type=pathlib.Path, default=CSV, help="where results are kept (default %(default)s)")
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder of the figures (default out)")
    return made


def reported(options: argparse.Namespace) -> range:
    """As many seeds as the command line asks for, from the first of `REPORT_SEEDS`."""
    return range(REPORT_SEEDS[0], REPORT_SEEDS[0] + options.seeds)


def run_from_command_line(
    experiment: Experiment,
    methods: Mapping[str, Method],
    options: argparse.Namespace,
    summarize: Callable[[Sequence[Row], pathlib.Path], str],
) -> None:
    """Sweeps, then prints the section and draws the figures. Ctrl-C ends it early; the same command goes on from there."""
    console = Console()
    wanted = {name: methods[name] for name in options.methods} if options.methods else methods

    def everything() -> None:
        seeds = reported(options)
        sweep(experiment, wanted, path=options.csv, trials=options.trials, report_seeds=seeds, console=console)

    _run_and_tell(everything, experiment, options, summarize, console)


def fixed_from_command_line(
    experiment: Experiment,
    methods: Mapping[str, tuple[Method, Sequence[Hyperparameters]]],
    options: argparse.Namespace,
    summarize: Callable[[Sequence[Row], pathlib.Path], str],
    *,
    seeds: Sequence[int] | None = None,
) -> None:
    """The same for methods with given settings, all of them reported on `seeds` (default 0, 1, ...): nothing is tuned."""
    console = Console()
    seeds = range(options.seeds) if seeds is None else seeds

    def everything() -> None:
        for name, (method, tried) in methods.items():
            wanted = [(hyper, seed) for hyper in tried for seed in seeds]
            run(experiment, name, experiment.prepare(method), "report", wanted, options.csv, console)

    _run_and_tell(everything, experiment, options, summarize, console)


def _run_and_tell(
    everything: Callable[[], None],
    experiment: Experiment,
    options: argparse.Namespace,
    summarize: Callable[[Sequence[Row], pathlib.Path], str],
    console: Console,
) -> None:
    try:
        everything()
    except KeyboardInterrupt:
        console.print("Interrupted: the trials that ended are in the CSV, and the same command goes on from there.")
    rows = newest(read(options.csv), experiment.name)
    if any(row.stage == "report" for row in rows):
        console.print(summarize(rows, options.out), markup=False, soft_wrap=True)
