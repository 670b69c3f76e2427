"""Santa: the law of its exploration at constant temperature, the two stages, and what must not settle in its state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctld_optax import baselines
from tests.baselines.test_laws import exact_moments, well
from tests.helpers import assert_finite
from tests.laws.chains import SIGMAS, deviation

TEMPERATURE = 0.37
CURVATURES = np.array([0.5, 1.0, 2.0])


def gaussian(x):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURES, jnp.float32) * jnp.square(x))


def explore(loss, dimensions, *, steps=8_000, chains=128, gradient_noise=0.0, **changes):
    """Parameters, velocity and friction of many chains, of shape (chains, draws, dimensions), and the figures used.

    decay = 1 holds the preconditioner at 1/sqrt(eps).
    """
    figures = {"learning_rate": 0.03, "temperature": TEMPERATURE, "annealing": 0.0, "decay": 1.0, "eps": 2.5} | changes

    def chain(key):
        tx = baselines.santa(**figures, key=key, exploration_steps=steps)
        start = jnp.zeros(dimensions)

        def step(carry, key):
            x, state = carry
            grads = jax.grad(loss)(x) + gradient_noise * jax.random.normal(key, x.shape)
            updates, state = tx.update(grads, state, x)
            return (x + updates, state), (x, state.velocity, state.friction)

        _, recorded = jax.lax.scan(step, (start, tx.init(start)), jax.random.split(key, steps))
        return jax.tree.map(lambda rows: rows[steps // 8 :: 8], recorded)

    recorded = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(2), chains))
    return [np.asarray(rows, np.float64) for rows in recorded]


def test_exploration_samples_a_gaussian_and_its_own_friction():
    theta, u, friction = explore(gaussian, 3)
    eta = 0.03 * TEMPERATURE
    truth = TEMPERATURE / CURVATURES
    assert deviation(theta**2 / truth, np.ones(3), slack=0.005) < SIGMAS
    assert deviation(u**2 / eta, np.ones(3), slack=0.001) < SIGMAS
    # The friction is as wide as stated. Its mean is right in the limit of small steps; here 1.1 to 1.2 times sqrt(eta) g.
    fluctuation = friction - friction.mean(axis=(0, 1))
    assert deviation(fluctuation**2 / eta, np.ones(3), slack=0.04) < SIGMAS
    assert np.all(np.abs(friction.mean(axis=(0, 1)) / np.sqrt(eta / 2.5) - 1.1) < 0.15)
    # Negative control: the tolerance sees a temperature 3 % off.
    assert deviation(theta**2 / truth, 1.03 * np.ones(3), slack=0.005) > SIGMAS


def test_the_thermostat_takes_up_the_noise_of_minibatches():
    """Noise in the gradient, as much again as is injected: the law stays, the friction grows."""
    extra = np.sqrt(2.0 * np.sqrt(0.03 * TEMPERATURE) * TEMPERATURE / 0.03) * 2.5**0.25
    theta, _, friction = explore(gaussian, 3, gradient_noise=extra)
    assert deviation(theta**2 * CURVATURES / TEMPERATURE, np.ones(3), slack=0.01) < SIGMAS
    assert np.all(friction.mean(axis=(0, 1)) > 1.8 * np.sqrt(0.03 * TEMPERATURE / 2.5))


def test_exploration_samples_a_double_well():
    theta, _, _ = explore(well, 1, steps=16_000, learning_rate=0.02)
    moments = np.concatenate([theta, theta**2], axis=-1)
    assert deviation(moments, exact_moments(TEMPERATURE), slack=0.02) < SIGMAS
    assert deviation(moments, exact_moments(1.33 * TEMPERATURE), slack=0.02) > SIGMAS


def test_refinement_is_without_noise_and_leaves_the_friction():
    params = {"w": jnp.asarray([0.4, -1.3])}
    tx = baselines.santa(1e-3, 1e-3, key=0, exploration_steps=3)
    update = jax.jit(tx.update)
    state = tx.init(params)
    frictions = []
    for _ in range(6):
        _, state = update(params, state, params)
        frictions.append(np.asarray(state.friction["w"]))
    assert all(not np.array_equal(frictions[i], frictions[i + 1]) for i in range(2))
    assert all(np.array_equal(frictions[2], later) for later in frictions[3:])
    other = state._replace(key=jax.random.key(99))
    np.testing.assert_array_equal(update(params, state, params)[0]["w"], update(params, other, params)[0]["w"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("exploration_steps", [0, 100])
def test_a_bad_gradient_entry_stops_itself_only(bad, exploration_steps):
    params = jnp.asarray([0.4, -1.3, 2.0])
    tx = baselines.santa(1e-3, 1e-3, key=0, exploration_steps=exploration_steps)
    update = jax.jit(tx.update)
    good_updates, good_state = update(params, tx.init(params), params)
    updates, state = update(params.at[1].set(bad), tx.init(params), params)
    assert_finite((updates, state))
    assert updates[1] == state.velocity[1] == 0.0
    np.testing.assert_allclose(updates[::2], good_updates[::2], rtol=1e-6)
    np.testing.assert_allclose(state.friction[::2], good_state.friction[::2], rtol=1e-6)
    for _ in range(5):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert_finite((params, state))
    assert abs(updates[1]) > 0.0


@pytest.mark.parametrize(("learning_rate", "temperature"), [(1e-3, 1e-3), (1e-2, 1e-2)])
def test_a_start_at_a_saddle_is_left_at_the_pace_of_the_noise(learning_rate, temperature):
    """All gradients start at 0. One step is that of g = 1, and in the end the loss is at its temperature."""

    def loss(params):
        return 0.5 * jnp.square(jnp.dot(params["a"], params["b"]) - 1.0)

    params = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    tx = baselines.santa(learning_rate, temperature, key=0, exploration_steps=20_000, annealing=0.0)
    start = tx.init(params)
    updates, state = tx.update(jax.grad(loss)(params), start, params)
    eta = learning_rate * temperature
    for name, update in updates.items():
        u, new_u = start.velocity[name], state.velocity[name]
        np.testing.assert_allclose(update, 0.5 * (u + new_u), rtol=1e-6)
        # The noise of u has the g of the step too: all of it is thermal, a few sqrt(eta), not sqrt(eta) / eps^(1/2).
        assert np.all(np.abs(new_u) < 6.0 * np.sqrt(eta))
    assert abs(float(loss(optax.apply_updates(params, updates))) - 0.5) < 100.0 * eta

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=20_000))((params, start))
    assert np.max(losses) < 20.0  # measured 0.5 and 7.8; with g = eps^(-1/2) 25,000 and 6e9
    # T/2 is what one direction of curvature holds.
    assert np.mean(losses[10_000:]) < 5.0 * temperature


def test_only_what_has_seen_no_gradient_is_held_back_and_only_from_above():
    params = jnp.asarray([0.0, 1e-3])
    grads = jnp.asarray([0.0, 1e-3])

    def first_update(**changes):
        tx = baselines.santa(1e-3, 1e-3, **({"key": 0, "exploration_steps": 0} | changes))
        state = tx.init(params)
        updates, new_state = tx.update(grads, state, params)
        return np.asarray(updates / (0.5 * (state.velocity + new_state.velocity)))

    seen = (1e-8 + np.sqrt(1e-3) * 1e-3) ** -0.5
    np.testing.assert_allclose(first_update(), [1.0, seen], rtol=1e-4)
    # A lambda that asks for less than 1 gets it, and without a second moment lambda is all there is.
    np.testing.assert_allclose(first_update(eps=4.0)[0], 0.5, rtol=1e-4)
    np.testing.assert_allclose(first_update(decay=1.0, eps=1e-4), [100.0, 100.0], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number in"),
        ({"temperature": -1.0}, "temperature must be a finite number in"),
        ({"momentum": 0.0}, r"momentum must be a finite number in \(0, 1\]"),
        ({"exploration_steps": -1}, "exploration_steps must be >= 0"),
        ({"annealing": -0.1}, "annealing must be a finite number in"),
        ({"decay": 1.1}, "decay must be a finite number in"),
        ({"eps": 0.0}, "eps must be a finite number in"),
        ({"noise": "loud"}, "noise must be .gaussian"),
    ],
)
def test_says_what_is_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        baselines.santa(**({"learning_rate": 1e-3, "temperature": 1e-3, "key": 0, "exploration_steps": 3} | arguments))


def test_exploration_steps_must_be_an_integer():
    with pytest.raises(TypeError, match="exploration_steps must be a Python integer"):
        baselines.santa(1e-3, 1e-3, key=0, exploration_steps=3.0)
