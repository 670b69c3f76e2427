"""Samplers of posteriors, each with its own warm-up from where it is put, and every gradient counted.

A sampler is a function of a posterior, a key and the places where its chains begin; the peers' can be compiled as a whole. Each
gets what it is usually given, and nothing was tuned by hand.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import ctld_optax
from benchmarks.harness.posteriors import Posterior, Potential, starts

WARMUP = 1_000  # transitions of a chain, as in Stan
DRAWS = 1_000
MCLMC_STEPS = 20_000  # of a chain; it tunes itself in a third as many before
MCLMC_THIN = 10


class Draws(NamedTuple):
    """What a sampler found, without constraints, of shape (chains, draws, d), and the gradients of all chains together."""

    samples: jax.Array
    gradients: jax.Array
    warmup_gradients: jax.Array


class Method(NamedTuple):
    sample: Callable[[Posterior, jax.Array, jax.Array], Draws]
    chains: int = 4  # an ensemble that learns from its spread needs more
    by: str = "blackjax"  # the package
    is_compilable: bool = True  # as a whole


Start = Callable[[Posterior, jax.Array, int], jax.Array]


def wide(target: Posterior, key: jax.Array, chains: int) -> jax.Array:
    """N(0, 2) in each coordinate, about as wide as Stan's."""
    return starts(target, key, chains)


def far(target: Posterior, key: jax.Array, chains: int) -> jax.Array:
    """Two and a half times as wide."""
    return starts(target, key, chains, times=2.5)


def mode(target: Posterior, key: jax.Array, chains: int) -> jax.Array:
    """All chains in the lowest place that BFGS finds from some wide starts."""
    return jnp.tile(lowest(target, key), (chains, 1))


def flat(target: Posterior, key: jax.Array, chains: int) -> jax.Array:
    """A hundred standard deviations, by Laplace, from the mode along the flattest direction, to either side of it in turn.

    A side where the density or its gradient overflows is not taken; where both do, half as far.
    """
    centre = lowest(target, key)
    curvatures, directions = jnp.linalg.eigh(jax.hessian(target.potential)(centre))
    flattest = jnp.argmin(jnp.abs(curvatures))
    away = 100.0 / jnp.sqrt(jnp.abs(curvatures[flattest])) * directions[:, flattest]
    potential = jax.jit(jax.value_and_grad(target.potential))
    while True:
        both = [centre + away, centre - away]
        found = [place for place in both if all(np.isfinite(out).all() for out in potential(place))]
        if found:
            return jnp.stack([found[chain % len(found)] for chain in range(chains)])
        away = away / 2.0


def lowest(target: Posterior, key: jax.Array) -> jax.Array:
    """Of the modes that BFGS finds from eight wide starts."""
    potential = jax.jit(jax.value_and_grad(target.potential))
    descend = lambda x: scipy.optimize.minimize(
        lambda at: [np.asarray(out) for out in potential(at)], x, jac=True, method="BFGS"
    )
    found = [descend(np.asarray(x)) for x in wide(target, key, 8)]
    return jnp.asarray(min(found, key=lambda one: one.fun if np.isfinite(one.fun) else np.inf).x)


STARTS: dict[str, Start] = {"wide": wide, "far": far, "mode": mode, "flat": flat}


def nuts(target: Posterior, key: jax.Array, begin: jax.Array, *, dense: bool) -> Draws:
    return no_u_turns(lambda x: -target.potential(x), key, begin, dense=dense, num_warmup=WARMUP, num_draws=DRAWS)


