"""Functions that several test modules use."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def stepper(transformation, loss):
    """One jitted training step: (params, state) -> (params, state)."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    return step


def run(transformation, loss, params, num_steps):
    """Parameters and state after `num_steps`."""
    state = transformation.init(params)
    step = stepper(transformation, loss)
    for _ in range(num_steps):
        params, state = step(params, state)
    return params, state


def plain(tree):
    """The tree in NumPy, PRNG keys as their data."""

    def leaf(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(leaf, tree)


def assert_identical(first, second):
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(plain(first)), jax.tree.leaves(plain(second)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain(tree)):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)


def signature(tree):
    """Structure, shapes, dtypes and weak types: what decides whether a step is compiled anew."""
    return jax.tree.structure(tree), [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(tree)]
