"""Whether one run on a rising temperature finds the base temperature to take, on six jobs.

    python -m benchmarks.temperature_range

A ramp over three decades, as long as the sampling phase, at constant temperature; `diagnostics.suggest_temperature` reads the
base temperature from its losses. Beside it a grid of base temperatures, each for a whole run of CTLD and then SGD-M. A grid
point is in the band if its mean ends within 10 % of the best loss or perplexity, or within 3 points of the best accuracy. Every
seed of the ramp makes a suggestion of its own. The jobs are small: the plateau of `benchmarks.plateau` at its two learning
rates, for 6,000 steps; the LSTM of `benchmarks.char_rnn`, for 1,200; the first layer of the autoencoder of `benchmarks.sda`,
for 1,440; and, for 1,200, a transformer and a CNN on the digits.

Runs are kept in a CSV, and only what it lacks is run.
"""

import argparse
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

import ctld_optax
from benchmarks import plateau_tuned, sda
from benchmarks.harness import data, files, methods, small_networks, summary, table, training
from benchmarks.harness.small_networks import Network
from benchmarks.harness.sweep import Method
from ctld_optax import PolynomialTempering, diagnostics, plotting

CSV = pathlib.Path(__file__).parent / "results" / "temperature_range.csv"
GRID = 7  # base temperatures, three a decade
RAMP_SEEDS, GRID_SEEDS = 3, 2
STRENGTH = PolynomialTempering().strength
RECORDED = 240  # mean losses of a ramp that the CSV keeps
LOSS_WITHIN, ACCURACY_WITHIN = 1.1, 0.03


class Job(NamedTuple):
    """How to make the network, and where to look: the ramp spans three decades from `low` on, the grid two from `coldest`."""

    make: Callable[[], Network]
    low: float
    coldest: float

    @property
    def high(self) -> float:
        return 1_000.0 * self.low


def plateau(rate: float) -> Callable[[], Network]:
    return lambda: Network(plateau_tuned.task(data.digits()), rate, 6_000, "accuracy")


def autoencoder() -> Network:
    task = sda.task(0, sda.WIDTHS, data.mnist(num_test=2 * sda.HELD_OUT))
    return Network(task, 8.21, 2 * sda.STEPS, "mse")


def shorter(make: Callable[[], Network], steps: int) -> Callable[[], Network]:
    return lambda: make()._replace(steps=steps)


JOBS = {
    "plateau, lr 0.01": Job(plateau(0.01), 1e-5, 1e-5),
    "plateau, lr 0.002": Job(plateau(0.002), 1e-4, 1e-4),
    "LSTM": Job(shorter(small_networks.lstm, 1_200), 1e-6, 1e-6),
    "autoencoder": Job(autoencoder, 1e-7, 1e-7),
    "transformer": Job(shorter(small_networks.transformer, 1_200), 1e-5, 3e-6),
    "CNN": Job(shorter(small_networks.cnn, 1_200), 1e-4, 1e-5),
}


class Row(NamedTuple):
    """A run: on the ramp, or at one base temperature."""

    job: str
    kind: str
    temperature: float  # of the grid; 0 for a ramp
    steps: int  # of the whole run, or of the ramp
    seed: int
    metric: str
    test: float  # NaN for a ramp, and if the run diverged
    losses: str  # JSON: mean losses of equal stretches of the ramp
    suggestion: float  # NaN if there is none, and for the grid
    findings: str  # names
    seconds: float  # wall time of the runs that ran together, divided by their number


KEY = ("job", "kind", "temperature", "steps", "seed")


def grid(coldest: float) -> list[float]:
    return [float(f"{coldest * 10 ** (i / 3):.2g}") for i in range(GRID)]


