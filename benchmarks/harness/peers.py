"""Samplers of posteriors, each with its own warm-up from the same kind of start, and every gradient counted.

A sampler is a function of a posterior, a key and a start; a start, of a posterior, a key and a number of chains, gives where they
begin: ensembles ask for more chains than the others. Each gets what it is usually given and nothing was tuned by hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from benchmarks.harness.posteriors import Posterior, starts

CHAINS = 4  # of those whose chains do not know of each other
ENSEMBLE = 32
WARMUP = 1_000  # transitions of a chain, as in Stan
DRAWS = 1_000
MCLMC_STEPS = 20_000  # of a chain; it tunes itself in a third as many before
MCLMC_THIN = 10


class Draws(NamedTuple):
    """What a sampler found, without constraints, of shape (chains, draws, d), and the gradients of all chains together."""

    samples: jax.Array
    gradients: jax.Array
    warmup_gradients: jax.Array


Start = Callable[[Posterior, jax.Array, int], jax.Array]
Sampler = Callable[[Posterior, jax.Array, Start], Draws]


def wide(target: Posterior, key: jax.Array, chains: int) -> jax.Array:
    """N(0, 2) in each coordinate, as wide as Stan's."""
    return starts(target, key, chains)


def far(target: Posterior, key: jax.Array, chains: int) -> jax.Array:
    """N(0, 5) in each coordinate."""
    return starts(target, key, chains, scale=5.0)


def mode(target: Posterior, key: jax.Array, chains: int) -> jax.Array:
    """All chains in the lowest place that BFGS finds from some wide starts."""
    potential = jax.jit(jax.value_and_grad(target.potential))
    descend = lambda x: scipy.optimize.minimize(lambda at: [np.asarray(out) for out in potential(at)], x, jac=True, method="BFGS")
    found = [descend(np.asarray(x)) for x in wide(target, key, CHAINS)]
    lowest = min(found, key=lambda one: one.fun if np.isfinite(one.fun) else np.inf)
    return jnp.tile(lowest.x, (chains, 1))


STARTS: dict[str, Start] = {"wide": wide, "far": far, "mode": mode}


def split(key: jax.Array, start: Start, target: Posterior, chains: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where chains begin, and keys for their warm-up and for what follows."""
    begin, warmup, sample = jax.random.split(key, 3)
    return start(target, begin, chains), warmup, sample


def nuts(target: Posterior, key: jax.Array, start: Start, *, dense: bool) -> Draws:
    """NUTS with Stan's warm-up in windows; the mass matrix is the inverse of an estimated covariance, or of its diagonal."""
    begin, *keys = split(key, start, target, CHAINS)
    log_density = lambda x: -target.potential(x)
    warmup: Any = blackjax.window_adaptation(blackjax.nuts, log_density, is_mass_matrix_diagonal=not dense)

    def chain(x: jax.Array, warmup_key: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        (state, parameters), adaptation = warmup.run(warmup_key, x, num_steps=WARMUP)
        kernel: Any = blackjax.nuts(log_density, **parameters)

        def transition(state: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        samples, gradients = jax.lax.scan(transition, state, jax.random.split(key, DRAWS))[1]
        return samples, gradients.sum(), adaptation.info.num_integration_steps.sum()

    samples, gradients, spent = jax.jit(jax.vmap(chain))(begin, *(jax.random.split(one, CHAINS) for one in keys))
    return Draws(samples, gradients.sum(), spent.sum())


def mclmc(target: Posterior, key: jax.Array, start: Start) -> Draws:
    """Microcanonical Langevin Monte Carlo: no step is ever refused, so that a bias stays, which its finder keeps small.

    A step of its integrator takes two gradients. Every tenth position is kept.
    """
    begin, *keys = split(key, start, target, CHAINS)
    log_density = lambda x: -target.potential(x)
    kernel: Any = blackjax.mcmc.mclmc.build_kernel()

    def chain(x: jax.Array, warmup_key: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        init_key, tune_key = jax.random.split(warmup_key)
        state, parameters, spent = blackjax.mclmc_find_L_and_step_size(
            kernel, MCLMC_STEPS, blackjax.mcmc.mclmc.init(x, log_density, init_key), tune_key, log_density
        )

        def step(state: Any, key: jax.Array) -> tuple[Any, None]:
            metric = parameters.inverse_mass_matrix
            return kernel(key, state, log_density, metric, parameters.L, parameters.step_size)[0], None

        def record(state: Any, keys: jax.Array) -> tuple[Any, jax.Array]:
            state, _ = jax.lax.scan(step, state, keys)
            return state, state.position

        keys = jax.random.split(key, (MCLMC_STEPS // MCLMC_THIN, MCLMC_THIN))
        return jax.lax.scan(record, state, keys)[1], jnp.asarray(spent)

    samples, spent = jax.jit(jax.vmap(chain))(begin, *(jax.random.split(one, CHAINS) for one in keys))
    return Draws(samples, jnp.asarray(2 * CHAINS * MCLMC_STEPS), 2 * spent.sum())


def meads(target: Posterior, key: jax.Array, start: Start) -> Draws:
    """Generalized HMC, one gradient a step, whose settings an ensemble finds from its own spread."""
    begin, warmup_key, key = split(key, start, target, ENSEMBLE)
    log_density = lambda x: -target.potential(x)
    warmup: Any = blackjax.meads_adaptation(log_density, ENSEMBLE)

    @jax.jit
    def ensemble(begin: jax.Array, warmup_key: jax.Array, key: jax.Array) -> jax.Array:
        (states, parameters), _ = warmup.run(warmup_key, begin, num_steps=WARMUP)
        kernel: Any = blackjax.ghmc(log_density, **parameters)

        def step(states: Any, keys: jax.Array) -> tuple[Any, jax.Array]:
            states, _ = jax.vmap(kernel.step)(keys, states)
            return states, states.position

        return jax.lax.scan(step, states, jax.random.split(key, (DRAWS, ENSEMBLE)))[1].swapaxes(0, 1)

    # A quarter of the ensemble stands still in each step of the warm-up.
    return Draws(ensemble(begin, warmup_key, key), jnp.asarray(DRAWS * ENSEMBLE), jnp.asarray(WARMUP * ENSEMBLE * 3 // 4))


def chees(target: Posterior, key: jax.Array, start: Start) -> Draws:
    """HMC of jittered length, which an ensemble tunes so that squares change most; a diagonal mass matrix."""
    begin, warmup_key, key = split(key, start, target, ENSEMBLE)
    log_density = lambda x: -target.potential(x)
    warmup: Any = blackjax.chees_adaptation(log_density, ENSEMBLE, mass_matrix_estimation="diagonal")

    @jax.jit
    def ensemble(begin: jax.Array, warmup_key: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        (states, parameters), adaptation = warmup.run(warmup_key, begin, 0.1, optax.adam(0.025), num_steps=WARMUP)
        kernel: Any = blackjax.dynamic_hmc(log_density, **parameters)

        def step(states: Any, keys: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            states, info = jax.vmap(kernel.step)(keys, states)
            return states, (states.position, info.num_integration_steps)

        samples, gradients = jax.lax.scan(step, states, jax.random.split(key, (DRAWS, ENSEMBLE)))[1]
        return samples.swapaxes(0, 1), gradients.sum(), adaptation.info.num_integration_steps.sum()

    return Draws(*ensemble(begin, warmup_key, key))
