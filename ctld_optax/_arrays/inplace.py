"""A change that may or may not be made, without a copy of what it changes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def change_if(condition: jax.Array, change: Callable[[Any], Any], carry: Any) -> Any:
    """`change(carry)` if `condition` holds, else `carry`.

    A loop of one turn or none, not a `lax.cond`: XLA runs such a loop in place, and copies the whole carry for a branch that
    makes parts of it anew. It can be differentiated, in both modes.
    """
    keys = [jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in jax.tree.leaves(carry)]

    def unwrapped(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)

    def wrapped(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        return structure.unflatten(
            [
                leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl)
                for leaf, impl in zip(leaves, keys, strict=True)
            ]
        )

    # Keys go through the rule below as bits: jax.debug_key_reuse would count each as used.
    bare = unwrapped(carry)
    converted, constants = jax.closure_convert(lambda tree: unwrapped(change(wrapped(tree))), bare)
    return wrapped(_loop(converted, condition, bare, constants))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loop(change: Callable[..., Any], condition: jax.Array, carry: Any, constants: Any) -> Any:
    turns = condition.astype(jnp.int32)
    return jax.lax.fori_loop(0, turns, lambda _, carry: change(carry, *constants), carry)


@_loop.defjvp
def _loop_jvp(change: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """That of a branch: reverse mode knows no loop of a length that is not fixed."""

    def branch(condition: jax.Array, carry: Any, constants: Any) -> Any:
        return jax.lax.cond(condition, change, lambda carry, *_: carry, carry, *constants)

    return jax.jvp(branch, primals, tangents)
