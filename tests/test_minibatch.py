"""What minibatches bring in noise: pytrees of another structure, narrow dtypes, and parameters cut in shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import ctld_optax

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}


@pytest.mark.parametrize("wrong", [{"w": jnp.ones((2, 3))}, [1.0, 2.0], (0.1,), {"w": 0.1, "b": {"c": 0.1}}])
def test_variances_of_another_structure_are_named(wrong):
    tx = ctld_optax.ctld(0.1, 0.1, key=0, gradient_noise=wrong)
    with pytest.raises(
        ValueError, match=r"^gradient_noise must be a number or a pytree like the parameters, .*got .*jax.tree.map"
    ):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)


@pytest.mark.parametrize("bad", [-1.0, jnp.nan, jnp.inf])
@pytest.mark.parametrize("make", [lambda v: v, ctld_optax.KnownNoise], ids=["a pytree", "KnownNoise"])
def test_variances_that_are_none_are_told(bad, make):
    """A negative one would inject more noise than is due, and a NaN or an infinity none."""
    variances = {"w": jnp.ones((2, 3)).at[1, 2].set(bad), "b": 1.0}
    with pytest.raises(ValueError, match=r"^gradient(_noise)? must be finite and >= 0, and its values lie between"):
        ctld_optax.ctld(0.1, 0.1, key=0, gradient_noise=make(variances))


@pytest.mark.parametrize("variance", [0.5, {"w": 0.5, "b": 0.5}, {"w": jnp.full(3, 0.5), "b": jnp.asarray(0.5)}])
def test_variances_broadcast_against_the_parameters(variance):
    states = []
    for noise in (variance, {"w": jnp.full((2, 3), 0.5), "b": jnp.full(3, 0.5)}):
        tx = ctld_optax.ctld(0.1, 1.0, key=0, gradient_noise=noise)
        states.append(tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)[1])
    for ours, theirs in zip(*map(jax.tree.leaves, (states[0].momentum, states[1].momentum)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("known", [False, True])
def test_strict_promotion_holds_in_narrow_dtypes(dtype, known):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    noise = ctld_optax.KnownNoise(jax.tree.map(lambda p: 0.5 * p, params), 0.1) if known else ctld_optax.RunningNoise(0.9)
    tx = ctld_optax.ctld(0.1, 1.0, key=0, gradient_noise=noise)
    with jax.numpy_dtype_promotion("strict"):
        state = tx.init(params)
        update = jax.jit(tx.update)
        for value in (1.0, 2.0):
            updates, state = update(params, state, params, value=jnp.float32(value))
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves((state.momentum, state.gradient_noise))} <= {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),
    }


@pytest.mark.parametrize("bad", [0.0, jnp.nan, jnp.inf])
def test_a_minibatch_that_is_bad_on_one_shard_is_left_out_on_all(bad):
    # Two blocks of one array, in `vmap` with the name of the axis in the place of two devices.
    noise, specs = ctld_optax.RunningNoise(0.9), {"w": P("shards")}
    blocks = {"w": jnp.stack([jnp.ones(2), jnp.ones(2)])}
    spoiled = {"w": blocks["w"].at[0, 0].add(1.0 + bad)}

    def estimate(first, second):
        state = noise.init(first, jnp.float32)
        for grads in (first, second):
            state = noise.observe(state, grads, jnp.float32(0.0), specs)
        return state

    state = jax.vmap(estimate, axis_name="shards")(blocks, spoiled)
    seen = 2 if bad == 0.0 else 1
    assert state.num_seen.tolist() == [seen, seen]
    expected = np.zeros((2, 2))
    expected[0, 0] = 0.5 if bad == 0.0 else 0.0
    np.testing.assert_allclose(state.gradient["w"], expected, rtol=1e-6)
