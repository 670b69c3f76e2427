"""Alpha driven without the loss, by the kinetic energy or by the work of the gradient, against the loss itself.

    python -m benchmarks.value_free

Does alpha still visit all of its range alike, and do the networks learn as they do with the loss? Four networks: that of
`benchmarks.digits`, with its settings and its minibatches; the character LSTM of `benchmarks.char_rnn`; a small CNN and a small
transformer on the same digits. Half of the steps sample, then comes SGD-M. Nothing is tuned: learning rates are those of the
network's SGD-M or of its own benchmark, temperatures those of its own benchmark or 2/d of a tenth of the loss at the start.

- "loss" is `coupling="standardized"`, driven by the loss and the kinetic energy;
- "kinetic" is `coupling="kinetic"`;
- "work", on the digits only, has in place of the loss the running sum of gradient times update.

Runs are kept in a CSV, and only what it lacks is run.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from benchmarks import digits
from benchmarks.harness import data, methods, small_networks, summary, table, training
from benchmarks.harness.small_networks import Network
from ctld_optax import PolynomialTempering, diagnostics

CSV = pathlib.Path(__file__).parent / "results" / "value_free.csv"
SEEDS = 8
POINTS = 4  # of a curve; the second is the hand-over
BINS = 15
TEMPERING = PolynomialTempering()
SHARE_WITHIN, KL_BELOW = 0.05, 0.03  # what counts as visiting all of alpha's range alike


class Row(NamedTuple):
    """A run."""

    network: str
    drive: str
    learning_rate: float
    temperature: float
    steps: int
    seed: int
    metric: str
    train_loss: float  # of the LSTM its perplexity
    test: float
    window_share: float  # of the sampling steps
    alpha_counts: str  # JSON: sampling steps in each of 15 equal bins of alpha
    seconds: float  # wall time of the seeds that ran together, divided by their number


KEY = ("network", "drive", "learning_rate", "temperature", "steps", "seed")


class WorkState(NamedTuple):
    """Of `by_work`: the state of the two phases, and the work so far."""

    inner: Any
    work: jax.Array


def by_work(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """CTLD, then SGD-M, with the running sum of gradient times update in the place of the loss."""
    inner = methods.two_phases(hyper, key, steps)

    def init(params: Any) -> WorkState:
        return WorkState(inner.init(params), jnp.zeros(()))

    def update(grads: Any, state: WorkState, params: Any = None, **_: Any) -> tuple[Any, WorkState]:
        updates, inner_state = inner.update(grads, state.inner, params, value=state.work)
        return updates, WorkState(inner_state, state.work + optax.tree.vdot(grads, updates))

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


DRIVES: dict[str, Callable[..., Any]] = {
    "loss": methods.two_phases,
    "kinetic": functools.partial(methods.two_phases, coupling="kinetic"),
    "work": by_work,
}


def of_the_digits() -> Network:
    return Network(digits.task(data.digits()), digits.FIXED["learning_rate"], 4_000, "accuracy")


# How to make the network; its temperatures; how it may be driven; its own minibatches, if the benchmark has them.
NETWORKS: dict[str, tuple[Callable[[], Network], tuple[float, ...], tuple[str, ...]]] = {
    "digits": (of_the_digits, digits.METHODS["CTLD"][1].chosen, ("loss", "kinetic", "work")),
    "CNN": (small_networks.cnn, (2.4e-4,), ("loss", "kinetic")),
    "transformer": (small_networks.transformer, (2.5e-5,), ("loss", "kinetic")),
    "LSTM": (small_networks.lstm, (8.31e-6,), ("loss", "kinetic")),
}


def run(name: str, seeds: Sequence[int], steps: int | None, path: pathlib.Path, console: Console) -> None:
    """What the CSV lacks of one network, all seeds of a setting at once."""
    table.add(path, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    make, temperatures, drives = NETWORKS[name]
    network = make()
    steps = steps or network.steps
    for temperature in temperatures:
        for drive in drives:
            done = {tuple(getattr(row, column) for column in KEY) for row in table.read(path, Row)}
            setting = (name, drive, network.learning_rate, temperature, steps)
            missing = [seed for seed in seeds if (*setting, seed) not in done]
            if not missing:
                continue
            began = time.perf_counter()
            hyper = {"learning_rate": network.learning_rate, "temperature": temperature}
            curve, alpha = train(name, network.task, digits.at(hyper, DRIVES[drive]), missing, steps)
            seconds = round((time.perf_counter() - began) / len(missing), 2)
            ends = [(float(curve[-1].train[i]), float(curve[-1].test[i])) for i in range(len(missing))]
            rows = [
                Row(*setting, seed, network.metric, *end, *occupation(walk), seconds)
                for seed, end, walk in zip(missing, ends, alpha, strict=True)
            ]
            table.add(path, Row, rows, key=KEY, varying=["seconds"])
            console.print(f"{name}, {drive}, T = {temperature:g}: {len(rows)} runs of {seconds:.1f} s")


def train(name: str, task: training.Task, method: Any, seeds: Sequence[int], steps: int) -> tuple[list[Any], np.ndarray]:
    """The curve, and alpha of each sampling step, shape (seeds, sampling steps)."""

    def record(_loss: jax.Array, state: Any) -> jax.Array:
        return diagnostics.snapshot(state).alpha

    is_digits = name == "digits"
    fit = training.Fit(task, method, steps=steps, points=POINTS, record=record, compile_start=not is_digits)
    replicas = jnp.asarray(seeds)
    frozen = jax.vmap(functools.partial(digits.minibatch_keys, steps=steps))(replicas) if is_digits else ()
    followed = list(fit.follow({}, replicas, frozen))
    alpha = np.concatenate([np.asarray(recorded) for _, _, recorded in followed], axis=-1)
    return [point for _, point, _ in followed], alpha[:, : methods.sampling_steps(steps)]


def occupation(alpha: np.ndarray) -> tuple[float, str]:
    """The share in the window, and how often each bin was visited."""
    counts, _ = np.histogram(alpha, BINS, (-TEMPERING.delta_prime, TEMPERING.delta_prime))
    return diagnostics.fraction_in_window(alpha, TEMPERING.delta), json.dumps(counts.tolist())


def divergence(rows: Sequence[Row]) -> float:
    """From uniform, of all runs together."""
    counts = np.sum([json.loads(row.alpha_counts) for row in rows], axis=0)
    edges = np.linspace(-TEMPERING.delta_prime, TEMPERING.delta_prime, BINS + 1)
    return diagnostics.alpha_kl_from_uniform(np.repeat((edges[1:] + edges[:-1]) / 2.0, counts), TEMPERING.delta_prime, BINS)


def show(rows: Sequence[Row]) -> Table:
    """A line a setting, all seeds together."""
    uniform = TEMPERING.delta / TEMPERING.delta_prime
    made = Table("network", "driven by", "T", "in the window", "KL", "as asked", "test, mean", "each seed")
    made.title = f"alpha: {uniform:.3f} +- {SHARE_WITHIN} of the sampling steps in the window and KL < {KL_BELOW} is asked"
    settings = dict.fromkeys((row.network, row.drive, row.temperature) for row in rows)
    for network, drive, temperature in settings:
        own = [row for row in rows if (row.network, row.drive, row.temperature) == (network, drive, temperature)]
        share, kl = float(np.mean([row.window_share for row in own])), divergence(own)
        is_met = abs(share - uniform) <= SHARE_WITHIN and kl < KL_BELOW
        ends = [row.test for row in own]
        made.add_row(
            network, drive, f"{temperature:g}", f"{share:.3f}", f"{kl:.3f}", "yes" if is_met else "no",
            str(summary.interval(ends)), " ".join(f"{end:.3g}" for end in ends),
        )  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.value_free", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help="only these (default all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, 0, 1, 2, ... (default %(default)s)")
    parser.add_argument("--steps", type=int, help="of each run (default: the network's)")
    parser.add_argument("--csv", type=pathlib.Path, default=CSV, help="where results are kept (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if options.steps is not None and (options.steps < POINTS or options.steps % POINTS):
        parser.error(f"--steps must be a multiple of {POINTS}, got {options.steps}")
    console = Console(width=max(150, Console().width))  # the table needs it, also where the output is no terminal
    try:
        for name in options.networks or NETWORKS:
            run(name, range(options.seeds), options.steps, options.csv, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the runs that ended are in the CSV, and the same command goes on from there.")
    if rows := table.read(options.csv, Row):
        console.print(show(rows))


if __name__ == "__main__":
    main()
