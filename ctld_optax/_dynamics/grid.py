"""The grid over alpha on which a bias is held, and what a step tells a bias. Nothing here knows which bias it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Visit(NamedTuple):
    """What one step tells a bias.

    Attributes:
      alpha: shape (), where alpha stands.
      force: shape (), -g'(alpha) * coupled energy, the force that the energy exerts there, in units of k_B T_c.
      weight: shape (), how much the visit counts: 1, or 0 for a step that was not finite.
    """

    alpha: jax.Array
    force: jax.Array | float = 0.0
    weight: jax.Array | float = 1.0


class Place(NamedTuple):
    """Where on the grid an alpha stands.

    Attributes:
      left: shape (), int32: the node left of it, in [0, num_bins - 1].
      fraction: shape (), in [0, 1]: how far it is on the way to the next.
      spacing: shape (): the distance of two nodes.
    """

    left: jax.Array
    fraction: jax.Array
    spacing: jax.Array


def nodes(limit: float, num_bins: int, dtype: Any = jnp.float32) -> jax.Array:
    """`num_bins + 1` equally spaced nodes from -limit to limit, both ends included."""
    return jnp.asarray(np.linspace(-limit, limit, num_bins + 1), dtype)


def place(alpha: jax.Array, limit: float, num_bins: int, dtype: Any) -> Place:
    """The bin around `alpha`; the first or the last one for an alpha beyond the walls."""
    spacing = jnp.asarray(2.0 * limit / num_bins, dtype)
    # An integer of what may be far outside would overflow; the fraction is of alpha itself, to be 0 or 1 out there.
    bins = jnp.floor((jnp.clip(alpha, -limit, limit) + limit) / spacing).astype(jnp.int32)
    left = jnp.clip(bins, 0, num_bins - 1)
    return Place(left, jnp.clip((alpha + limit) / spacing - left.astype(dtype), 0.0, 1.0), spacing)


def ends(array: jax.Array, where: Place) -> jax.Array:
    """The two columns of an array of shape (..., num_bins + 1) around a place: shape (..., 2)."""
    return jax.lax.dynamic_slice_in_dim(array, where.left, 2, axis=-1)


def inside(alpha: jax.Array, limit: float, slope: jax.Array) -> jax.Array:
    """`slope` between the walls, 0 beyond them, where a bias exerts no force."""
    return jnp.where(jnp.abs(alpha) <= limit, slope, 0.0)
