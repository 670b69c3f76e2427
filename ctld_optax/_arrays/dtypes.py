"""Which dtype a buffer or a scalar has, for parameters of a given one."""

from typing import Any

import jax
import jax.numpy as jnp


def is_narrow(dtype: Any) -> bool:
    """Whether a dtype is narrower than float32."""
    return jnp.finfo(dtype).bits < 32


def any_narrow(params: Any) -> bool:
    return any(is_narrow(leaf.dtype) for leaf in jax.tree.leaves(params))


def at_least_float32(dtype: Any) -> Any:
    """As `jnp.promote_types(dtype, float32)`, which strict dtype promotion forbids."""
    return jnp.dtype(jnp.float32) if is_narrow(dtype) else jnp.dtype(dtype)


def mean_dtype_of(dtype: Any) -> Any:
    """That of a mean, which counts and booleans have too: at least float32."""
    return at_least_float32(dtype) if jnp.issubdtype(dtype, jnp.inexact) else jnp.dtype(jnp.float32)


def momentum_dtype_of(param: Any, momentum_dtype: Any) -> Any:
    """That of a parameter, but at least float32, unless the caller has chosen one."""
    # Canonical: a NumPy float64 array counts as float32 unless x64 is enabled.
    dtype = jax.dtypes.canonicalize_dtype(param.dtype)
    return at_least_float32(dtype) if momentum_dtype is None else jnp.dtype(momentum_dtype)


def scalar_dtype_of(params: Any) -> Any:
    """float32, or float64 if any parameter is."""
    wide = any(jax.dtypes.canonicalize_dtype(leaf.dtype) == jnp.float64 for leaf in jax.tree.leaves(params))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)
