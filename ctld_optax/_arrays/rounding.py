r"""Unbiased rounding of the update to parameters of less than 32 bits.

`optax.apply_updates` rounds params + update to the nearest number of the parameters' dtype. bfloat16 has 8 significant bits:
near 1 its numbers are 1/128 apart, and a smaller step is lost (rounded to nothing) or enlarged. Here the update is chosen at
random between two neighbours, u_a and u_b, whose *results* r = round(p + u) enclose the exact p + u:

.. math:: P(u_b) = \frac{(p + u) - r_a}{r_b - r_a}, \qquad\text{so that}\quad E[\text{round}(p + u)] = p + u

whatever the sizes of p and u. What is left is a noise of variance at most (r_b - r_a)^2 / 4.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ctld_optax._arrays import noise as sources
from ctld_optax._arrays.dtypes import any_narrow, is_narrow

# Folded into the state's key for the rounding. Far from 0, 1, 2: folding in i and splitting off the i-th give the same key.
_ROUNDING = 0x726F756E


def uniform(word: jax.Array) -> jax.Array:
    """A noise source: float32, uniform on the 2^24 multiples of 2^-24 in [0, 1)."""
    return (word >> 8).astype(jnp.float32) * np.float32(2.0**-24)


def cast_updates(updates: Any, like: Any, params: Any = None, key: jax.Array | None = None, specs: Any = None) -> Any:
    """Exact updates in the dtype of `like`; their rounding to narrow `params`, if given, is unbiased.

    `key`, needed then, is only read, and may be one that a state holds.
    """
    if params is not None and key is not None and any_narrow(params):
        updates = round_updates(updates, params, jax.random.fold_in(jax.random.clone(key), _ROUNDING), specs)
    return optax.tree.cast_like(updates, like)


def round_updates(updates: Any, params: Any, key: jax.Array, specs: Any = None) -> Any:
    """Updates that bring the parameters to where they should be on average.

    Args:
      updates: the exact ones, in float32 or wider.
      params: the parameters; those of 32 bits or more keep their update as it is.
      key: a typed key, used up.
      specs: as in :func:`ctld_optax.ctld`.

    Returns:
      Like `updates`; where a parameter is narrower than 32 bits, numbers of the parameter's dtype.
    """
    uniforms = sources.draw(key, updates, uniform, specs)
    return jax.tree.map(lambda u, p, uniform: _round(u, p, uniform) if is_narrow(p.dtype) else u, updates, params, uniforms)


def _round(update: jax.Array, param: jax.Array, uniform: jax.Array) -> jax.Array:
    info = jnp.finfo(param.dtype)
    # Below this power of two numbers are equally spaced (and float32 must hold their spacing as a normal number).
    floor = np.maximum(np.float32(info.tiny), np.finfo(np.float32).tiny * np.float32(2.0**info.nmant))

    def spacing(x: jax.Array) -> jax.Array:
        # The exponent bits alone are the power of two below |x|.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & np.uint32(0x7F800000)
        return jnp.maximum(jax.lax.bitcast_convert_type(bits, jnp.float32), floor) * np.float32(2.0**-info.nmant)

    def to_narrow(x: jax.Array) -> jax.Array:
        # Not a pair of casts, which XLA drops (it may keep excess precision), nor reduce_precision, which flushes float16's
        # subnormals: the updates of float16 parameters are often that small.
        return jnp.round(x / spacing(x)) * spacing(x)

    update, param = update.astype(jnp.float32), param.astype(jnp.float32)
    exact = param + update
    near = to_narrow(update)
    near_result = to_narrow(param + near)
    missing = exact - near_result
    # A step, itself rounded away from `near`, that no rounding can swallow: the far result lies beyond the exact one.
    quantum = functools.reduce(jnp.maximum, map(spacing, (near, param, near_result, exact)))
    far = near + jnp.sign(missing) * quantum
    far = jnp.sign(missing) * jnp.ceil(jnp.sign(missing) * far / spacing(far)) * spacing(far)
    far_result = to_narrow(param + far)
    # As a product, so that 0 * 0 and NaN both mean "near".
    take_far = uniform * jnp.abs(far_result - near_result) < jnp.abs(missing)
    return jnp.where(take_far, far, near)
