"""Mixtures of Gaussians from one corner: every mode in every chain, and their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import diagnostics, posterior
from tests.laws.chains import sampler, simulate

SD = 0.2
GRIDS = {
    "25 equal": (5, np.full(25, 1 / 25), 24),
    "9 unequal": (3, np.array([1, 2, 1, 2, 4, 2, 1, 2, 3]) / 18, 9),
}


def target(side, weights):
    half = (side - 1) / 2
    centres = np.array([[2.0 * (i - half), 2.0 * (j - half)] for i in range(side) for j in range(side)], np.float32)

    def loss(x):
        return -jax.nn.logsumexp(jnp.log(weights) - jnp.sum(jnp.square(x - centres), axis=-1) / (2 * SD**2))

    return loss, centres


def found(draws, states, centres, weights, options):
    """Modes each chain has visited in its window; total variation from the window, and from all steps weighted."""
    label = np.argmin(np.square(draws.theta[..., None, :] - centres).sum(-1), axis=-1)
    window = np.abs(draws.alpha) <= 0.4
    counts = np.stack([np.bincount(one[inside], minlength=len(weights)) for one, inside in zip(label, window, strict=True)])

    def weight(value, bias_state):
        return posterior.log_weights(value, 1.0, 2, bias_state=bias_state, **options)

    weighted = np.exp(np.asarray(jax.jit(jax.vmap(weight))(jnp.asarray(draws.value, jnp.float32), states.bias)))
    mass = np.bincount(label.ravel(), weighted.ravel(), minlength=len(weights))

    def variation(share):
        return 0.5 * np.abs(share / share.sum() - weights).sum()

    return (counts > 0).sum(1), variation(counts.sum(0)), variation(mass)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_recommended_settings_find_the_modes_and_their_weights(name):
    """100,000 steps x 64 chains. The strength makes the barriers, 12.5 temperatures, one at the hottest.

    The learning rate is a seventh of the limit of stability.
    """
    side, weights, least = GRIDS[name]
    loss, centres = target(side, weights)
    bias, tempering = ctld_optax.AdaptiveBiasingForce(), ctld_optax.GeometricTempering(strength=0.93)
    transformation = sampler(0.02, 1.0, 0.8, tempering=tempering, bias=bias)
    draws, states = simulate(transformation, loss, jnp.asarray(centres[0]), steps=100_000, chains=64, thin=5, seed=61)
    options = {"momentum": 0.8, "bias": bias, "tempering": tempering}
    modes, window, weighted = found(draws, states, centres, weights, options)
    print(f"{name}: modes {modes.min()}..{modes.max()}, total variation {window:.4f} (window), {weighted:.4f} (weighted)")
    assert modes.min() >= least
    assert min(window, weighted) <= 0.04


# Two modes far apart in five dimensions: 0.3 N(-2, 0.5^2) + 0.7 N(2, 0.7^2).


def two_modes(x):
    logits = [jnp.log(w) - 5.0 * jnp.log(s) - jnp.sum(jnp.square(x - m)) / (2 * s * s) for w, m, s in MODES]
    return -jax.nn.logsumexp(jnp.stack(logits))


MODES = ((0.3, -2.0, 0.5), (0.7, 2.0, 0.7))
CHAINS = 192


def weight_of_the_larger(learning_rate, **changes):
    """Its weight in the window, the standard error over independent chains, and the round trips of a chain."""
    settings = {"tempering": ctld_optax.PolynomialTempering(strength=0.95), "initial_momentum": "stationary"} | changes
    transformation = sampler(learning_rate, 1.0, 0.9, **settings)
    draws, _ = simulate(transformation, two_modes, jnp.full(5, -2.0), steps=225_000, chains=CHAINS, thin=25, seed=62)
    draws = draws.after(1 / 3)
    window = np.abs(draws.alpha) <= 0.4
    inside, visits = (window & (draws.theta.mean(-1) > 0)).sum(1), window.sum(1)
    share = inside.sum() / visits.sum()
    error = np.sqrt(np.sum((inside - share * visits) ** 2)) / visits.sum()
    return share, error, diagnostics.round_trips(draws.alpha) / CHAINS


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [0.02, 0.05])
def test_weights_of_two_modes_far_apart(learning_rate):
    """A barrier of 20 temperatures; 150,000 steps after 75,000. Three standard errors + 0.005."""
    share, error, trips = weight_of_the_larger(learning_rate)
    print(f"learning rate {learning_rate}: weight {share:.3f} +- {error:.3f}, {trips:.0f} round trips a chain")
    assert error < 0.008
    assert abs(share - 0.7) < 3.0 * error + 0.005


@pytest.mark.slow
def test_the_order_of_the_paper_bends_the_weights():
    """Negative control: at learning rate 0.05 Euler's order is seen to be wrong by the same measure."""
    share, error, _ = weight_of_the_larger(0.05, integrator="euler")
    print(f"Euler, learning rate 0.05: weight {share:.3f} +- {error:.3f}")
    assert abs(share - 0.7) > 3.0 * error + 0.005


@pytest.mark.slow
def test_constant_temperature_stays_in_its_mode():
    side, weights, _ = GRIDS["25 equal"]
    loss, centres = target(side, weights)
    transformation = ctld_optax.ctld(0.01, 1.0, 0.8, key=0, tempering=None)
    draws, _ = simulate(transformation, loss, jnp.asarray(centres[0]), steps=100_000, chains=16, thin=5, seed=61)
    label = np.argmin(np.square(draws.theta[..., None, :] - centres).sum(-1), axis=-1)
    modes = np.array([len(np.unique(one)) for one in label])
    share = np.bincount(label.ravel(), minlength=25) / label.size
    print(f"SGHMC: modes per chain {modes.mean():.2f}, total variation {0.5 * np.abs(share - weights).sum():.3f}")
    assert modes.mean() < 3
    assert 0.5 * np.abs(share - weights).sum() > 0.5
