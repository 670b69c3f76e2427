"""Gradient accumulation: the mean that the inner transformation sees, in the precision that was handed in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from tests.helpers import signature


def memory():
    """An inner transformation that keeps what it is given."""

    def init(params):
        return {"grads": jax.tree.map(jnp.zeros_like, params), "value": jnp.zeros((), jax.dtypes.canonicalize_dtype(float))}

    def update(updates, state, params=None, *, value, **extra_args):
        return updates, {"grads": updates, "value": value.astype(state["value"].dtype)}

    return optax.GradientTransformationExtraArgs(init, update)


def accumulated(grads, values, dtype, every_k):
    tx = ctld_optax.accumulate(memory(), every_k)
    params = {"w": jnp.ones(3, dtype)}
    state = tx.init(params)
    before = signature(state)
    update = jax.jit(tx.update)
    for g, value in zip(grads, values, strict=True):
        _, state = update({"w": jnp.full(3, g, dtype)}, state, params, value=value)
    assert signature(state) == before
    return state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_the_mean_of_float64_losses_is_a_float64_mean(dtype):
    # Of the size of a log posterior of many examples: float32 resolves 64 there.
    values = 1e9 + np.random.default_rng(0).normal(size=7)
    state = accumulated(np.zeros(7), map(jnp.float64, values), dtype, 7)
    assert abs(float(state.inner["value"]) - values.mean()) < 1e-6
    assert state.value.dtype == dtype  # the state has the parameters' dtypes, whatever the loss has
    # Nothing of it is left for the next mean.
    assert float(state.value) == 0.0
    assert all(float(rest) == 0.0 for rest in jax.tree.leaves(state.value_rest))


@pytest.mark.usefixtures("x64")
def test_the_mean_of_float64_gradients_is_a_float64_mean():
    grads = [1.0, 2.0, 4.0]
    state = accumulated(grads, [jnp.float64(0.0)] * 3, jnp.float64, 3)
    np.testing.assert_allclose(state.inner["grads"]["w"], np.mean(grads), rtol=1e-15)


@pytest.mark.usefixtures("x64")
def test_the_energy_variance_of_a_large_loss_is_right():
    noise = np.random.default_rng(1).normal(size=3000)
    values = 1e9 + np.sqrt(3.0) * noise
    tx = ctld_optax.accumulate(ctld_optax.ctld(1e-9, 1e-9, key=0), 3)
    params = {"w": jnp.ones(3, jnp.float64)}

    def step(state, value):
        return tx.update({"w": jnp.zeros(3)}, state, params, value=value)[1], None

    state, _ = jax.lax.scan(step, tx.init(params), jnp.asarray(values))
    # A running variance is only near that of all: measured 0.91 for 1.00.
    assert abs(float(state.inner.energy_var) - np.var(values.reshape(-1, 3).mean(axis=1))) < 0.15


def test_without_float64_the_state_is_what_it_was():
    state = accumulated([1.0, 2.0], [jnp.float32(1.0), jnp.float32(3.0)], jnp.float32, 2)
    assert state.value_rest == ()
    assert state.value.dtype == jnp.float32
    assert float(state.inner["value"]) == 2.0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("narrow", [jnp.float32, jnp.bfloat16])
def test_a_narrow_loss_stays_float32_beside_float32_parameters(narrow):
    tx = ctld_optax.accumulate(optax.GradientTransformationExtraArgs(lambda _: (), look), 1)
    params = jnp.ones(2, jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        jax.jit(tx.update)(params, tx.init(params), params, value=jnp.asarray(1.5, narrow))


def look(updates, state, params=None, *, value, **extra_args):
    assert value.dtype == jnp.float32
    return updates, state


def test_an_integer_leaf_is_named_and_what_is_advised_works():
    params = {"w": jnp.ones(3), "visits": jnp.zeros((), jnp.int32)}
    tx = ctld_optax.accumulate(ctld_optax.ctld(1e-2, 1e-3, key=0), 2)
    with pytest.raises(
        TypeError, match=r"parameter \['visits'\] has the dtype int32: .* integers have no gradient.*optax\.masked"
    ):
        tx.init(params)
    with pytest.raises(TypeError, match=r"parameter \['w'\] must be a jax array, got float 1\.0\. Write jnp\.asarray"):
        tx.init({"w": 1.0})
    masked = optax.masked(tx, lambda params: jax.tree.map(lambda p: jnp.issubdtype(p.dtype, jnp.inexact), params))
    state = masked.init(params)
    for _ in range(2):
        updates, state = masked.update(params, state, params, value=jnp.float32(1.0))
    assert int(state.inner_state.num_updates) == 1
    assert np.all(np.asarray(updates["w"]) != 0.0)
    # Complex gradients have a mean.
    state = ctld_optax.accumulate(optax.sgd(0.1), 2).init(jnp.ones(2, jnp.complex64))
    assert state.grads.dtype == jnp.complex64
