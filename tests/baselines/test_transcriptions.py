"""Each baseline against the transcription of its paper, step by step in float64, fed the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctld_optax import baselines
from ctld_optax._arrays import noise as sources
from tests.baselines import papers

NOISE = "irwin_hall"
LEARNING_RATE, TEMPERATURE, MOMENTUM, VARIANCE = 0.02, 0.37, 0.83, 0.6
GAMMA, SIGMA, LAMBDA, EXPLORATION = 0.7, 0.93, 0.2, 60
STEPS = 100
START = np.random.default_rng(7).normal(size=6)


def potential(theta):
    """A skewed double well in each coordinate, in units of `value`."""
    return jnp.sum(1.3 * jnp.square(jnp.square(theta) - 1.0) + 0.25 * theta)


def gradient(theta):
    return 5.2 * theta * (theta**2 - 1.0) + 0.25


# Each gives the transformation, a function that makes the transcription from its first state, the temperature by which the
# gradient of `value` is divided, how many children the key of the state has, and the sign that the package gives to its noise.
def sgld():
    tx = baselines.sgld(LEARNING_RATE, TEMPERATURE, key=3, noise=NOISE, integrator="euler")
    return tx, lambda state: papers.SGLD(START, 2 * LEARNING_RATE * TEMPERATURE), TEMPERATURE, 3, 1.0


def sghmc():
    tx = baselines.sghmc(
        LEARNING_RATE, TEMPERATURE, MOMENTUM, key=3, noise=NOISE, initial_momentum="stationary", integrator="euler"
    )

    def paper(state):
        v = -LEARNING_RATE * np.asarray(state.momentum["w"], np.float64)
        return papers.SGHMC(START, v, LEARNING_RATE * TEMPERATURE, 1 - MOMENTUM)

    return tx, paper, TEMPERATURE, 3, 1.0


def baoab(rising=False):
    """The averaged noise of :mod:`integrators` against the splitting itself; where the rate changes, p must stay."""

    def rate(count):
        return LEARNING_RATE * (1.0 + 0.5 * (count % 5)) if rising else LEARNING_RATE

    tx = baselines.sghmc(rate, TEMPERATURE, MOMENTUM, key=3, noise=NOISE)

    class Paper(papers.BAOAB):
        count = 0

        def step(self, gradient, epsilon):
            self.dt = np.sqrt(2 * rate(self.count) * TEMPERATURE / (1 + MOMENTUM))
            self.gamma, self.count = self.friction / self.dt, self.count + 1
            super().step(gradient, epsilon)

        friction = -np.log(MOMENTUM)

    return tx, lambda state: Paper(START, np.zeros(len(START)), None, None), TEMPERATURE, 3, 1.0


def anneal_sgd(momentum):
    tx = baselines.anneal_sgd(LEARNING_RATE, VARIANCE, momentum, key=3, noise=NOISE)
    return tx, lambda state: papers.AnnealSGD(START, LEARNING_RATE, VARIANCE, momentum), 1.0, 3, -1.0


def santa():
    tx = baselines.santa(
        LEARNING_RATE,
        TEMPERATURE,
        MOMENTUM,
        key=3,
        noise=NOISE,
        exploration_steps=EXPLORATION,
        annealing=GAMMA,
        decay=SIGMA,
        eps=LAMBDA,
    )

    def paper(state):
        eta = LEARNING_RATE * TEMPERATURE
        figures = {"sigma": SIGMA, "lambda_": LAMBDA, "gamma": GAMMA, "burnin": EXPLORATION + 1}
        C = -np.log(MOMENTUM) / np.sqrt(eta)
        return papers.Santa(START, state.velocity["w"], eta=eta, N=1 / TEMPERATURE, C=C, **figures)

    return tx, paper, TEMPERATURE, 2, 1.0


METHODS = {
    "sgld": sgld,
    "sghmc": sghmc,
    "baoab": baoab,
    "baoab at a learning rate that rises and falls": lambda: baoab(rising=True),
    "anneal_sgd": lambda: anneal_sgd(0.0),
    "anneal_sgd with momentum": lambda: anneal_sgd(MOMENTUM),
    "santa": santa,
}


def largest_difference(method, change=lambda paper: None):
    """Over a free run, and of all that moves, relative to its size."""
    tx, make_paper, temperature, keys, sign = METHODS[method]()
    params = {"w": jnp.asarray(START)}
    state = tx.init(params)
    paper = make_paper(state)
    change(paper)
    worst = 0.0

    @jax.jit
    def step(params, state):
        # What the package draws from the key of its state: the parameters' noise is seeded by the second of its children.
        noise = sources.draw(jax.random.split(jax.random.clone(state.key), keys)[1], params, sources.SOURCES[NOISE])
        value, grads = jax.value_and_grad(lambda p: potential(p["w"]))(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, noise["w"]

    for _ in range(STEPS):
        params, state, noise = step(params, state)
        paper.step(gradient(paper.theta) / temperature, sign * np.asarray(noise, np.float64))
        pairs = [(params["w"], paper.theta)]
        if method == "santa":
            pairs += [(state.velocity["w"], paper.u), (state.second_moment["w"], paper.v), (state.friction["w"], paper.alpha)]
        worst = max(worst, *(np.max(np.abs(np.asarray(a) - b)) / max(1.0, np.max(np.abs(b))) for a, b in pairs))
    assert np.max(np.abs(paper.theta - START)) > 0.01
    return worst


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_equals_its_paper(method):
    assert largest_difference(method) < 1e-9


SLIPS = {
    "sgld's step": ("sgld", lambda paper: setattr(paper, "epsilon_t", paper.epsilon_t * 1.0001)),
    "sghmc's friction": ("sghmc", lambda paper: setattr(paper, "alpha", paper.alpha * 1.001)),
    "baoab's friction": ("baoab", lambda paper: setattr(paper, "friction", paper.friction * 1.001)),
    "anneal_sgd's count": ("anneal_sgd", lambda paper: setattr(paper, "t", 1)),
    "anneal_sgd's power": ("anneal_sgd with momentum", lambda paper: setattr(paper, "gamma", 0.5501)),
    "santa's burn-in": ("santa", lambda paper: setattr(paper, "burnin", paper.burnin - 1)),
    "santa's power": ("santa", lambda paper: setattr(paper, "gamma", paper.gamma * 1.001)),
    "santa's count": ("santa", lambda paper: setattr(paper, "t", 1)),
    "santa's preconditioner": ("santa", lambda paper: setattr(paper, "N", paper.N * 1.001)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("slip", SLIPS)
def test_the_comparison_sees_a_slip(slip):
    """Negative control: one slip in the transcription shows far above the tolerance."""
    assert largest_difference(*SLIPS[slip]) > 1e-6
