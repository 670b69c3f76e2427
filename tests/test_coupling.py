"""From the energy of the parameters to the energy that drives alpha."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctld_optax._dynamics.coupling import (
    COUPLINGS,
    EnergyStatistics,
    Hamiltonian,
    Kinetic,
    Potential,
    Standardized,
    update_statistics,
)


def start(dtype=jnp.float32):
    return EnergyStatistics(jnp.zeros((), dtype), jnp.zeros((), dtype))


def follow(energies, dtype=jnp.float32, decay=0.99):
    """Mean and variance after each energy."""

    def body(statistics, item):
        number, energy = item
        statistics = update_statistics(statistics, energy, number, decay)
        return statistics, statistics

    energies = jnp.asarray(energies, dtype)
    return jax.jit(lambda e: jax.lax.scan(body, start(dtype), (jnp.arange(len(e)), e))[1])(energies)


def weighted(energies, decay=0.99):
    """The same from the definition: weights decay^(t-s), normalised, in float64."""
    weights = decay ** np.arange(len(energies))[::-1]
    weights /= weights.sum()
    mean = np.sum(weights * energies)
    return mean, np.sum(weights * (energies - mean) ** 2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_statistics_are_the_normalised_exponential_averages(decay):
    energies = np.random.default_rng(0).normal(3.0, 2.0, 400)
    statistics = follow(energies, jnp.float64, decay)
    for t in (1, 2, 3, 10, 100, 400):
        mean, var = weighted(energies[:t], decay)
        np.testing.assert_allclose(statistics.mean[t - 1], mean, rtol=1e-11)
        np.testing.assert_allclose(statistics.var[t - 1], var, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e5])
def test_no_start_up_bias_and_no_trace_of_an_offset(offset):
    """Energies of spread 1 on an offset: the variance of the rounded energies, from the second step on."""
    energies = (np.random.default_rng(0).normal(size=300) + offset).astype(np.float32)
    statistics = follow(energies)
    assert statistics.var[0] == 0.0
    assert statistics.mean[0] == energies[0]
    for t in (2, 3, 10, 50, 300):
        mean, var = weighted(energies[:t].astype(np.float64))
        # The mean is held to the spacing of float32 at the offset, 0.008 at 1e5, and moves by hundredths of a difference:
        # it can lag by some tens of spacings, which is 0.2 there.
        lag = 30.0 * np.spacing(np.float32(abs(offset)))
        np.testing.assert_allclose(statistics.mean[t - 1], mean, rtol=0, atol=lag + 1e-5)
        np.testing.assert_allclose(statistics.var[t - 1], var, rtol=1e-3 + lag)


def test_variance_is_never_negative():
    for scale in (1e-18, 1.0, 1e18):
        statistics = follow(np.random.default_rng(0).uniform(0.5, 1.0, 500) * scale)
        assert np.all(np.asarray(statistics.var) >= 0.0)
        assert np.all(np.isfinite(statistics.var))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_standardized_knows_neither_scale_nor_offset(scale, offset):
    energies = np.random.default_rng(2).normal(size=200)
    temperature = jnp.float32(1.0)

    def scores(shifted):
        statistics = follow(shifted)
        return jax.vmap(lambda e, m, v: Standardized()(e, temperature, EnergyStatistics(m, v)))(
            jnp.asarray(shifted, jnp.float32), statistics.mean, statistics.var
        )

    plain = scores(energies)
    np.testing.assert_allclose(scores(scale * (energies + offset))[1:], plain[1:], atol=2e-3)
    assert 0.7 < np.std(plain[20:]) < 1.3


def test_standardized_against_numpy_and_its_clip():
    statistics = EnergyStatistics(jnp.float32(2.0), jnp.float32(9.0))
    one = jnp.float32(1.0)
    np.testing.assert_allclose(Standardized()(jnp.float32(5.0), one, statistics), 1.0, rtol=1e-6)
    np.testing.assert_allclose(Standardized()(jnp.float32(-4.0), one, statistics), -2.0, rtol=1e-6)
    assert Standardized()(jnp.float32(1e9), one, statistics) == 5.0
    assert Standardized()(jnp.float32(-1e9), one, statistics) == -5.0
    assert Standardized(clip=2.0)(jnp.float32(1e9), one, statistics) == 2.0


def test_first_score_and_that_of_a_constant_energy_are_zero():
    # No spread is known yet: no force, and no 0/0.
    statistics = follow(np.full(50, 123.456))
    for t in (0, 1, 49):
        last = EnergyStatistics(statistics.mean[t], statistics.var[t])
        assert Standardized()(jnp.float32(123.456), jnp.float32(1.0), last) == 0.0


def test_hamiltonian_is_the_energy_in_units_of_the_temperature():
    assert Hamiltonian()(jnp.float32(6.0), jnp.float32(1.5), start()) == 4.0
    assert set(COUPLINGS) == {"hamiltonian", "potential", "standardized", "kinetic"}


def test_potential_is_the_hamiltonian_without_the_kinetic_energy():
    value, kinetic, one = jnp.float32(3.0), jnp.float32(5.0), jnp.float32(1.5)
    assert Potential().energy(value, kinetic) == value
    assert Potential()(value, one, start()) == Hamiltonian()(value, one, start())
    assert [name for name, coupling in COUPLINGS.items() if not coupling.heats_momenta] == ["potential"]


def test_kinetic_is_standardized_without_the_value():
    statistics, one = EnergyStatistics(jnp.float32(2.0), jnp.float32(9.0)), jnp.float32(1.0)
    value, kinetic = jnp.float32(jnp.nan), jnp.float32(5.0)
    assert Kinetic().energy(value, kinetic) == kinetic
    assert Kinetic()(kinetic, one, statistics) == Standardized()(kinetic, one, statistics)
    assert Kinetic().sensitivity(one, statistics) == 0.0  # a minibatch's noise in the value is none on alpha
    assert [name for name, coupling in COUPLINGS.items() if not coupling.needs_value] == ["kinetic"]
