"""The one room that knows of versions: what newer ones of JAX have, and what stands in for it in older ones.

A name is asked for, never a version's number. Whatever else the package uses is in the oldest JAX and Optax of pyproject.toml.
"""

import contextlib
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def enable_x64(enabled: bool) -> contextlib.AbstractContextManager[None]:
    """float64 and 64-bit integers inside the block, or not: `jax.enable_x64`, of JAX 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    from jax import experimental  # noqa: PLC0415 - there is no other door in older JAX

    older: Any = experimental
    return older.enable_x64(enabled)


def axis_size(names: str | Sequence[str]) -> int:
    """How many devices or replicas stand along named axes: `jax.lax.axis_size`, of JAX 0.6.

    Raises:
      NameError: if an axis is not in scope.
    """
    return jax.lax.axis_size(names) if hasattr(jax.lax, "axis_size") else jax.lax.psum(1, names)


def broadcast(prefix: Any, tree: Any) -> Any:
    """A pytree prefix's leaves in the place of each leaf of `tree` below them: `jax.tree.broadcast`, of JAX 0.6."""
    if hasattr(jax.tree, "broadcast"):
        return jax.tree.broadcast(prefix, tree)
    return jax.tree.map(lambda value, below: jax.tree.map(lambda _: value, below), prefix, tree)


def path_name(path: Sequence[Any], separator: str) -> str:
    """The keys of a path without ornaments, "sampler/alpha": `jax.tree_util.keystr(simple=True)`, of JAX 0.5."""
    if "simple" in inspect.signature(jax.tree_util.keystr).parameters:
        return jax.tree_util.keystr(tuple(path), simple=True, separator=separator)
    return separator.join(str(getattr(key, name)) for key in path for name in ("key", "idx", "name") if hasattr(key, name))


def barrier(array: jax.Array, *after: jax.Array) -> jax.Array:
    """`jax.lax.optimization_barrier`, which newer JAX can differentiate and map over; nothing in older JAX, which cannot.

    Of one array, and of numbers that are to be there before it: of several arrays it takes each to vary over the mesh axes of
    `jax.shard_map` over which one of them does.
    """
    return jax.lax.optimization_barrier((array, *after))[0] if barrier_has_rules() else array


@functools.cache
def barrier_has_rules() -> bool:
    """Whether it can be differentiated and mapped over here."""
    square = lambda x: jax.lax.optimization_barrier(x) ** 2
    try:
        jax.eval_shape(jax.vmap(lambda x: jax.jvp(square, (x,), (x,))), np.ones(1))
        jax.eval_shape(jax.vmap(jax.grad(square)), np.ones(1))
    except NotImplementedError:
        return False
    return True


def explicit_sharding(array: jax.Array, leading: int = 0) -> Any:
    """What the type of an array says about its sharding: something on a mesh with Explicit axes, None otherwise.

    Types say so since JAX 0.5; before there is no such mesh. `leading` axes before those of `array` are whole on each device.
    """
    if not hasattr(jax, "typeof"):
        return None
    sharding = jax.typeof(array).sharding
    if all(entry is None for entry in sharding.spec):
        return None
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*[None] * leading, *sharding.spec))


def iota(dtype: Any, shape: tuple[int, ...], dimension: int, sharding: Any) -> jax.Array:
    """The index along a dimension; `sharding` as :func:`explicit_sharding` gives it.

    An array made from nothing must be told, or each device would make the whole of it.
    """
    told = {} if sharding is None else {"out_sharding": sharding}
    return jax.lax.broadcasted_iota(dtype, shape, dimension, **told)
