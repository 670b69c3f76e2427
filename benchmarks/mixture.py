"""Can it leave a mode? Three multimodal targets, five samplers, equal numbers of gradients, an equal tuning budget.

    python -m benchmarks.mixture

Targets: 25 Gaussians (5 x 5, spacing 2, sd 0.2), started in a corner; the Mueller-Brown surface at a temperature of 15,
started in its deepest valley; two Gaussians in 10 dimensions, weights 0.7 and 0.3, 8 temperatures of barrier between them,
started in the smaller one.

Samplers: CTLD with the settings recommended for posteriors (hamiltonian coupling, adaptive biasing force) and with its
defaults (standardized coupling, hills), against SGHMC, SGLD and contour SGLD from blackjax. Each tries the six settings in its
table below for a quarter of the steps, with other random numbers, and runs with the one of the smallest error. CTLD's samples
are the steps with |alpha| <= delta, contour SGLD's carry its importance weights; every step counts as one gradient
whether or not it gives a sample. Parallel tempering is missing: blackjax, which has the others, has only its
sequential Monte Carlo relatives.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

import ctld_optax
from benchmarks.harness import files

THIN = 10
TRIALS = 6
SEED = 0


class Target(NamedTuple):
    """exp(-energy), with the weights of its modes; a sample belongs to the nearest centre."""

    energy: Callable[[jax.Array], jax.Array]
    centres: np.ndarray
    weights: np.ndarray
    start: np.ndarray
    curvature: float  # the largest at the modes: learning rates are given in units of its inverse
    lowest: float  # just below the smallest energy, for contour SGLD


def gaussians(centres: np.ndarray, weights: np.ndarray, sd: float, start: int) -> Target:
    def energy(x: jax.Array) -> jax.Array:
        squares = jnp.sum(jnp.square(x - centres), axis=-1)
        return -jax.nn.logsumexp(jnp.log(weights / weights.max()) - squares / (2 * sd**2))

    return Target(energy, centres, weights, centres[start], sd**-2.0, -0.1)


def mueller_brown(temperature: float = 15.0) -> Target:
    strength = np.array([-200.0, -100.0, -170.0, 15.0])
    a, b, c = np.array([-1.0, -1.0, -6.5, 0.7]), np.array([0.0, 0.0, 11.0, 0.6]), np.array([-10.0, -10.0, -6.5, 0.7])
    at = np.array([[1.0, 0.0], [0.0, 0.5], [-0.5, 1.5], [-1.0, 1.0]])

    def energy(x: jax.Array) -> jax.Array:
        u, v = x[0] - at[:, 0], x[1] - at[:, 1]
        # The last term overflows far away, where nothing is: its exponent is capped.
        return (strength * jnp.exp(jnp.minimum(a * u**2 + b * u * v + c * v**2, 8.0))).sum() / temperature + 146.7 / temperature

    centres = np.array([[-0.558, 1.442], [0.623, 0.028], [-0.050, 0.467]])
    grid = np.stack(np.meshgrid(np.linspace(-2.5, 2.0, 901), np.linspace(-1.5, 3.0, 901)), -1).reshape(-1, 2)
    density = np.exp(-np.asarray(jax.jit(jax.vmap(energy))(jnp.asarray(grid, jnp.float32)), np.float64))
    weights = np.bincount(nearest(grid, centres), density, minlength=3) / density.sum()
    return Target(energy, centres, weights, centres[0], 3000.0 / temperature, -0.1)


def nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.argmin(np.square(x[..., None, :] - centres).sum(-1), axis=-1)


def targets() -> dict[str, Target]:
    grid = np.array([[2.0 * i, 2.0 * j] for i in range(-2, 3) for j in range(-2, 3)])
    pair = 2.0 * np.eye(10)[0] * np.array([[1.0], [-1.0]])
    return {
        "25 Gaussians": gaussians(grid, np.full(25, 1 / 25), 0.2, 0),
        "Mueller-Brown": mueller_brown(),
        "2 in 10-d": gaussians(pair, np.array([0.7, 0.3]), 0.5, 1),
    }


class Rows(NamedTuple):
    """One chain, every THIN-th step."""

    x: jax.Array
    weight: jax.Array
    alpha: jax.Array


Chain = Callable[[Target, jax.Array, jax.Array, int], Rows]  # (target, knobs, key, steps)


def ctld(target: Target, knobs: jax.Array, key: jax.Array, steps: int, *, recommended: bool) -> Rows:
    learning_rate = knobs[0] / target.curvature
    options: dict[str, Any]
    second: Any = knobs[1]  # traced
    if recommended:  # knobs: learning rate, strength
        tempering = ctld_optax.GeometricTempering(strength=second)
        options = {"coupling": "potential", "bias": ctld_optax.AdaptiveBiasingForce(), "alpha_step_size": 0.05}
    else:  # knobs: learning rate, alpha_step_size
        tempering = ctld_optax.PolynomialTempering()
        options = {"alpha_step_size": second}
    sampler = ctld_optax.ctld(learning_rate, 1.0, 0.8, key=key, tempering=tempering, **options)
    start = jnp.asarray(target.start, jnp.float32)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        x, state, _ = carry
        value, grads = jax.value_and_grad(target.energy)(x)
        updates, state = sampler.update(grads, state, x, value=value)
        return (x + updates, state, x), None

    def record(carry: Any, _: None) -> tuple[Any, Rows]:
        carry, _ = jax.lax.scan(step, carry, None, length=THIN)
        _, state, x = carry
        return carry, Rows(x, ctld_optax.posterior.in_window(state.alpha).astype(jnp.float32), state.alpha)

    return jax.lax.scan(record, (start, sampler.init(start), start), None, length=steps // THIN)[1]


def walk(
    step: Callable[..., Any], weight: Callable[[Any], Any], state: Any, key: jax.Array, steps: int, *, gradients: int = 1
) -> Rows:
    """A blackjax kernel that spends `gradients` a step."""

    def one(state: Any, key: jax.Array) -> tuple[Any, None]:
        return step(key, state), None

    def record(state: Any, keys: jax.Array) -> tuple[Any, Rows]:
        state, _ = jax.lax.scan(one, state, keys)
        position = getattr(state, "position", state)
        return state, Rows(position, weight(state), jnp.zeros(()))

    keys = jax.random.split(key, (steps // THIN, THIN // gradients))
    return jax.lax.scan(record, state, keys)[1]


def estimators(target: Target) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def log_density(x: jax.Array, minibatch: Any) -> jax.Array:
        del minibatch
        return -target.energy(x)

    return log_density, jax.grad(log_density)


def sgld(target: Target, knobs: jax.Array, key: jax.Array, steps: int) -> Rows:
    kernel: Any = blackjax.sgld(estimators(target)[1])
    start = jnp.asarray(target.start, jnp.float32)
    return walk(lambda k, x: kernel.step(k, x, 0, knobs[0] / target.curvature), lambda _: jnp.ones(()), start, key, steps)


def sghmc(target: Target, knobs: jax.Array, key: jax.Array, steps: int) -> Rows:
    kernel: Any = blackjax.sghmc(estimators(target)[1], num_integration_steps=THIN, alpha=knobs[1])
    start = jnp.asarray(target.start, jnp.float32)
    return walk(
        lambda k, x: kernel.step(k, x, 0, knobs[0] / target.curvature),
        lambda _: jnp.ones(()),
        start,
        key,
        steps,
        gradients=THIN,
    )


def contour_sgld(target: Target, knobs: jax.Array, key: jax.Array, steps: int) -> Rows:
    kernel: Any = blackjax.csgld(
        *estimators(target), zeta=knobs[1], num_partitions=40, energy_gap=1.0, min_energy=target.lowest
    )
    state = kernel.init(jnp.asarray(target.start, jnp.float32))

    def weight(state: Any) -> jax.Array:
        return state.energy_pdf[state.energy_idx] ** knobs[1]

    return walk(lambda k, s: kernel.step(k, s, 0, knobs[0] / target.curvature, 1e-3), weight, state, key, steps)


def product(*knobs: Sequence[float]) -> np.ndarray:
    return np.stack(np.meshgrid(*knobs), -1).reshape(-1, len(knobs))


# A sampler and the six settings it may choose from, the first of equals; the first is a learning rate in units of 1/curvature.
SAMPLERS: dict[str, tuple[Chain, np.ndarray]] = {
    "CTLD, recommended": (functools.partial(ctld, recommended=True), product([0.1, 0.25], [0.85, 0.93, 0.96])),
    "CTLD, default": (functools.partial(ctld, recommended=False), product([0.1, 0.25], [0.02, 0.005, 0.002])),
    "SGHMC": (sghmc, product([0.3, 0.1, 0.03], [0.01, 0.1])),
    "SGLD": (sgld, product([0.03, 0.06, 0.1, 0.2, 0.3, 0.5])),
    "contour SGLD": (contour_sgld, product([0.03, 0.1, 0.3], [0.5, 1.0])),
}


class Score(NamedTuple):
    modes: float  # found by a chain, mean over chains
    modes_worst: int  # by the poorest chain
    variation: float  # total variation of the modes' weights, chains pooled
    sliced: float  # sliced Wasserstein distance to the modes' law, see below
    effective: float  # sample size per 1,000 gradients: the variance over the mean square error of a chain's mean


def score(target: Target, rows: Rows, steps: int) -> Score:
    """Of shape (chains, draws, ...). A chain that left the numbers counts as having found nothing."""
    x, weight = np.asarray(rows.x, np.float64), np.asarray(rows.weight, np.float64)
    is_good = np.asarray(np.isfinite(x).all(axis=(1, 2)) & np.isfinite(weight).all(axis=1))
    x, weight = np.where(is_good[:, None, None], x, 0.0), np.where(is_good[:, None], weight, 0.0)
    if weight.sum() == 0.0:
        return Score(0.0, 0, 1.0, float("inf"), 0.0)
    label = nearest(x, target.centres)
    mass = np.stack([np.bincount(one, w, minlength=len(target.weights)) for one, w in zip(label, weight, strict=True)])
    pooled = mass.sum(0) / mass.sum()
    found = (mass > 0.0).sum(1)
    place = target.centres[:, 0]
    truth = place @ target.weights
    spread = np.square(place - truth) @ target.weights
    of_chain = np.where(
        mass.sum(1) > 0.0, (mass @ place) / np.maximum(mass.sum(1), 1e-30), place[nearest(target.start, target.centres)]
    )
    effective = 1000.0 * spread / np.mean(np.square(of_chain - truth)) / steps
    variation = 0.5 * float(np.abs(pooled - target.weights).sum())
    return Score(float(found.mean()), int(found.min()), variation, sliced_wasserstein(target, pooled), float(effective))


def sliced_wasserstein(target: Target, pooled: np.ndarray, directions: int = 64) -> float:
    """Between the weights found and the true ones, both standing on the modes' centres."""
    angles = np.random.default_rng(0).normal(size=(directions, target.centres.shape[1]))
    angles /= np.linalg.norm(angles, axis=1, keepdims=True)
    places = angles @ target.centres.T
    order = np.argsort(places, axis=1)
    difference = np.cumsum((pooled - target.weights)[order], axis=1)[:, :-1]
    return float(np.mean(np.sum(np.abs(difference) * np.diff(np.take_along_axis(places, order, 1), axis=1), axis=1)))