def no_u_turns(
    log_density: Potential, key: jax.Array, begin: jax.Array, *, dense: bool, num_warmup: int, num_draws: int
) -> Draws:
    """NUTS with Stan's warm-up in windows; the mass matrix is the inverse of an estimated covariance, or of its diagonal."""
    keys = [jax.random.split(one, len(begin)) for one in jax.random.split(key)]
    warmup: Any = blackjax.window_adaptation(blackjax.nuts, log_density, is_mass_matrix_diagonal=not dense)

    def chain(x: jax.Array, warmup_key: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        (state, parameters), adaptation = warmup.run(warmup_key, x, num_steps=num_warmup)
        kernel: Any = blackjax.nuts(log_density, **parameters)

        def transition(state: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        samples, gradients = jax.lax.scan(transition, state, jax.random.split(key, num_draws))[1]
        return samples, gradients.sum(), adaptation.info.num_integration_steps.sum()

    samples, gradients, spent = jax.vmap(chain)(begin, *keys)
    return Draws(samples, gradients.sum(), spent.sum())


def mclmc(target: Posterior, key: jax.Array, begin: jax.Array) -> Draws:
    """Microcanonical Langevin Monte Carlo: no step is ever refused, so that a bias stays, which its finder keeps small.

    A step of its integrator takes two gradients. Every tenth position is kept.
    """
    keys = [jax.random.split(one, len(begin)) for one in jax.random.split(key)]
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

    samples, spent = jax.vmap(chain)(begin, *keys)
    return Draws(samples, jnp.asarray(2 * len(begin) * MCLMC_STEPS), 2 * spent.sum())


def meads(target: Posterior, key: jax.Array, begin: jax.Array) -> Draws:
    """Generalized HMC, one gradient a step, whose settings an ensemble finds from its own spread."""
    warmup_key, key = jax.random.split(key)
    log_density, ensemble = lambda x: -target.potential(x), len(begin)
    warmup: Any = blackjax.meads_adaptation(log_density, ensemble)
    (states, parameters), _ = warmup.run(warmup_key, begin, num_steps=WARMUP)
    kernel: Any = blackjax.ghmc(log_density, **parameters)

    def step(states: Any, keys: jax.Array) -> tuple[Any, jax.Array]:
        states, _ = jax.vmap(kernel.step)(keys, states)
        return states, states.position

    samples = jax.lax.scan(step, states, jax.random.split(key, (DRAWS, ensemble)))[1]
    # A quarter of the ensemble stands still in each step of the warm-up.
    return Draws(samples.swapaxes(0, 1), jnp.asarray(DRAWS * ensemble), jnp.asarray(WARMUP * ensemble * 3 // 4))


def chees(target: Posterior, key: jax.Array, begin: jax.Array) -> Draws:
    """HMC of jittered length, which an ensemble tunes so that squares change most; a diagonal mass matrix."""
    warmup_key, key = jax.random.split(key)
    log_density, ensemble = lambda x: -target.potential(x), len(begin)
    warmup: Any = blackjax.chees_adaptation(log_density, ensemble, mass_matrix_estimation="diagonal")
    (states, parameters), adaptation = warmup.run(warmup_key, begin, 0.1, optax.adam(0.025), num_steps=WARMUP)
    kernel: Any = blackjax.dynamic_hmc(log_density, **parameters)

    def step(states: Any, keys: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        states, info = jax.vmap(kernel.step)(keys, states)
        return states, (states.position, info.num_integration_steps)

    samples, gradients = jax.lax.scan(step, states, jax.random.split(key, (DRAWS, ensemble)))[1]
    return Draws(samples.swapaxes(0, 1), gradients.sum(), adaptation.info.num_integration_steps.sum())


def ctld(target: Posterior, key: jax.Array, begin: jax.Array) -> Draws:
    """This project's, with nothing set."""
    places = iter(begin)
    data = ctld_optax.posterior.sample(target.potential, lambda _: next(places), key, num_chains=len(begin))
    spent = data.sample_stats.attrs
    return Draws(jnp.asarray(data.posterior["x"].values), spent["gradients"], spent["warmup_gradients"])


METHODS: dict[str, Method] = {
    "CTLD": Method(ctld, by="ctld-optax", is_compilable=False),
    "NUTS, dense": Method(functools.partial(nuts, dense=True)),
    "NUTS, diagonal": Method(functools.partial(nuts, dense=False)),
    "MCLMC": Method(mclmc),
    "ChEES": Method(chees, chains=32),
    "MEADS": Method(meads, chains=32),
}
