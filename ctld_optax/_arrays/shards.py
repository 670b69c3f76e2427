"""Which part of a parameter a device holds, inside `jax.shard_map`.

Under `jit` the compiler knows the whole array, and nothing here is needed. A function inside `jax.shard_map` sees only its own
block; with the `PartitionSpec` by which the parameter was cut it can tell where in the whole the block stands. The noise of a
parameter then depends on its place in the whole, not on how many devices there are, and sums over all parameters count each
of them once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._arrays import compat


class Block(NamedTuple):
    """A box of a larger array."""

    whole: tuple[int, ...]  # shape of the larger array
    offset: tuple[Any, ...]  # index of the box's first element, one integer (traced, if cut) a dimension


def spec_leaves(specs: Any, tree: Any) -> list[Any]:
    """One `PartitionSpec` (or None) for each leaf of `tree`, from a pytree prefix such as `jax.shard_map` takes."""
    if specs is None:
        return [None] * len(jax.tree.leaves(tree))
    return jax.tree.leaves(compat.broadcast(specs, tree))


def block(shape: tuple[int, ...], spec: Any) -> Block:
    """Where the caller's block of the given shape stands. Raises `NameError` for an axis that is not in scope."""
    whole: list[int] = list(shape)
    offset: list[Any] = [0] * len(shape)
    for dimension, names in enumerate(() if spec is None else spec):
        if names:
            whole[dimension] = shape[dimension] * compat.axis_size(names)
            offset[dimension] = jax.lax.axis_index(names) * shape[dimension]
    return Block(tuple(whole), tuple(offset))


def specs_in_scope(specs: Any) -> Any:
    """`specs` inside the `jax.shard_map` they speak of; None outside, where arrays are whole."""
    try:
        for spec in jax.tree.leaves(specs):
            compat.axis_size(_axes(spec))
    except NameError:
        return None
    return specs


def sum_over_shards(sums: Sequence[jax.Array], specs: Sequence[Any], dtype: Any) -> jax.Array:
    """The sum over all leaves and shards, from one local sum a leaf: one scalar `psum` for each set of axes.

    A leaf that is replicated along an axis counts once.
    """
    groups: dict[tuple[str, ...], jax.Array] = {}
    for local, spec in zip(sums, specs, strict=True):
        axes = _axes(spec)
        groups[axes] = groups.get(axes, jnp.zeros((), dtype)) + local.astype(dtype)
    total = jnp.zeros((), dtype)
    for axes, local in sorted(groups.items()):
        total = total + (jax.lax.psum(local, axes) if axes else local)
    return total


def leaf_sums_over_shards(sums: Sequence[jax.Array], specs: Sequence[Any]) -> list[jax.Array]:
    """The sum of each leaf over its shards, from one local sum a leaf: one `psum` for each set of axes."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, spec in enumerate(specs):
        groups.setdefault(_axes(spec), []).append(number)
    whole = list(sums)
    for axes, numbers in sorted(groups.items()):
        if axes:
            together = jax.lax.psum([sums[number] for number in numbers], axes)
            for number, total in zip(numbers, together, strict=True):
                whole[number] = total
    return whole


def _axes(spec: Any) -> tuple[str, ...]:
    names: list[str] = []
    for entry in () if spec is None else spec:
        if entry:
            names.extend((entry,) if isinstance(entry, str) else entry)
    return tuple(sorted(names))