def run(target: Target, chain: Chain, knobs: np.ndarray, chains: int, steps: int, *, seed: int) -> tuple[Rows, float]:
    """Rows of shape (settings, chains, draws, ...), and the seconds they took, compilation apart."""
    keys = jax.random.split(jax.random.key(seed), chains)
    over_chains = jax.vmap(lambda k, key: chain(target, k, key, steps), (None, 0))
    program = jax.jit(jax.vmap(over_chains, (0, None))).lower(jnp.asarray(knobs, jnp.float32), keys).compile()
    start = time.perf_counter()
    rows = jax.block_until_ready(program(jnp.asarray(knobs, jnp.float32), keys))
    return rows, time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.mixture", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100_000, help="gradients of each chain (default 100000)")
    parser.add_argument("--seeds", type=int, default=16, help="chains (default 16)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/mixture"), help="folder (default out/mixture)")
    options = parser.parse_args(arguments)
    if options.steps < 40 * THIN or options.seeds < 1:
        parser.error(f"--steps must be at least {40 * THIN} and --seeds at least 1")

    console = Console()
    table = Table("target", "sampler", "setting", "modes a chain", "worst", "variation", "sliced W", "ESS / 1,000", "seconds")
    results: list[dict[str, Any]] = []
    clouds: dict[tuple[str, str], Rows] = {}
    for target_name, target in targets().items():
        for sampler_name, (chain, knobs) in SAMPLERS.items():
            pilot_steps = options.steps // (4 * THIN) * THIN
            pilot, pilot_seconds = run(target, chain, knobs, options.seeds, pilot_steps, seed=SEED + 1)
            errors = [score(target, jax.tree.map(lambda row, i=i: row[i], pilot), pilot_steps).variation for i in range(TRIALS)]
            best = knobs[int(np.argmin(errors))]
            rows, seconds = run(target, chain, best[None], options.seeds, options.steps, seed=SEED)
            rows = jax.tree.map(lambda row: np.asarray(row[0]), rows)
            found = score(target, rows, options.steps)
            clouds[target_name, sampler_name] = rows
            results.append(
                {"target": target_name, "sampler": sampler_name, "setting": best.tolist(), **found._asdict()}
                | {"seconds": seconds, "pilot_seconds": pilot_seconds, "pilot_variations": errors}
            )
            setting = ", ".join(f"{knob:g}" for knob in best)
            of = len(target.weights)
            table.add_row(
                target_name,
                sampler_name,
                setting,
                f"{found.modes:.1f} of {of}",
                str(found.modes_worst),
                f"{found.variation:.3f}",
                f"{found.sliced:.3f}",
                f"{found.effective:.2f}",
                f"{seconds:.1f}",
            )
            console.print(f"{target_name}, {sampler_name}: variation {found.variation:.3f}")
    console.print(table)
    report = {"steps": options.steps, "chains": options.seeds, "thin": THIN, "jax": jax.__version__, "rows": results}
    files.put(options.out / "mixture.json", f"{json.dumps(report, indent=2)}\n".encode())
    draw(clouds, options.out / "mixture.png")
    console.print(f"wrote {options.out / 'mixture.json'} and {options.out / 'mixture.png'}")


