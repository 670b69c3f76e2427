"""What one call of `posterior.sample` gives: the law of a skewed target, and with tempering the weights of separated modes.

Tolerances are four standard errors of the effective sample size, plus what the docstring allows for the step.
"""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import _exact as exact
from ctld_optax import _sample
from ctld_optax._chains import Target
from ctld_optax._dynamics.preconditioner import Diagonal
from ctld_optax._heated import Heated
from ctld_optax._windows import exact_steps, start_exact
from ctld_optax.posterior import sample
from tests.laws.chains import SIGMAS, deviation

SCALE = np.asarray([1e-3, 1.0, 1e4])
PRECISION = np.asarray([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])


def skewed(params):
    """A correlated Gaussian of condition 10^14, and the logarithm of a Gamma(3) variate."""
    z = params["x"] / SCALE
    return (
        0.5 * z @ jnp.asarray([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ z
        + jnp.exp(params["y"])
        - 3.0 * params["y"]
    )


@pytest.mark.usefixtures("x64")
def test_moments_and_agreement_of_chains():
    start = {"x": jnp.asarray(SCALE) * jnp.asarray([30.0, -20.0, 10.0]), "y": jnp.asarray(2.0)}
    data = sample(skewed, start, 0)
    x, y = data.posterior.x.values / SCALE, data.posterior.y.values
    covariance = np.linalg.inv(PRECISION)
    for i in range(3):
        assert deviation(x[..., i], 0.0) < SIGMAS
        assert deviation(x[..., i] ** 2, covariance[i, i]) < SIGMAS
    # The mean and the variance of log Gamma(3): digamma(3), trigamma(3). The step's error is of some per cent of the sd.
    assert abs(y.mean() - 0.92278) < 0.03 * 0.62843
    assert abs(y.std() / 0.62843 - 1.0) < 0.03
    assert float(az.rhat(data).max().to_array().max()) < 1.01
    assert data.sample_stats.attrs["metric_change"] < 1.3
    # Negative control: without the metric the same learning rate does not go anywhere in the widest direction.
    tx = ctld_optax.posterior_sampler(0.1 * SCALE[0] ** 2, key=0, tempering=None)
    params, state = start, tx.init(start)
    updates, _ = tx.update(jax.grad(skewed)(params), state, params)
    assert abs(updates["x"][2]) < 1e-6 * SCALE[2]


def two_modes(params):
    """0.3 and 0.7 of the weight, twelve standard deviations apart, in three dimensions."""
    left = jnp.log(0.3) - 0.5 * jnp.sum((params + 3.5) ** 2)
    right = jnp.log(0.7) - 0.5 * jnp.sum((params - 3.5) ** 2)
    return -jnp.logaddexp(left, right)


@pytest.mark.slow
def test_tempering_finds_the_weights_of_two_modes():
    """All chains begin in one mode; the barrier is 18 k_B T. Without tempering none leaves it."""
    tempering = ctld_optax.PolynomialTempering(strength=0.95)
    data = sample(two_modes, jnp.full(3, 3.0), 0, tempering=tempering, num_chains=16, num_samples=20_000)
    right = (data.posterior.x.values.mean(-1) > 0.0).astype(float)
    print(f"weight {right.mean():.3f}, of each chain {right.mean(axis=1).round(2)}")
    assert np.all(np.abs(np.diff(right, axis=1)).sum(axis=1) > 5)
    assert abs(right.mean() - 0.7) < SIGMAS * right.mean(axis=1).std() / 4.0  # of 16 chains
    stuck = sample(two_modes, jnp.full(3, 3.0), 0, num_samples=4_000)
    assert np.all(stuck.posterior.x.values.mean(-1) > 0.0)


def test_a_prior_is_never_heated():
    """What the data say nothing of has its prior's variance at every temperature; as a likelihood it has some 16 times that."""

    def variance_while_hot(heated, kept):
        target = Target(_sample.OnFlat(heated, jnp.asarray), _sample.OnFlat(kept, jnp.asarray))
        alphas = exact.Alphas(ctld_optax.PolynomialTempering(strength=0.95), None, 0.02)
        coordinates = Heated(Diagonal(jnp.ones(1)), jnp.zeros((2, 1)), jnp.log(jnp.asarray(0.05)))
        pace, offset = exact.Pace(jnp.asarray(0.02), 0.8), jnp.zeros(())
        walkers = start_exact(target, jnp.zeros((256, 1)), jnp.zeros((2, 0)), jax.random.key(0))
        seen = []
        for _ in range(16):
            walkers, trace = exact_steps(target, coordinates, alphas, pace, offset, walkers)
            seen.append(trace)
        beta, x = (np.concatenate([np.asarray(getattr(t, f)) for t in seen[4:]], axis=1) for f in ("beta", "position"))
        return np.mean(np.square(x[beta < 0.1]))

    prior = lambda x: 0.5 * jnp.sum(x * x)
    assert abs(variance_while_hot(_sample.nothing, prior) - 1.0) < 0.1
    assert variance_while_hot(prior, _sample.nothing) > 5.0
