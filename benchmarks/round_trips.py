"""What makes alpha come and go between two modes: which energy drives it, and how its temperatures are spaced.

    python -m benchmarks.round_trips

Two Gaussian modes of weight 0.3 and 0.7, 20 k_B T apart, in 5 and in 20 dimensions, all chains begun in the lighter one. At a
constant temperature none leaves it. Every line has the learning rate 0.03, momentum 0.9 and the adaptive biasing force; the
first third of each chain is left out. Counted in 1,000 gradients of a chain: round trips of alpha between its window and the
hot end, and crossings between the modes. The weight of the heavier mode is that of the steps in the window, its error that
of independent chains.

Lines are kept in a CSV, and only what it lacks is run.
"""

import argparse
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import ctld_optax
from benchmarks.harness import table
from ctld_optax import diagnostics

CSV = pathlib.Path(__file__).parent / "results" / "round_trips.csv"
WEIGHT, LEARNING_RATE, MOMENTUM, THIN = 0.7, 0.03, 0.9, 25
TEMPERINGS = {"polynomial": ctld_optax.PolynomialTempering, "geometric": ctld_optax.GeometricTempering}


class Setting(NamedTuple):
    """A line."""

    dimensions: int
    coupling: str
    tempering: str
    strength: float
    alpha_step_size: float


class Row(NamedTuple):
    """A line, measured."""

    dimensions: int
    coupling: str
    tempering: str
    strength: float
    alpha_step_size: float
    steps: int
    chains: int
    weight: float
    weight_error: float
    round_trips: float  # in 1,000 gradients of a chain
    crossings: float  # likewise
    seconds: float


KEY = (*Setting._fields, "steps", "chains")
# From the paper's energy and the paper's g to today's: one thing at a time.
SETTINGS = [
    Setting(dimensions, *rest)
    for dimensions in (5, 20)
    for rest in (
        ("hamiltonian", "polynomial", 0.95, 0.05),
        ("potential", "polynomial", 0.95, 0.05),
        ("hamiltonian", "geometric", 0.95, 0.05),
        ("potential", "geometric", 0.95, 0.05),
        ("potential", "polynomial", 0.99, 0.04),
        ("potential", "geometric", 0.99, 0.04),
    )
]


def energy(x: jax.Array) -> jax.Array:
    """The modes, of the standard deviations 0.5 and 0.7, are as far apart in any number of dimensions."""
    centre, spreads = 2.0 * jnp.sqrt(5.0 / x.size), (0.5, 0.7 if x.size == 5 else 0.5)
    modes = zip((1.0 - WEIGHT, WEIGHT), (-centre, centre), spreads, strict=True)
    return -jax.nn.logsumexp(
        jnp.stack([jnp.log(w) - x.size * jnp.log(s) - jnp.sum(jnp.square(x - c)) / (2.0 * s * s) for w, c, s in modes])
    )


def measure(setting: Setting, steps: int, chains: int) -> Row:
    began = time.perf_counter()
    start = jnp.full(setting.dimensions, -2.0 * (5.0 / setting.dimensions) ** 0.5)
    tempering = TEMPERINGS[setting.tempering](strength=setting.strength)

    def chain(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        coupling: Any = setting.coupling
        sampler = ctld_optax.ctld(
            LEARNING_RATE,
            1.0,
            MOMENTUM,
            key=key,
            tempering=tempering,
            bias=ctld_optax.AdaptiveBiasingForce(),
            coupling=coupling,
            alpha_step_size=setting.alpha_step_size,
            initial_momentum="stationary",
        )

        def step(carry: Any, _: None) -> tuple[Any, None]:
            x, state, _ = carry
            value, grads = jax.value_and_grad(energy)(x)
            updates, state = sampler.update(grads, state, x, value=value)
            return (x + updates, state, x), None

        def record(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            carry, _ = jax.lax.scan(step, carry, None, length=THIN)
            return carry, (jnp.mean(carry[2]), carry[1].alpha)

        return jax.lax.scan(record, (start, sampler.init(start), start), None, length=steps // THIN)[1]

    place, alpha = (np.asarray(x) for x in jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), chains)))
    place, alpha = (x[:, x.shape[1] // 3 :] for x in (place, alpha))
    is_heavier, window = place > 0.0, np.asarray(tempering.in_window(jnp.asarray(alpha)))
    inside, visits = (window & is_heavier).sum(1), window.sum(1)
    weight = inside.sum() / max(visits.sum(), 1)
    thousands = alpha.shape[1] * THIN * chains / 1_000
    return Row(
        *setting,
        steps=steps,
        chains=chains,
        weight=float(weight),
        weight_error=float(np.sqrt(np.sum(np.square(inside - weight * visits))) / max(visits.sum(), 1)),
        round_trips=diagnostics.round_trips(alpha, tempering.delta, tempering.delta_prime) / thousands,
        crossings=float((is_heavier[:, 1:] != is_heavier[:, :-1]).sum() / thousands),
        seconds=time.perf_counter() - began,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.round_trips", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150_000, help="gradients of each chain (default %(default)s)")
    parser.add_argument("--chains", type=int, default=96, help="of each line (default %(default)s)")
    parser.add_argument("--csv", type=pathlib.Path, default=CSV, help="where lines are kept (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.steps < 100 * THIN or options.chains < 2:
        parser.error(f"--steps must be at least {100 * THIN} and --chains at least 2")

    table.add(options.csv, Row, [], key=KEY)  # a file that is not ours is to be heard of before anything runs
    console = Console(width=max(Console().width, 100))  # of the table, also where nothing shows it
    for setting in SETTINGS:
        known = {(*(getattr(row, name) for name in KEY),) for row in table.read(options.csv, Row)}
        if (*setting, options.steps, options.chains) not in known:
            table.add(options.csv, Row, [measure(setting, options.steps, options.chains)], key=KEY, varying=("seconds",))
    shown = Table("d", "driven by", "temperatures", "strength", "round trips", "crossings", f"weight, {WEIGHT} in truth")
    for row in table.read(options.csv, Row):
        if (row.steps, row.chains) == (options.steps, options.chains):
            weight = f"{row.weight:.3f} +- {row.weight_error:.3f}"
            figures = f"{row.round_trips:.2f}", f"{row.crossings:.2f}", weight
            shown.add_row(str(row.dimensions), row.coupling, row.tempering, f"{row.strength:g}", *figures)
    console.print(shown)
    console.print(f"In 1,000 gradients of a chain; {options.csv}")


if __name__ == "__main__":
    main()
