"""The standardized coupling: free of units, and exact only in the limit of a slow alpha."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import diagnostics
from ctld_optax._dynamics.coupling import EnergyStatistics, Standardized, update_statistics
from tests.laws.chains import estimate, sampler, simulate

TRUTH = -0.5457  # mean of exp(-U/T), by quadrature (test_extended_system)


def skewed(theta):
    return 1.3 * (theta**2 - 1.0) ** 2 + 0.25 * theta


def test_statistics_are_the_exponentially_weighted_mean_and_variance():
    energies = np.random.default_rng(2).normal(-7.0, 1.7, size=60)
    decay = 0.9
    statistics = EnergyStatistics(jnp.zeros(()), jnp.zeros(()))
    for index, energy in enumerate(energies):
        statistics = update_statistics(statistics, jnp.asarray(energy, jnp.float32), jnp.asarray(index), decay)
        weights = decay ** np.arange(index, -1, -1)
        mean = np.average(energies[: index + 1], weights=weights)
        variance = np.average((energies[: index + 1] - mean) ** 2, weights=weights)
        np.testing.assert_allclose(statistics.mean, mean, rtol=1e-4)
        np.testing.assert_allclose(statistics.var, variance, rtol=1e-3, atol=1e-4)


def test_score_is_the_distance_from_the_mean_in_standard_deviations():
    statistics = EnergyStatistics(jnp.asarray(3.0), jnp.asarray(0.25))
    score = Standardized()(jnp.asarray([2.0, 3.0, 4.5, 90.0]), jnp.asarray(0.3), statistics)
    np.testing.assert_allclose(score, [-2.0, 0.0, 3.0, 5.0], rtol=1e-6)


@pytest.mark.parametrize("coupling", ["standardized", "kinetic"])
def test_the_run_does_not_see_the_unit_or_the_offset_of_the_loss(coupling):
    """loss -> c loss + b with T -> c T and lr -> lr / c is the same dynamics of alpha and theta."""

    def trace(scale, offset):
        transformation = ctld_optax.ctld(0.01 / scale, 0.37 * scale, 0.83, key=3, coupling=coupling)
        draws, _ = simulate(
            transformation, lambda x: scale * skewed(x) + offset, jnp.float32(-1.0), steps=200, chains=2, seed=1
        )
        return draws.alpha, draws.theta

    alpha, theta = trace(1.0, 0.0)
    for scale, offset in ((8.0, 0.0), (1.0, 2.0)):
        other_alpha, other_theta = trace(scale, offset)
        np.testing.assert_allclose(other_alpha, alpha, atol=2e-3)
        np.testing.assert_allclose(other_theta, theta, atol=2e-3)


def window_mean(alpha_step_size, steps):
    transformation = sampler(
        coupling="standardized", bias=ctld_optax.Metadynamics(), alpha_step_size=alpha_step_size, momentum=0.9
    )
    draws, _ = simulate(transformation, skewed, jnp.float32(-1.0), steps=steps, chains=64, thin=10, seed=51)
    draws = draws.after(0.1)
    assert diagnostics.alpha_kl_from_uniform(draws.alpha) < 0.05
    return estimate(draws.theta, (np.abs(draws.alpha) <= 0.4).astype(np.float64))


@pytest.mark.slow
def test_error_in_the_window_shrinks_with_the_step_of_alpha():
    fast, fast_error = window_mean(0.05, 30_000)
    slow, slow_error = window_mean(0.005, 60_000)
    assert fast - TRUTH > 0.1 + 4.0 * fast_error
    assert abs(slow - TRUTH) < 0.06 + 4.0 * slow_error
    assert fast - slow > 4.0 * np.hypot(fast_error, slow_error)


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("coupling", ["standardized", "hamiltonian"])
def test_energy_above_the_mean_pushes_alpha_towards_the_heat(coupling, side):
    """By h (-g') (E - E'), with the same noise: on the right outwards to the right, on the left to the left."""
    temperature, step_size = 0.37, 0.03
    transformation = sampler(coupling=coupling, bias=None, alpha_step_size=step_size, temperature=temperature)
    state = transformation.init(jnp.zeros(3))._replace(
        alpha=jnp.float32(0.9 * side), r_alpha=jnp.float32(0.0), energy_mean=jnp.float32(2.0), energy_var=jnp.float32(0.5)
    )
    state = state._replace(count=jnp.int32(1_000_000))  # the running mean is old: its newest weight is 0.01

    def pushed(value):
        return transformation.update(jnp.zeros(3), state, value=jnp.float32(value))[1]

    low, high = pushed(2.0), pushed(2.1)
    slope = float(ctld_optax.PolynomialTempering().beta_gradient(state.alpha))
    unit = temperature if coupling == "hamiltonian" else float(jnp.sqrt(high.energy_var))
    expected = -step_size * slope * 0.1 / unit
    assert np.sign(expected) == side
    np.testing.assert_allclose(high.r_alpha - low.r_alpha, expected, rtol=0.03)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_kinetic_energy_above_the_mean_pushes_alpha_towards_the_heat(side):
    """By h (-g') (K - K') in deviations, with the same noise; the value does nothing."""
    step_size = 0.03
    transformation = sampler(coupling="kinetic", bias=None, alpha_step_size=step_size, temperature=1e-9)
    state = transformation.init(jnp.zeros(3))._replace(
        alpha=jnp.float32(0.9 * side), r_alpha=jnp.float32(0.0), energy_mean=jnp.float32(2.0), energy_var=jnp.float32(0.5)
    )
    state = state._replace(count=jnp.int32(1_000_000))  # the running mean is old: its newest weight is 0.01

    def pushed(kinetic_energy, value=None):
        grads = jnp.full(3, jnp.sqrt(2.0 * kinetic_energy / (3.0 * 0.01)))  # K = l |m|^2 / 2 of a momentum from rest
        return transformation.update(grads, state, value=value)[1]

    low, high = pushed(2.0), pushed(2.1)
    np.testing.assert_allclose(high.kinetic_energy, 2.1, rtol=1e-3)
    slope = float(ctld_optax.PolynomialTempering().beta_gradient(state.alpha))
    expected = -step_size * slope * 0.1 / float(jnp.sqrt(high.energy_var))
    assert np.sign(expected) == side
    np.testing.assert_allclose(high.r_alpha - low.r_alpha, expected, rtol=0.03)
    assert pushed(2.0, value=jnp.float32(7.0)).r_alpha == low.r_alpha


def test_first_steps_are_finite():
    transformation = ctld_optax.ctld(0.01, 0.37, key=0)
    params = jnp.ones(3)
    state = transformation.init(params)
    for _ in range(3):
        _, state = transformation.update(jnp.zeros(3), state, params, value=jnp.asarray(2.0))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state._replace(key=())))
