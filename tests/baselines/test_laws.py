"""The laws of the baselines that have one, and the schedule of the one that has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctld_optax import baselines
from tests.laws.chains import SIGMAS, broken, deviation, simulate
from tests.laws.test_gaussian import LEARNING_RATE, TEMPERATURE, worst_deviation
from tests.laws.test_gaussian import WRONG as WRONG_KERNELS


def sgld():
    return baselines.sgld(LEARNING_RATE, TEMPERATURE, key=0)


def test_sgld_has_the_exact_law_of_its_recursion_on_a_gaussian():
    """Second moments and autocovariances, step size and all; the momentum of the recursion is 0."""
    found = worst_deviation(sgld(), momentum=0.0)
    assert max(found.values()) < SIGMAS, found


@pytest.mark.parametrize("name", ["noise without the 2", "temperature for its root"])
def test_wrong_sgld_fails(name):
    found = worst_deviation(broken(sgld(), **WRONG_KERNELS[name]), momentum=0.0, steps=4_000)
    assert max(found.values()) > SIGMAS


def well(x):
    """A skewed double well whose barrier is two temperatures high."""
    return jnp.sum(0.8 * jnp.square(jnp.square(x) - 1.0) + 0.15 * x)


def exact_moments(temperature):
    """<x> and <x^2> of exp(-well / temperature)."""
    x = np.linspace(-4.0, 4.0, 20_001)
    weight = np.exp(-(0.8 * (x**2 - 1.0) ** 2 + 0.15 * x) / temperature)
    return np.array([np.sum(x * weight), np.sum(x**2 * weight)]) / np.sum(weight)


WELLS = {
    "sgld": lambda temperature: baselines.sgld(0.06, temperature, key=0),
    "sghmc": lambda temperature: baselines.sghmc(0.06, temperature, 0.83, key=0),
}
# The step's own error: near the minima the curvature is 6.4, so that l U'' = 0.4. In Euler's order it would be 20 % there.
SLACK = 0.01


@pytest.mark.parametrize("method", WELLS)
def test_double_well(method):
    draws, _ = simulate(WELLS[method](TEMPERATURE), well, jnp.zeros(1), steps=24_000, chains=256, thin=12, seed=5)
    theta = draws.after(0.1).theta[..., 0]
    moments = np.stack([theta, theta**2], axis=-1)
    assert deviation(moments, exact_moments(TEMPERATURE), slack=SLACK) < SIGMAS
    # Negative control: the tolerance tells this temperature from one half as high again.
    assert deviation(moments, exact_moments(1.5 * TEMPERATURE), slack=SLACK) > SIGMAS


def test_anneal_sgd_adds_noise_of_the_stated_variance():
    """On a flat loss the first update is the noise alone: variance learning_rate^2 eta / (1 + t)^gamma at step t."""
    rate, eta, gamma, number = 0.3, 0.6, 0.55, 100_000
    tx = baselines.anneal_sgd(rate, eta, key=4)
    flat = jnp.zeros(number)
    state = tx.init(flat)
    update = jax.jit(tx.update)
    ratios = []
    for t in range(30):
        updates, state = update(flat, state, flat)
        ratios.append(np.var(np.asarray(updates, np.float64)) / (rate**2 * eta / (1 + t) ** gamma))
    error = np.sqrt(2.0 / number)
    assert np.max(np.abs(np.array(ratios) - 1.0)) < SIGMAS * error
    # Negative control: the tolerance sees a power of 0.56, and a count that starts at 1.
    t = np.arange(30)
    assert np.max(np.abs(np.array(ratios) * (1 + t) ** 0.01 - 1.0)) > SIGMAS * error
    assert np.max(np.abs(np.array(ratios) * ((2 + t) / (1 + t)) ** gamma - 1.0)) > SIGMAS * error
