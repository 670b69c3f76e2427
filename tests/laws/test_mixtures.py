"""Mixtures of Gaussians from one corner: every mode in every chain, and their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import posterior
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
    """100,000 steps x 16 chains. The strength makes the barriers, 12.5 temperatures, one at the hottest."""
    side, weights, least = GRIDS[name]
    loss, centres = target(side, weights)
    bias, tempering = ctld_optax.AdaptiveBiasingForce(), ctld_optax.PolynomialTempering(strength=0.93)
    transformation = sampler(temperature=1.0, momentum=0.8, alpha_step_size=0.1, tempering=tempering, bias=bias)
    draws, states = simulate(transformation, loss, jnp.asarray(centres[0]), steps=100_000, chains=16, thin=5, seed=61)
    options = {"momentum": 0.8, "bias": bias, "tempering": tempering}
    modes, window, weighted = found(draws, states, centres, weights, options)
    print(f"{name}: modes {modes.min()}..{modes.max()}, total variation {window:.4f} (window), {weighted:.4f} (weighted)")
    assert modes.min() >= least
    assert min(window, weighted) <= 0.04


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
