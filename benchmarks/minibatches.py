"""What minibatches are worth for a posterior: logistic regression on 100,000 rows, 256 at a time, against NUTS on all.

    python -m benchmarks.minibatches

The data are synthetic: ten correlated columns of different scales, labels drawn from the model; prior N(0, 1). Passes over the
data are counted as they are taken, those of the warm-up apart, and the variance of every parameter is compared with that of
all runs of NUTS together:

- NUTS (blackjax) with a dense mass matrix and Stan's warm-up, on all rows;
- `posterior.sample(data=, batch_size=256)`: a warm-up of one window on all rows, then control variates, at two gradients of
  256 rows a step;
- plain minibatches by hand, `posterior_sampler` in the metric of the curvature at the mode, at the learning rate at which they
  bring half of the noise: compensated by RunningNoise, and not compensated.

Four chains each. Runs are kept in a CSV, and only what it lacks is run.
"""

import argparse
import functools
import importlib.metadata
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
from benchmarks.harness import files, peers, summary, table
from ctld_optax import plotting
from ctld_optax._arviz import arviz

CSV = pathlib.Path(__file__).parent / "results" / "minibatches.csv"
KEY = ("method", "rows", "seed")
REFERENCE = "NUTS, all rows"
DIMENSION, BATCH, CHAINS, MOMENTUM = 10, 256, 4, 0.8


class Row(NamedTuple):
    """One run of all chains."""

    method: str
    rows: int  # of the data
    seed: int
    passes: float  # over the data, after the warm-up
    warmup_passes: float
    ess_square: float  # of the worst parameter's squared deviation
    variances: str  # of each parameter
    seconds: float
    by: str

    @property
    def run(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in KEY)

    @property
    def all_passes(self) -> float:
        return self.passes + self.warmup_passes

    @property
    def variance(self) -> np.ndarray:
        return np.array(self.variances.split(), np.float64)


class Size(NamedTuple):
    """How much is run."""

    rows: int
    nuts: tuple[int, int]  # transitions of the warm-up and after it
    samples: int  # of a chain, in one call
    passes: int  # of a chain, by hand


FULL, SMALL = Size(100_000, (500, 1_500), 4_000, 625), Size(2_000, (200, 200), 400, 100)


class Found(NamedTuple):
    """Samples of shape (chains, draws, d), and passes over the data of all chains together."""

    samples: Any
    passes: Any
    warmup_passes: Any


