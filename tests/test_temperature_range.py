"""The temperature range test: the ramp, what is read from made losses of each kind, and from a real run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax import diagnostics

STEPS = 3_000
TEMPERATURES = np.geomspace(1e-7, 1e-2, STEPS)


def noisy(losses, seed=0, scale=0.05):
    return losses * np.exp(scale * np.random.default_rng(seed).normal(size=losses.shape))


def valley(at=1e-4, temperatures=TEMPERATURES):
    """A plateau of 2.3 that noise leaves, a bottom of 0.5 at `at`, and a rise."""
    decades = np.log10(temperatures / at)
    return np.where(decades < 0.0, 0.5 + 1.8 / (1.0 + np.exp(8.0 * (-decades - 0.7)) ** -1), 0.5 + 2.0 * decades**2)


def bottom_of(losses, temperatures=TEMPERATURES):
    return temperatures[np.nanargmin(losses)]


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_on_a_plateau_with_noise(seed):
    for at in (1e-5, 1e-4, 1e-3):
        losses = valley(at)
        found = diagnostics.suggest_temperature(noisy(losses, seed), TEMPERATURES)
        # A stretch is a twelfth of a decade. The bottom is flat within the noise for a few of them.
        assert abs(np.log10(found.lowest / bottom_of(losses))) < 0.25
        assert found.temperature == pytest.approx(found.lowest * 0.15 / 4.0)
        assert not found.findings
    assert diagnostics.suggest_temperature(losses, TEMPERATURES, strength=0.0).temperature == pytest.approx(1e-3 / 4, rel=0.2)


def diverging(kind):
    losses = noisy(valley())
    hot = TEMPERATURES > 1e-3
    losses[hot] = {"nan": np.nan, "inf": np.inf, "large": 1e30, "huge": 1e300}[kind]
    return losses


@pytest.mark.parametrize("kind", ["nan", "inf", "large", "huge"])
def test_divergence_is_a_rise(kind):
    found = diagnostics.suggest_temperature(diverging(kind), TEMPERATURES)
    healthy = diagnostics.suggest_temperature(noisy(valley()), TEMPERATURES)
    assert found.temperature == healthy.temperature
    assert not found.findings
    assert found.losses[-1] > 1e20


def test_divergence_at_the_bottom_of_the_fall_is_a_rise_too():
    losses = np.where(TEMPERATURES > 1e-4, np.nan, noisy(valley()))
    found = diagnostics.suggest_temperature(losses, TEMPERATURES)
    assert abs(np.log10(found.lowest / 1e-4)) < 0.25
    assert found.temperature is not None


def test_single_losses_that_are_not_finite_are_left_out():
    losses = noisy(valley())
    losses[::17] = np.nan
    losses[600:700] = np.inf  # two whole stretches
    found = diagnostics.suggest_temperature(losses, TEMPERATURES)
    whole = diagnostics.suggest_temperature(noisy(valley()), TEMPERATURES)
    assert found.temperature == pytest.approx(whole.temperature, rel=0.5)
    assert np.isfinite(found.losses).all()


def test_spikes_do_not_move_it():
    losses = noisy(valley())
    losses[::13] *= 1e4
    found = diagnostics.suggest_temperature(losses, TEMPERATURES)
    healthy = diagnostics.suggest_temperature(noisy(valley()), TEMPERATURES)
    assert found.temperature == pytest.approx(healthy.temperature, rel=0.5)


FALLING = 2.3 * (0.1 + np.exp(-np.arange(STEPS) / 500.0))  # what training does by itself
CASES = {
    "no_fall": noisy(np.where(TEMPERATURES < 1e-4, 2.3, 2.3 + 2e3 * TEMPERATURES)),
    "no_rise": noisy(np.minimum(valley(1e-2), 2.3)),
    "falls_without_noise": noisy(FALLING + 1e3 * TEMPERATURES),
    "too_short": noisy(valley()[::30], scale=0.01),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_with_a_ramp_is_named(name):
    temperatures = np.geomspace(1e-7, 1e-2, CASES[name].size)
    found = diagnostics.suggest_temperature(CASES[name], temperatures)
    assert [finding.name for finding in found.findings] == [name]
    assert (found.temperature is None) == (name != "falls_without_noise")
    assert name in str(found)


def test_a_fall_that_noise_hides_or_the_loss_could_not_follow_is_a_ramp_too_short():
    hidden = 2.3 + 20.0 * np.random.default_rng(0).normal(size=STEPS) - 1.0 * (np.abs(np.log10(TEMPERATURES / 1e-4)) < 0.5)
    narrow = np.where(np.abs(np.log10(TEMPERATURES / 1e-4)) < 0.06, 0.5, 2.3)
    for losses in (hidden, narrow):
        (finding,) = diagnostics.suggest_temperature(losses, TEMPERATURES).findings
        assert finding.name == "too_short"


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_fall(seed):
    """The negative control: 3,000 losses of one temperature."""
    losses = noisy(np.full(STEPS, 2.3), seed, scale=0.3)
    assert diagnostics.suggest_temperature(losses, TEMPERATURES).temperature is None


def test_what_cannot_be_read_is_refused():
    losses = valley()
    for wrong, message in [
        ((losses[:-1], TEMPERATURES), "temperatures must be one for each"),
        ((losses, TEMPERATURES[::-1]), "not falling"),
        ((losses, np.zeros(STEPS)), "> 0"),
        ((losses[None], TEMPERATURES[None]), r"shape \(steps,\), got \(1, 3000\)"),
        ((np.full(STEPS, np.nan), TEMPERATURES), "diverged at its first step"),
        ((losses, TEMPERATURES, 1.0), "strength"),
    ]:
        with pytest.raises(ValueError, match=message):
            diagnostics.suggest_temperature(*wrong)


def test_the_ramp_is_geometric_and_stays_at_its_end():
    ramp = ctld_optax.temperature_ramp(1e-8, 1e-3, 1_001)
    steps = jnp.asarray([0, 250, 500, 1_000, 5_000])
    np.testing.assert_allclose(jax.jit(ramp)(steps), [1e-8, 1e-8 * 10**1.25, 1e-8 * 10**2.5, 1e-3, 1e-3], rtol=2e-6)
    with pytest.raises(ValueError, match=r"high must be a finite number in \(1e-05"):
        ctld_optax.temperature_ramp(1e-5, 1e-6, 100)


def test_a_real_ramp_leaves_a_saddle_and_suggests_what_trains():
    """The network of the README, which SGD-M does not move: the ramp's suggestion does, and a hundredth of it does not."""
    x = jnp.linspace(-2.0, 2.0, 64)[:, None]
    y = jnp.sin(3.0 * x)
    params = {"w": jnp.zeros((1, 32)), "b": jnp.zeros(32), "v": jnp.zeros((32, 1))}

    def run(tx, steps):
        def step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] - y) ** 2))(params)
            updates, state = tx.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), loss

        return jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[1])((params, tx.init(params)))

    ramp = ctld_optax.temperature_ramp(1e-7, 1.0, 2_000)
    losses = run(ctld_optax.ctld(0.05, ramp, key=0, tempering=None), 2_000)
    found = diagnostics.suggest_temperature(losses, jax.vmap(ramp)(jnp.arange(2_000)))
    assert found.temperature is not None, str(found)
    sampler = ctld_optax.ctld(0.05, found.temperature, key=1)
    assert run(ctld_optax.phase_switch(sampler, optax.sgd(0.05, 0.9), 2_000), 4_000)[-1] < 0.01
