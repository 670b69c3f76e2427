"""Functions that several test modules use."""

import importlib
import pkgutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ctld_optax


def public_modules():
    """The package, and its modules without an underscore."""
    yield ctld_optax
    for found in pkgutil.iter_modules(ctld_optax.__path__, "ctld_optax."):
        if not found.name.split(".")[1].startswith("_"):
            yield importlib.import_module(found.name)


def public_objects():
    """Each public function and class by the path a user would import it from, once."""
    seen = set()
    for module in public_modules():
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            found = getattr(module, name)
            # What a module lists is its own wherever it is written; of one without a list, what is written in it.
            home = "ctld_optax" if hasattr(module, "__all__") else module.__name__
            is_ours = callable(found) and getattr(found, "__module__", "").startswith(home)
            if is_ours and not isinstance(found, types.ModuleType) and found not in seen:
                seen.add(found)
                yield f"{module.__name__}.{name}", found


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
