"""A window of steps of all chains, as one compiled call: what a call of `posterior.sample` is made of."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax

from ctld_optax import _batches as batches
from ctld_optax import _exact as exact
from ctld_optax._chains import Chain, Target, Trace, begin, walk
from ctld_optax._dynamics.langevin import Langevin
from ctld_optax._dynamics.preconditioner import Dense, Diagonal
from ctld_optax._heated import Heated
from ctld_optax._presets import posterior_sampler
from ctld_optax._warmup import Metric

WINDOW = 250  # steps
CHAINS = "chains"  # the axis of those that share a bias


class Sampler(NamedTuple):
    """The settings of a sampler at a constant temperature that a compiled call is made for."""

    momentum: float

    def at(self, learning_rate: jax.Array) -> Langevin:
        return posterior_sampler(learning_rate, 1.0, self.momentum, key=0, tempering=None, bias=None).kernel


@functools.partial(jax.jit, static_argnames="sampler")
def start(
    target: Target, sampler: Sampler, learning_rate: jax.Array, positions: jax.Array, key: jax.Array, beta: Any = 1.0
) -> Chain:
    """Chains with fresh momenta, at the inverse temperature beta."""
    kernel, keys = sampler.at(learning_rate), jax.random.split(key, positions.shape[0])
    return jax.vmap(lambda x, k: begin(target, kernel, x, k, beta))(positions, keys)


@functools.partial(jax.jit, static_argnames="sampler")
def steps(
    target: Target,
    sampler: Sampler,
    coordinates: Dense | Diagonal,
    learning_rate: jax.Array,
    chains: Chain,
    clip: Any = math.inf,
) -> tuple[Chain, Trace]:
    """A window of all chains; the trace has leading axes (chains, steps)."""
    along = lambda chain: walk(target, sampler.at(learning_rate), coordinates, chain, WINDOW, clip)
    return jax.vmap(along)(chains)


@jax.jit
def start_exact(target: Target, positions: jax.Array, bias: jax.Array, key: jax.Array) -> exact.Walker:
    """Walkers with fresh momenta and one bias."""
    keys = jax.random.split(key, positions.shape[0])
    return jax.vmap(lambda x, k: exact.begin(target, x, bias, k))(positions, keys)


@functools.partial(jax.jit, static_argnames="alphas")
def exact_steps(
    target: Target, coordinates: Heated, alphas: exact.Alphas, pace: exact.Pace, offset: jax.Array, walkers: exact.Walker
) -> tuple[exact.Walker, Trace]:
    """As `steps`, whose walkers may share a bias along the axis `CHAINS`."""
    along = lambda walker: exact.walk(target, coordinates, alphas, pace, walker, WINDOW, offset)
    return jax.vmap(along, axis_name=CHAINS)(walkers)


@functools.partial(jax.jit, static_argnames="sampler")
def start_batches(sampler: Sampler, metric: Metric, positions: jax.Array, key: jax.Array) -> batches.Chain:
    """As `start`, in a metric."""
    kernel, keys = sampler.at(metric.learning_rate), jax.random.split(key, positions.shape[0])
    return jax.vmap(lambda x, k: batches.begin(kernel, metric.coordinates, x, k))(positions, keys)


@functools.partial(jax.jit, static_argnames=("sampler", "batch_size"))
def batch_steps(
    target: Target,
    sampler: Sampler,
    learning_rate: jax.Array,
    noise: jax.Array,
    anchors: batches.Anchor,
    batch_size: int,
    chains: batches.Chain,
) -> tuple[batches.Chain, Trace]:
    """As `steps`."""
    kernel = dataclasses.replace(sampler.at(learning_rate), gradient_noise=batches.Measured(noise))
    return jax.vmap(lambda chain, anchor: batches.walk(target, kernel, chain, anchor, batch_size, WINDOW))(chains, anchors)