def draw(clouds: dict[tuple[str, str], Rows], path: pathlib.Path) -> None:
    """A row a target: the samples of each sampler, all chains pooled, and alpha of one chain of the recommended CTLD."""
    mpl.use("Agg")
    rng = np.random.default_rng(0)
    names = list(dict.fromkeys(name for name, _ in clouds))
    figure, axes = plt.subplots(
        len(names), len(SAMPLERS) + 1, figsize=(15, 2.6 * len(names)), layout="constrained", squeeze=False
    )
    for index, (row, (name, target)) in enumerate(zip(axes, targets().items(), strict=True)):
        low, high = target.centres[:, :2].min(0) - 1.0, target.centres[:, :2].max(0) + 1.0
        for axis, sampler in zip(row, SAMPLERS, strict=False):
            rows = clouds[name, sampler]
            x, weight = rows.x.reshape(-1, rows.x.shape[-1]), rows.weight.ravel().astype(np.float64)
            weight = np.where(np.isfinite(x).all(1) & np.isfinite(weight), weight, 0.0)
            if weight.sum() > 0:
                chosen = rng.choice(len(x), size=4_000, p=weight / weight.sum())
                axis.plot(*x[chosen, :2].T, ".", markersize=1.5, alpha=0.4, color="tab:blue", rasterized=True)
            axis.plot(*target.centres[:, :2].T, "k+", markersize=5, markeredgewidth=0.7)
            axis.plot(*target.start[:2], "o", color="tab:red", markersize=5, fillstyle="none")
            axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), title="" if index else sampler)
        row[0].set_ylabel(name)
        trace = clouds[name, "CTLD, recommended"].alpha[0][:1000]
        row[-1].axhspan(-0.4, 0.4, color="tab:orange", alpha=0.25, linewidth=0)
        row[-1].plot(np.arange(len(trace)) * THIN, trace, linewidth=0.5, color="tab:blue")
        row[-1].set(ylim=(-1.6, 1.6), ylabel=r"$\alpha$", title="" if index else "alpha of a chain, window")
    axes[-1, -1].set_xlabel("step")
    files.save_figure(figure, path, dpi=130)


if __name__ == "__main__":
    main()
