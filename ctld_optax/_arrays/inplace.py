"""A change that may or may not be made, without a copy of what it changes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from ctld_optax._arrays import compat


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
    def turn(number: jax.Array, carry: Any) -> Any:
        # What hangs on the constants alone XLA would make in front of the loop, in buffers of their own, turn or no turn.
        return change(carry, *(compat.barrier(constant, number) for constant in constants))

    return jax.lax.fori_loop(0, condition.astype(jnp.int32), turn, carry)


@_loop.defjvp
def _loop_jvp(change: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """That of a branch: reverse mode knows no loop of a length that is not fixed."""

    def branch(condition: jax.Array, carry: Any, constants: Any) -> Any:
        return jax.lax.cond(condition, change, lambda carry, *_: carry, carry, *constants)

    return jax.jvp(branch, primals, tangents)


def either(condition: jax.Array, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
    """`first()` if `condition` holds, else `second()`, trees of arrays: both are made, entry by entry, and one is selected.

    For arithmetic that XLA fuses into whatever takes the result, without a buffer for it, which a `lax.cond` would fill. It
    can be differentiated, in both modes.
    """
    (first, of_first), (second, of_second) = _opened(first), _opened(second)
    return _either(first, second, condition, of_first, of_second)


def _opened(function: Callable[[], Any]) -> tuple[Callable[..., Any], list[Any]]:
    """A function of what it closes over, integers among it, and that."""
    program, shapes = jax.make_jaxpr(function, return_shape=True)()

    def opened(*constants: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(ClosedJaxpr(program.jaxpr, constants))())

    return opened, program.consts


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _either(first: Callable[..., Any], second: Callable[..., Any], condition: jax.Array, of_first: Any, of_second: Any) -> Any:
    return jax.tree.map(functools.partial(jnp.where, condition), first(*of_first), second(*of_second))


@_either.defjvp
def _either_jvp(first: Callable[..., Any], second: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """That of a branch: the other side may be a division by 0, whose derivative a selection would not leave out."""

    def branch(condition: jax.Array, of_first: Any, of_second: Any) -> Any:
        return jax.lax.cond(condition, lambda one, _: first(*one), lambda _, other: second(*other), of_first, of_second)

    return jax.jvp(branch, primals, tangents)
