"""Samplers that are to cross between separated modes, every gradient counted, warm-up and all; an energy alone counts half.

A sampler is a function of a problem, a key, a budget of gradients, and settings. It begins at draws of the prior, finds scales
and step sizes by itself, and spends the budget as nearly as it can. What is to be chosen by hand is a short list of settings
for each, from which a pilot run takes one.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import resampling, tempered
from blackjax.smc.tuning.from_particles import inverse_mass_matrix_from_particles
from tensorflow_probability.substrates.jax import mcmc as tfp

import ctld_optax
from benchmarks.harness.separated import Problem
from ctld_optax import diagnostics
from ctld_optax._heat import WALKERS
from ctld_optax._sample import BIAS_WARMUP
from ctld_optax._windows import WINDOW

LEAPFROGS = 5  # of a transition of Hamiltonian Monte Carlo
BLOCK = 20  # transitions in one compiled call
SOUGHT = 20  # windows that our own search for a temperature takes, about


class Found(NamedTuple):
    """What a sampler found.

    Attributes:
      samples: shape (chains, draws, d).
      weights: of them, >= 0, shape (chains, draws); chains weigh more or less where the sampler says so.
      gradients: of all chains, warm-up and all.
      round_trips: between the target and the hottest temperature; NaN where nothing makes any.
    """

    samples: np.ndarray
    weights: np.ndarray
    gradients: int
    round_trips: float = math.nan


Setting = dict[str, Any]
Sampler = Callable[..., Found]


class Method(NamedTuple):
    sample: Sampler
    settings: tuple[Setting, ...]  # a pilot chooses, if there are several
    by: str  # the package


def alike(samples: Any) -> np.ndarray:
    return np.ones(np.shape(samples)[:2])


def ctld(problem: Problem, key: jax.Array, budget: int, *, chains: int = 4) -> Found:
    """This project's, heating the likelihood by as much as it finds to be enough; everything stands at its default."""
    start_key, key = jax.random.split(key)
    places, thin, warmup = iter(problem.draws(start_key, chains)), 5, 2_000
    # The search for a temperature takes what it takes; of the rest of the warm-up it is known.
    spent = chains * warmup * (1 + BIAS_WARMUP) + WALKERS * WINDOW * SOUGHT
    try:
        data = ctld_optax.posterior.sample(
            problem.likelihood,
            lambda _: next(places),
            key,
            prior_fn=problem.prior,
            num_chains=chains,
            num_warmup=warmup,
            num_samples=max((budget - spent) // chains // thin, 50),
            thin=thin,
            tempering="auto",
        )
    except ValueError as error:
        if "cool down" not in str(error):
            raise
        return nothing(problem, budget)  # it refuses to give samples of a run in which a chain had none
    samples, told = data.posterior["x"].values, data.sample_stats.attrs
    return Found(samples, alike(samples), told["gradients"] + told["warmup_gradients"], told["round_trips"])


def nothing(problem: Problem, budget: int) -> Found:
    """No sample at all."""
    samples = np.empty((1, 0, problem.dim))
    return Found(samples, alike(samples), budget)


def parallel_tempering(
    problem: Problem, key: jax.Array, budget: int, *, replicas: int, hottest: float, ladders: int = 4
) -> Found:
    """Replicas of a geometric ladder of inverse temperatures of the likelihood, down to `hottest`, neighbours exchanged.

    Over the first 0.3 of the budget each block of transitions finds, for the next, a step size of each temperature, for an
    acceptance of 0.8, and scales.
    """
    start_key, key = jax.random.split(key)
    betas = jnp.geomspace(1.0, hottest, replicas)
    places = problem.draws(start_key, replicas * ladders).reshape(replicas, ladders, problem.dim)
    # The gradient at the exchanged places, energies for the exchange; and a gradient where a block begins.
    cost = ((LEAPFROGS + 1.5) * BLOCK + 1) * replicas * ladders
    sizes = jnp.full((replicas, 1, 1), 0.3 / problem.dim**0.25)
    scales = jnp.std(places, axis=(0, 1)) * jnp.ones((replicas, 1, 1))
    walker = jnp.broadcast_to(jnp.arange(replicas)[:, None], places.shape[:2])
    blocks, kept = max(round(budget / cost), 2), list[Exchanged]()
    for block in range(blocks):
        is_warmup = block < max(round(0.3 * blocks), 1)
        found = exchanging(problem, betas, places, walker, sizes * scales, jax.random.fold_in(key, block))
        places, walker = found.last, found.walker
        if is_warmup:
            sizes = sizes * jnp.exp(jnp.clip(2.0 * (found.acceptance[:, None, None] - 0.8), -1.0, 0.5))
            scales = jnp.maximum(jnp.sqrt(0.7 * jnp.square(scales) + 0.3 * jnp.square(found.sd[:, None, :])), 1e-6)
        else:
            kept.append(jax.tree.map(np.asarray, found))
    samples, rank = (np.concatenate([getattr(one, part) for one in kept]) for part in ("samples", "rank"))
    # The rank in the ladder in place of alpha: 0 at the target, 1.5 at the hottest.
    alpha = 1.5 * rank.reshape(len(rank), -1).T / (replicas - 1)
    trips = diagnostics.round_trips(alpha, delta=0.1 / replicas)
    samples = samples.swapaxes(0, 1)
    return Found(samples, alike(samples), round(blocks * cost), float(trips))


class Exchanged(NamedTuple):
    """Of a block: places at the target, (steps, ladders, d); ranks of the walkers, (steps, replicas, ladders); what is left."""

    samples: jax.Array
    rank: jax.Array
    last: jax.Array
    walker: jax.Array
    acceptance: jax.Array
    sd: jax.Array


@functools.partial(jax.jit, static_argnames="problem")
def exchanging(
    problem: Problem, betas: jax.Array, places: jax.Array, walker: jax.Array, sizes: jax.Array, key: jax.Array
) -> Exchanged:
    """A block of transitions, each with an exchange."""
    batched = lambda energy: lambda x: -jnp.vectorize(energy, signature="(d)->()")(x)
    kernel: Any = tfp.ReplicaExchangeMC(
        target_log_prob_fn=None,
        untempered_log_prob_fn=batched(problem.prior),
        tempered_log_prob_fn=batched(problem.likelihood),
        inverse_temperatures=betas,
        make_kernel_fn=lambda target: tfp.HamiltonianMonteCarlo(target, step_size=sizes, num_leapfrog_steps=LEAPFROGS),
        state_includes_replicas=True,
    )

    def step(carry: Any, key: jax.Array) -> tuple[Any, Any]:
        state, results, walker = carry
        state, results = kernel.one_step(state, results, seed=key)
        # is_swap_accepted[i, j]: the walkers at i and j have changed places.
        partner = jnp.where(
            results.is_swap_accepted.any(1), results.is_swap_accepted.argmax(1), jnp.arange(len(betas))[:, None]
        )
        walker = jnp.take_along_axis(walker, partner, axis=0)
        accepted = jnp.minimum(0.0, results.pre_swap_replica_results.log_accept_ratio)
        moments = jnp.stack([state, jnp.square(state)])
        return (state, results, walker), (state[0], jnp.argsort(walker, axis=0), jnp.exp(accepted).mean(1), moments)

    begin = (places, kernel.bootstrap_results(places), walker)
    (last, _, walker), (samples, rank, acceptance, moments) = jax.lax.scan(step, begin, jax.random.split(key, BLOCK))
    first, second = moments.mean(axis=(0, 3))
    sd = jnp.sqrt(jnp.maximum(second - jnp.square(first), 0.0))
    return Exchanged(samples, rank, last, walker, acceptance.mean(0), sd)


def tempered_smc(problem: Problem, key: jax.Array, budget: int, *, particles: int, target_ess: float) -> Found:
    """Populations that go from the prior to the posterior, one after the other, weighted by the evidence that each finds.

    The temperatures are those at which so large a share of a population stays effective. Between them two transitions of
    Hamiltonian Monte Carlo, whose diagonal metric is that of the particles; the step size follows the acceptance.
    """
    cost = particles * (2 * LEAPFROGS + 2)  # of a temperature: a state is made, and two energies are asked for
    spent, found = 0, list[tuple[np.ndarray, np.ndarray, float]]()
    while not found or spent + spent / len(found) <= budget:
        key, start_key = jax.random.split(key)
        size = 0.3 / problem.dim**0.25
        places = problem.draws(start_key, particles)
        metric = inverse_mass_matrix_from_particles(places)
        state: Any = tempered.init(places)
        evidence = 0.0
        while float(state.tempering_param) < 1.0:
            key, step_key = jax.random.split(key)
            state, increment, acceptance = reweighed(problem, target_ess, state, metric, jnp.asarray(size), step_key)
            evidence, spent = evidence + float(increment), spent + cost
            if 0.0 < float(state.tempering_param) < 1.0:
                metric = inverse_mass_matrix_from_particles(state.particles)
            size *= math.exp(float(acceptance) - 0.8)
        found.append((np.asarray(state.particles), np.asarray(state.weights), evidence))
    best = max(evidence for *_, evidence in found)
    samples, weights = (np.stack([one[part] for one in found]) for part in (0, 1))
    return Found(samples, weights * np.array([[math.exp(evidence - best)] for *_, evidence in found]), spent)


@functools.partial(jax.jit, static_argnames="problem")
def reweighed(
    problem: Problem, target_ess: jax.Array, state: Any, metric: jax.Array, size: jax.Array, key: jax.Array
) -> tuple[Any, jax.Array, jax.Array]:
    """One temperature: the state, the increment of the logarithm of the evidence, and the acceptance of the transitions."""
    parameters = {"step_size": size, "inverse_mass_matrix": jnp.diag(metric), "num_integration_steps": jnp.asarray(LEAPFROGS)}
    kernel: Any = blackjax.adaptive_tempered_smc(
        lambda x: -problem.prior(x),
        lambda x: -problem.likelihood(x),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        jax.tree.map(lambda one: one[None], parameters),
        resampling.systematic,
        target_ess,
        num_mcmc_steps=2,
    )
    state, info = kernel.step(key, state)
    return state, info.log_likelihood_increment, info.update_info.acceptance_rate.mean()


def nuts(problem: Problem, key: jax.Array, budget: int, *, dense: bool, acceptance: float, chains: int = 8) -> Found:
    """Chains side by side, each with Stan's warm-up of 300 transitions and then as many draws as the budget allows."""
    start_key, warmup_key, key = jax.random.split(key, 3)
    places, keys = problem.draws(start_key, chains), jax.random.split(warmup_key, chains)
    states, parameters, spent = warmed_up(problem, dense, acceptance, places, keys)
    gradients, samples = int(spent), list[np.ndarray]()
    while not samples or gradients < budget:
        key, block_key = jax.random.split(key)
        states, positions, spent = no_u_turns(problem, states, parameters, jax.random.split(block_key, chains))
        gradients += int(spent)
        samples.append(np.asarray(positions))
    whole = np.concatenate(samples, axis=1)
    return Found(whole, alike(whole), gradients)


@functools.partial(jax.jit, static_argnames=("problem", "dense"))
def warmed_up(problem: Problem, dense: bool, acceptance: Any, places: jax.Array, keys: jax.Array) -> tuple[Any, Any, jax.Array]:
    warmup: Any = blackjax.window_adaptation(
        blackjax.nuts,
        lambda x: -problem.total(x),
        is_mass_matrix_diagonal=not dense,
        target_acceptance_rate=acceptance,  # pyright: ignore[reportArgumentType]  # traced
    )

    def chain(place: jax.Array, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        (state, parameters), adaptation = warmup.run(key, place, num_steps=300)
        return state, parameters, adaptation.info.num_integration_steps.sum()

    states, parameters, spent = jax.vmap(chain)(places, keys)
    return states, parameters, spent.sum()


@functools.partial(jax.jit, static_argnames="problem")
def no_u_turns(problem: Problem, states: Any, parameters: Any, keys: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
    """A block of draws of each chain."""

    def chain(state: Any, parameters: Any, key: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        kernel: Any = blackjax.nuts(lambda x: -problem.total(x), **parameters)

        def transition(state: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        state, (positions, spent) = jax.lax.scan(transition, state, jax.random.split(key, BLOCK))
        return state, positions, spent.sum()

    states, positions, spent = jax.vmap(chain)(states, parameters, keys)
    return states, positions, spent.sum()


def sghmc(problem: Problem, key: jax.Array, budget: int, *, step_size: float, chains: int = 16) -> Found:
    """Stochastic gradient HMC with the whole gradient, ten steps a draw, at the posterior's own temperature throughout.

    The first fifth of each chain is left out.
    """
    start_key, key = jax.random.split(key)
    draws = budget // (10 * chains)
    samples = np.asarray(frictional(problem, draws, problem.draws(start_key, chains), step_size, key))[:, draws // 5 :]
    return Found(samples, alike(samples), 10 * chains * draws)


@functools.partial(jax.jit, static_argnames=("problem", "draws"))
def frictional(problem: Problem, draws: int, places: jax.Array, step_size: jax.Array, key: jax.Array) -> jax.Array:
    gradient = jax.grad(problem.total)
    kernel: Any = blackjax.sghmc(lambda x, _: -gradient(x), num_integration_steps=10, alpha=0.1)

    def step(places: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        places = jax.vmap(lambda key, x: kernel.step(key, x, 0, step_size))(keys, places)
        return places, places

    return jax.lax.scan(step, places, jax.random.split(key, (draws, len(places))))[1].swapaxes(0, 1)


def among(**choices: tuple[Any, ...]) -> tuple[Setting, ...]:
    """Every combination."""
    found: list[Setting] = [{}]
    for name, values in choices.items():
        found = [{**one, name: value} for one in found for value in values]
    return tuple(found)


METHODS: dict[str, Method] = {
    "CTLD": Method(ctld, ({},), "ctld-optax"),
    "parallel tempering": Method(parallel_tempering, among(replicas=(5, 10), hottest=(0.1, 0.01)), "tfp-nightly"),
    "tempered SMC": Method(tempered_smc, among(particles=(256, 768), target_ess=(0.5, 0.9)), "blackjax"),
    "NUTS": Method(nuts, among(dense=(False, True), acceptance=(0.8, 0.95)), "blackjax"),
    "SGHMC": Method(sghmc, among(step_size=(1e-2, 1e-3, 1e-4, 1e-5)), "blackjax"),
}
