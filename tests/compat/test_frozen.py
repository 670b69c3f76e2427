"""Parameters that stay frozen: out of the sampler they change nothing of it, behind it they do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ctld_optax

PARAMS = {"backbone": jnp.linspace(-1.0, 1.0, 40), "head": jnp.ones(5)}
LABELS = {"backbone": "keep", "head": "sample"}


def loss_fn(params):
    """The backbone has a gradient too, as that of a network has."""
    return 0.5 * jnp.sum(jnp.square(params["head"])) * (1.0 + jnp.mean(jnp.square(params["backbone"])))


def run(tx, params, loss):
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), ctld_optax.diagnostics.snapshot(state).alpha

    (params, _), alpha = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200))((params, tx.init(params)))
    return params, np.asarray(alpha)


def sampler():
    return ctld_optax.ctld(0.05, 0.1, key=0)


def test_a_partition_is_the_sampler_of_what_is_left():
    alone, alpha_alone = run(sampler(), {"head": PARAMS["head"]}, lambda params: loss_fn(PARAMS | params))
    partition = optax.partition({"sample": sampler(), "keep": optax.set_to_zero()}, LABELS)
    params, alpha = run(partition, PARAMS, loss_fn)
    np.testing.assert_array_equal(params["backbone"], PARAMS["backbone"])
    # The same up to what XLA makes of two programs.
    np.testing.assert_allclose(params["head"], alone["head"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alpha, alpha_alone, rtol=1e-3, atol=1e-4)


def test_held_still_behind_the_sampler_they_drive_alpha():
    freeze = optax.masked(optax.set_to_zero(), {"backbone": True, "head": False})
    params, alpha = run(optax.chain(sampler(), freeze), PARAMS, loss_fn)
    _, alpha_alone = run(sampler(), {"head": PARAMS["head"]}, lambda params: loss_fn(PARAMS | params))
    np.testing.assert_array_equal(params["backbone"], PARAMS["backbone"])
    assert np.max(np.abs(alpha - alpha_alone)) > 0.1
