"""What multiplies the update behind a sampler multiplies its temperature; as the sampler's learning rate it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import ctld_optax

TEMPERATURE, RATE, FACTOR = 0.3, 0.1, 0.1
CHAINS, STEPS = 2_000, 3_000


def variance_over_temperature(update, state):
    """Of a standard harmonic in many dimensions, over the second half of the steps, after a plateau that begins at once."""

    def step(carry, _):
        x, state = carry
        # The rule sees a loss that does not fall: the plateau comes in its first steps.
        updates, state = update(x, state, x, jnp.float32(1.0))
        return (x + updates, state), jnp.mean(jnp.square(x))

    _, squares = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS))((jnp.zeros(CHAINS), state))
    return float(squares[STEPS // 2 :].mean()) / TEMPERATURE


def plateau():
    return contrib.reduce_on_plateau(factor=FACTOR, patience=5, cooldown=10**6)  # one reduction


def test_a_plateau_behind_the_sampler_cools_it_and_in_its_learning_rate_does_not():
    tx = optax.chain(ctld_optax.baselines.sghmc(RATE, TEMPERATURE, key=0), plateau())
    behind = variance_over_temperature(lambda g, s, p, value: tx.update(g, s, p, value=value), tx.init(jnp.zeros(CHAINS)))

    injected, rule = optax.inject_hyperparams(ctld_optax.baselines.sghmc)(RATE, TEMPERATURE, key=0), plateau()

    def update(grads, state, params, value):
        state, rule_state = state
        _, rule_state = rule.update(grads, rule_state, value=value)
        state = state._replace(hyperparams=state.hyperparams | {"learning_rate": RATE * rule_state.scale})
        updates, state = injected.update(grads, state, params, value=value)
        return updates, (state, rule_state)

    inside = variance_over_temperature(update, (injected.init(jnp.zeros(CHAINS)), rule.init(jnp.zeros(CHAINS))))
    np.testing.assert_allclose(inside, 1.0, rtol=0.03)
    np.testing.assert_allclose(behind, FACTOR, rtol=0.1)


def test_mechanize_cools_by_the_factor_that_it_has_found():
    """Begun ten deviations off, it raises its first factor, 1e-6, in a hundred steps to 0.025, and lowers it slowly then."""
    tx = contrib.mechanize(ctld_optax.baselines.sghmc(RATE, TEMPERATURE, key=0))

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(x, state, x)
        return (x + updates, state), (jnp.mean(jnp.square(x)), jnp.sum(state.s))

    x = jnp.full(CHAINS, 10.0 * np.sqrt(TEMPERATURE))
    _, found = jax.jit(lambda carry: jax.lax.scan(step, carry, length=10_000))((x, tx.init(x)))
    squares, factors = np.asarray(found)[:, -1_000:]
    assert 1e-3 < factors.min() < factors.max() < 0.1
    # Of 2,000 coordinates, the mean square is known to 3 % at any one step; the factor itself falls by 5 % meanwhile.
    np.testing.assert_allclose(np.mean(squares / factors) / TEMPERATURE, 1.0, rtol=0.1)