def run(name: str, path: pathlib.Path, console: Console, *, steps: int | None = None) -> None:
    """What the CSV lacks of one job."""
    table.add(path, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    job = JOBS[name]
    network = job.make()
    steps = steps or network.steps
    done = {tuple(getattr(row, column) for column in KEY) for row in table.read(path, Row)}
    sampling = methods.sampling_steps(steps)
    ramps = [seed for seed in range(RAMP_SEEDS) if (name, "ramp", 0.0, sampling, seed) not in done]
    if ramps:
        table.add(path, Row, on_the_ramp(name, network, sampling, ramps), key=KEY, varying=["seconds"])
        console.print(f"{name}: {len(ramps)} ramps")
    runs = [(t, seed) for t in grid(job.coldest) for seed in range(GRID_SEEDS) if (name, "grid", t, steps, seed) not in done]
    if runs:
        table.add(path, Row, on_the_grid(name, network, steps, runs), key=KEY, varying=["seconds"])
        console.print(f"{name}: {len(runs)} runs of the grid")


def on_the_ramp(name: str, network: Network, steps: int, seeds: Sequence[int]) -> list[Row]:
    began = time.perf_counter()
    schedule = ctld_optax.temperature_ramp(JOBS[name].low, JOBS[name].high, steps)

    def make(_: Any, key: Any, _steps: int) -> Any:
        return ctld_optax.ctld(network.learning_rate, schedule, methods.MOMENTUM, key=key, tempering=None)

    fit = training.Fit(network.task, Method({}, make), steps=steps, points=1, record=lambda loss, _: loss)
    ((_, _, losses),) = fit.follow({}, jnp.asarray(seeds))
    temperatures = np.asarray(jax.vmap(schedule)(jnp.arange(steps)))
    seconds = round((time.perf_counter() - began) / len(seeds), 2)
    rows: list[Row] = []
    for seed, own in zip(seeds, np.asarray(losses), strict=True):
        found = diagnostics.suggest_temperature(own, temperatures, STRENGTH)
        means = [float(f"{stretch.mean():.4g}") for stretch in np.array_split(own, min(RECORDED, own.size))]
        suggestion = math.nan if found.temperature is None else found.temperature
        names = " ".join(finding.name for finding in found.findings)
        rows.append(
            Row(name, "ramp", 0.0, steps, seed, network.metric, math.nan, json.dumps(means), suggestion, names, seconds)
        )
    return rows


def on_the_grid(name: str, network: Network, steps: int, runs: Sequence[tuple[float, int]]) -> list[Row]:
    began = time.perf_counter()

    def make(hyper: Any, key: Any, steps: int) -> Any:
        return methods.two_phases({**hyper, "learning_rate": network.learning_rate}, key, steps)

    fit = training.Fit(network.task, Method({}, make), steps=steps, points=1)
    temperatures, seeds = (jnp.asarray(column) for column in zip(*runs, strict=True))
    _, curve = fit({"temperature": temperatures}, seeds)
    seconds = round((time.perf_counter() - began) / len(runs), 2)
    return [
        Row(name, "grid", temperature, steps, seed, network.metric, float(end), "[]", math.nan, "", seconds)
        for (temperature, seed), end in zip(runs, curve[-1].test, strict=True)
    ]


class Found(NamedTuple):
    """What the rows of a job say. `band`: the coldest and the hottest temperature of the stretch around the best one."""

    temperatures: np.ndarray
    ends: np.ndarray  # means over the seeds, infinitely bad if one diverged
    band: tuple[float, float]
    suggestions: np.ndarray
    best: int  # of them
    is_accuracy: bool

    @property
    def hits(self) -> np.ndarray:
        return (self.band[0] <= self.suggestions) & (self.suggestions <= self.band[1])

    @property
    def off(self) -> np.ndarray:
        """By which factor a suggestion lies outside the band, 1 within."""
        return np.maximum(np.maximum(self.band[0] / self.suggestions, self.suggestions / self.band[1]), 1.0)


def read(rows: Sequence[Row]) -> Found:
    """Of the rows of one job. A step of the grid reaches half of the way to its neighbours."""
    on_grid = [row for row in rows if row.kind == "grid"]
    is_accuracy = on_grid[0].metric == "accuracy"
    worst = 0.0 if is_accuracy else math.inf
    temperatures = np.unique([row.temperature for row in on_grid])
    by_temperature = [[row.test for row in on_grid if row.temperature == t] for t in temperatures]
    ends = np.array([np.nan_to_num(own, nan=worst, posinf=math.inf).mean() for own in by_temperature])
    best = int(np.argmax(ends)) if is_accuracy else int(np.argmin(ends))
    good = ends >= ends[best] - ACCURACY_WITHIN if is_accuracy else ends <= ends[best] * LOSS_WITHIN
    low = high = best
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(good) - 1 and good[high + 1]:
        high += 1
    half = 10 ** (1 / 6)
    suggestions = np.array([row.suggestion for row in rows if row.kind == "ramp"])
    return Found(temperatures, ends, (temperatures[low] / half, temperatures[high] * half), suggestions, best, is_accuracy)


def show(rows: Sequence[Row]) -> Table:
    made = Table("job", "band", "best end, at", "suggested, each seed", "in the band", "else off by", "findings")
    for name, own in by_job(rows).items():
        found = read(own)
        findings = sorted({row.findings for row in own if row.findings})
        suggested = ["none" if math.isnan(t) else f"{t:.1e}" for t in found.suggestions]
        missed = [f"{off:.1f}" for off, hit in zip(found.off, found.hits, strict=True) if not hit and np.isfinite(off)]
        made.add_row(
            name, f"{found.band[0]:.1e} to {found.band[1]:.1e}",
            f"{found.ends[found.best]:.3g}, {found.temperatures[found.best]:.1e}", " ".join(suggested),
            f"{found.hits.sum()} of {found.hits.size}", " ".join(missed), ", ".join(findings),
        )  # fmt: skip
    return made


def by_job(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Those jobs of which both parts are there."""
    own = {name: [row for row in rows if row.job == name] for name in JOBS}
    return {name: each for name, each in own.items() if {row.kind for row in each} == {"ramp", "grid"}}


def draw(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """A column a job: the ramp's losses above, what the grid's runs ended with below."""
    jobs = by_job(rows)
    with summary.styled():
        figure, axes = plt.subplots(
            2, len(jobs), figsize=(3.4 * len(jobs), 5.6), layout="constrained", squeeze=False, sharex="col"
        )
        for (top, bottom), (name, own) in zip(axes.T, jobs.items(), strict=True):
            found, job = read(own), JOBS[name]
            ramps = np.asarray([json.loads(row.losses) for row in own if row.kind == "ramp"], np.float64)
            at = np.geomspace(job.low, job.high, ramps.shape[1])
            top.plot(at, ramps.T, color=plotting.VERMILLION, linewidth=0.8)
            top.set(title=name, xscale="log", ylim=(0.0, 1.6 * ramps[:, : max(at.size // 20, 1)].mean()))
            ends = [(row.temperature, row.test) for row in own if row.kind == "grid"]
            bottom.plot(*zip(*ends, strict=True), ".", color=plotting.BLUE)
            finite = np.where(np.isfinite(found.ends), found.ends, np.nan)
            bottom.plot(found.temperatures, finite, color=plotting.BLUE, linewidth=1.4)
            bottom.axvspan(*found.band, color=plotting.SKY, alpha=0.25, linewidth=0)
            for suggestion in found.suggestions[np.isfinite(found.suggestions)]:
                bottom.axvline(suggestion, color=plotting.VERMILLION, linewidth=1.0, linestyle="--")
            bottom.set(xlabel="temperature  [units of the loss]", ylabel=own[0].metric)
            if not found.is_accuracy:
                bottom.set(ylim=(0.9 * np.nanmin(finite), 2.0 * np.nanmin(finite)))
        axes[0, 0].set_ylabel("loss on the ramp")
        files.save_figure(figure, path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.temperature_range", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", nargs="+", choices=JOBS, metavar="NAME", help="only these (default all)")
    parser.add_argument("--steps", type=int, help="of each run (default: the job's)")
    parser.add_argument("--csv", type=pathlib.Path, default=CSV, help="where results are kept (default %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder of the figure (default out)")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 4:
        parser.error(f"--steps must be at least 4, got {options.steps}")
    mpl.use("agg")
    console = Console(width=max(150, Console().width))  # the table needs it, also where the output is no terminal
    try:
        for name in options.jobs or JOBS:
            run(name, options.csv, console, steps=options.steps)
    except KeyboardInterrupt:
        console.print("Interrupted: the runs that ended are in the CSV, and the same command goes on from there.")
    rows = table.read(options.csv, Row)
    if by_job(rows):
        console.print(show(rows))
        draw(options.out / "temperature_range.png", rows)
        console.print(f"wrote {options.out / 'temperature_range.png'}")


if __name__ == "__main__":
    main()
