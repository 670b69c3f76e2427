"""The readers of states and trajectories, on trajectories whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax import diagnostics
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.walls import ReflectingWall

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}


def sampler(**options):
    return ctld_optax.ctld(0.01, 1e-3, key=0, **options)


@pytest.mark.parametrize(
    "tx",
    [
        sampler(),
        ctld_optax.phase_switch(sampler(), optax.sgd(0.01, momentum=0.9), 5),
        ctld_optax.phase_switch(sampler(), optax.adam(0.01), 5),
        optax.chain(optax.clip(1.0), sampler()),
        optax.MultiSteps(sampler(), 2),
    ],
)
def test_snapshot_finds_the_state_however_deep(tx):
    state = tx.init(PARAMS)
    found = diagnostics.snapshot(state)
    assert found.alpha.shape == ()
    assert set(found._fields) <= set(ctld_optax.CTLDState._fields)
    np.testing.assert_array_equal(found.r_alpha, optax.tree.get(state, "r_alpha"))


@pytest.mark.parametrize(("tx", "number"), [(optax.sgd(0.1, momentum=0.9), 0), (optax.chain(sampler(), sampler()), 2)])
def test_snapshot_wants_exactly_one_state(tx, number):
    with pytest.raises(ValueError, match=f"found {number} in a"):
        diagnostics.snapshot(tx.init(PARAMS))


def test_temperature_is_one_over_beta():
    trajectory = diagnostics.snapshot(sampler().init(PARAMS))._replace(beta=np.asarray([1.0, 0.5, 0.15], np.float32))
    np.testing.assert_allclose(diagnostics.temperature(trajectory), [1.0, 2.0, 20.0 / 3.0], rtol=1e-6)


@pytest.mark.parametrize("integrator", ["baoab", "euler"])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momenta_without_a_force_settle_at_the_target(momentum, integrator):
    # 2,000 free parameters: each step's kinetic temperature scatters by sqrt(2/2000) = 3 %, and some 100 of the 1,000
    # last steps are
    # independent, so the mean scatters by 0.3 %; 2 % is six of that. Euler's target is off by 33 % and 5 %.
    number, temperature = 2_000, 0.37
    tx = ctld_optax.ctld(0.02, temperature, momentum, key=0, tempering=None, integrator=integrator)
    params = jnp.zeros(number)

    def step(state, _):
        _, state = tx.update(jnp.zeros(number), state, params, value=jnp.float32(0.0))
        return state, state.kinetic_energy

    _, kinetic_energy = jax.jit(lambda state: jax.lax.scan(step, state, None, length=1_200))(tx.init(params))
    measured = diagnostics.kinetic_temperature(kinetic_energy[200:], number).mean()
    target = diagnostics.kinetic_temperature_target(temperature, momentum, integrator=integrator)
    np.testing.assert_allclose(measured, target, rtol=0.02)
    assert (abs(measured / temperature - 1.0) > 0.02) == (integrator == "euler")


def test_histogram_is_a_density_and_leaves_out_what_is_outside():
    density, edges = diagnostics.alpha_histogram([-1.4, -1.4, 0.1, 0.2, 7.0], delta_prime=1.5, bins=3)
    np.testing.assert_allclose(edges, [-1.5, -0.5, 0.5, 1.5])
    np.testing.assert_allclose(density, [0.5, 0.5, 0.0])
    np.testing.assert_allclose(np.sum(density * np.diff(edges)), 1.0)
    assert not diagnostics.alpha_histogram([7.0], bins=3)[0].any()


def test_divergence_from_uniform():
    even = np.linspace(-1.5, 1.5, 15 * 200, endpoint=False) + 1e-4
    assert diagnostics.alpha_kl_from_uniform(even) < 1e-12
    # All in one half: every nat of one bit.
    np.testing.assert_allclose(diagnostics.alpha_kl_from_uniform(np.abs(even), bins=2), np.log(2.0))
    # A sample of n: (bins - 1) / (2 n) on average; 5 standard deviations of that chi-square above it.
    sample = np.random.default_rng(0).uniform(-1.5, 1.5, 10_000)
    assert diagnostics.alpha_kl_from_uniform(sample) < (14 + 5 * np.sqrt(28)) / 20_000
    assert diagnostics.alpha_kl_from_uniform([9.0]) == float("inf")


def test_fractions():
    alpha = np.asarray([[-0.4, 0.0, 0.41, 1.5], [1.6, -1.6, 0.3, -0.5]])
    assert diagnostics.fraction_in_window(alpha) == 3 / 8
    assert diagnostics.fraction_outside(alpha) == 2 / 8


@pytest.mark.parametrize(
    ("alpha", "trips"),
    [
        ([0.0, 1.5, 0.0], 1),
        ([0.0, -1.45, 0.0, 1.45, 0.0], 2),  # either end counts
        ([0.0, 1.2, 0.0], 0),  # turned back before the hot end
        ([0.0, 1.5, 0.6, 1.5, 0.6], 0),  # never back in the window
        ([1.5, 0.0, 1.5], 0),  # the first half is missing
        ([1.5, 0.0, 1.5, 0.0], 1),
        ([0.6, 0.7], 0),
        ([[0.0, 1.5, 0.0], [0.0, 0.0, 0.0]], 1),  # replicas are not joined
        ([[0.0, 0.0, 1.5], [0.0, 0.0, 0.0]], 0),
    ],
)
def test_round_trips(alpha, trips):
    assert diagnostics.round_trips(alpha) == trips


def test_bias_potential_has_its_minimum_at_zero():
    bias = ctld_optax.Metadynamics(height=0.3, width=0.2, num_bins=30)
    state = sampler(bias=bias).init(PARAMS)
    state = state._replace(bias=bias.deposit(state.bias, Visit(jnp.float32(0.5)), ReflectingWall(1.5)))
    alpha, potential = diagnostics.bias_potential(state, bias)
    assert potential.min() == 0.0
    assert alpha[np.argmax(potential)] == pytest.approx(0.5)
    assert potential.max() == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("alpha", [[], [0.0, float("nan")]])
def test_useless_trajectories_are_refused(alpha):
    with pytest.raises(ValueError, match=r"is empty|not finite"):
        diagnostics.fraction_in_window(alpha)