def rows_of(count: int) -> tuple[jax.Array, jax.Array]:
    """Features of shape (count, DIMENSION), the first one 1, and labels."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(DIMENSION - 1, DIMENSION - 1)) * np.geomspace(0.1, 1.0, DIMENSION - 1)
    features = np.column_stack([np.ones(count), rng.normal(size=(count, DIMENSION - 1)) @ mix])
    truth = np.append(-0.5, rng.normal(size=DIMENSION - 1) / np.sqrt(DIMENSION))
    labels = rng.random(count) < 1.0 / (1.0 + np.exp(-features @ truth))
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.float32)


def misfit(weights: jax.Array, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
    features, labels = rows
    logits = features @ weights
    return jnp.sum(jax.nn.softplus(logits) - labels * logits)


def prior(weights: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(jnp.square(weights))


def nuts(rows: Any, size: Size, key: jax.Array) -> Found:
    def log_density(weights: jax.Array) -> jax.Array:
        return -misfit(weights, rows) - prior(weights)

    num_warmup, num_draws = size.nuts
    sample = functools.partial(peers.no_u_turns, log_density, dense=True, num_warmup=num_warmup, num_draws=num_draws)
    return Found(*jax.jit(sample)(key, jnp.zeros((CHAINS, DIMENSION))))


def in_one_call(rows: Any, size: Size, key: jax.Array) -> Found:
    found = ctld_optax.posterior.sample(
        misfit,
        jnp.zeros(DIMENSION),
        key,
        data=rows,
        batch_size=BATCH,
        prior_fn=prior,
        num_chains=CHAINS,
        num_warmup=250,
        num_samples=size.samples,
    )
    spent = found.sample_stats.attrs
    return Found(found.posterior["x"].values, spent["gradients"], spent["warmup_gradients"])


def by_hand(rows: Any, size: Size, key: jax.Array, *, gradient_noise: Any) -> Found:
    """Newton's steps to the mode, the curvature there, then minibatches."""
    energy = lambda weights, rows: misfit(weights, rows) + prior(weights)
    mode, newton = jnp.zeros(DIMENSION), 8
    curvature = jax.jit(jax.hessian(energy))
    for _ in range(newton):
        mode = mode - jnp.linalg.solve(curvature(mode, rows), jax.grad(energy)(mode, rows))
    # Where the model is right S^T Sigma S = N / B: with this they bring half of the 2 (1 - mu) / l that is due.
    rate = 0.5 * 2.0 * (1.0 - MOMENTUM) * BATCH / size.rows
    metric = ctld_optax.FixedMetric(curvature(mode, rows))
    sampler = functools.partial(
        ctld_optax.posterior_sampler,
        rate,
        momentum=MOMENTUM,
        tempering=None,
        initial_momentum="stationary",
        gradient_noise=gradient_noise,
        preconditioner=metric,
    )
    steps_a_pass = size.rows // BATCH
    thin = max(1, steps_a_pass // 4)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        weights, state = carry
        chosen = jax.random.randint(key, (BATCH,), 0, size.rows)
        batch = jax.tree.map(lambda one: one[chosen], rows)
        grads = size.rows / BATCH * jax.grad(misfit)(weights, batch) + jax.grad(prior)(weights)
        updates, state = sampler(key=0).update(grads, state, weights)
        return (weights + updates, state), None

    def record(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(step, carry, jax.random.split(key, thin))
        return carry, carry[0]

    def chain(key: jax.Array) -> jax.Array:
        init_key, key = jax.random.split(key)
        carry = (mode, sampler(key=init_key).init(mode))
        return jax.lax.scan(record, carry, jax.random.split(key, steps_a_pass * size.passes // thin))[1]

    samples = jax.jit(jax.vmap(chain))(jax.random.split(key, CHAINS))
    beginning = samples.shape[1] // 10
    passes = CHAINS * samples.shape[1] * thin / steps_a_pass
    # A curvature costs about as many gradients as there are parameters, twice.
    return Found(samples[:, beginning:], 0.9 * passes, (newton + 1) * 2 * DIMENSION + newton + 0.1 * passes)


METHODS: dict[str, tuple[Callable[[Any, Size, jax.Array], Found], str, int]] = {
    "in one call": (in_one_call, "ctld-optax", 4),
    REFERENCE: (nuts, "blackjax", 2),
    "plain, compensated": (functools.partial(by_hand, gradient_noise=ctld_optax.RunningNoise(decay=0.9995)), "ctld-optax", 2),
    "plain, not compensated": (functools.partial(by_hand, gradient_noise=None), "ctld-optax", 2),
}
COLORS = dict(zip(METHODS, (plotting.VERMILLION, plotting.BLUE, plotting.GREEN, plotting.ORANGE), strict=True))


def run(method: str, size: Size, path: pathlib.Path, console: Console) -> None:
    """Those seeds that the CSV does not hold."""
    table.add(path, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    done = {row.run for row in table.read(path, Row)}
    sample, by, seeds = METHODS[method]
    for seed in range(seeds):
        if (method, size.rows, seed) in done:
            continue
        began = time.perf_counter()
        found = sample(rows_of(size.rows), size, jax.random.key(seed))
        draws = np.asarray(found.samples, np.float64)
        az = arviz("minibatches judges samples with ArviZ")
        squares = np.square(draws - draws.mean((0, 1)))
        row = Row(
            method,
            size.rows,
            seed,
            float(found.passes),
            float(found.warmup_passes),
            float(az.ess(az.convert_to_dataset({"x": squares}), method="mean")["x"].min()),
            " ".join(f"{one:.8g}" for one in squares.mean((0, 1))),
            seconds=round(time.perf_counter() - began, 1),
            by=f"{by} {importlib.metadata.version(by)}",
        )
        table.add(path, Row, [row], key=KEY, varying=["seconds", "by"])
        console.print(f"{method}, seed {seed}: {row.all_passes:,.0f} passes, {row.seconds:.0f} s")


def reference(rows: Sequence[Row]) -> np.ndarray:
    return np.mean([row.variance for row in rows if row.method == REFERENCE], axis=0)


def found(rows: Sequence[Row]) -> Table:
    """Every run: its variances beside those of all runs of NUTS."""
    made = Table(
        "method", "seed", "variances less NUTS', %: mean", "worst", "passes", "of these warm-up", "of x^2: independent samples"
    )
    truth = reference(rows)
    for row in rows:
        off = 100.0 * (row.variance / truth - 1.0)
        worst = off[np.abs(off).argmax()]
        figures = (
            f"{off.mean():+.1f}",
            f"{worst:+.1f}",
            f"{row.all_passes:,.0f}",
            f"{row.warmup_passes:,.0f}",
            f"{row.ess_square:,.0f}",
        )
        made.add_row(row.method, str(row.seed), *figures)
    return made


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
    """A dot for the variance of each parameter in each run, over its passes."""
    mpl.use("Agg")
    truth = reference(rows)
    with summary.styled():
        figure, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
        ax.axhspan(0.95, 1.05, color="0.93", linewidth=0, zorder=0)
        ax.axhline(1.0, color="0.5", linewidth=0.8)
        for method, color in COLORS.items():
            own = [row for row in rows if row.method == method]
            for row in own:
                # Runs of one method cost alike: side by side.
                x = row.all_passes * 1.06 ** (row.seed - 0.5 * (len(own) - 1))
                ax.plot([x] * DIMENSION, row.variance / truth, ".", color=color, alpha=0.6, markersize=6)
            ax.plot([], [], ".", color=color, label=method, markersize=9)
        ax.set(xscale="log", xlabel="passes over the data, warm-up included", ylabel="variance of a parameter / NUTS'")
        ax.legend()
        files.save_figure(figure, path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.minibatches", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help="only these (default all)")
    parser.add_argument("--small", action="store_true", help="2,000 rows, and short runs")
    parser.add_argument("--csv", type=pathlib.Path, default=CSV, help="where results are kept (default %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder of the figure (default out)")
    options = parser.parse_args(arguments)
    size, console = SMALL if options.small else FULL, Console()
    try:
        for method in options.methods or METHODS:
            run(method, size, options.csv, console)
    except KeyboardInterrupt:
        console.print("Interrupted: the runs that ended are in the CSV, and the same command goes on from there.")
    rows = [row for row in table.read(options.csv, Row) if row.rows == size.rows]
    if any(row.method == REFERENCE for row in rows):
        console.print(found(rows))
        draw(rows, options.out / "minibatches.png")
        console.print(f"wrote {options.out / 'minibatches.png'}")


if __name__ == "__main__":
    main()
