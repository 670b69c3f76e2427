"""Checks of hyperparameters: what came, why it is wrong, what to write instead.

Only concrete Python (or NumPy) numbers are checked. A traced hyperparameter, as `optax.inject_hyperparams`
makes, has no value yet and passes through.
"""

import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def check_range(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    minimum_open: bool = False,
    maximum_open: bool = False,
    hint: str = "",
) -> None:
    """Raises a `ValueError` or `TypeError` if a concrete number is not finite or lies outside its range.

    A bound that is traced, such as another hyperparameter, does not bind.
    """
    minimum, maximum = (bound if isinstance(bound, numbers.Real | np.number) else None for bound in (minimum, maximum))
    if isinstance(value, str | bytes | bool | np.bool | complex | list | tuple | dict) or value is None:
        raise TypeError(f"{name} must be a number, got {value!r}. {hint}".rstrip())
    if not isinstance(value, numbers.Real | np.number):
        return
    number = float(value)
    low_ok = minimum is None or number > minimum or (number == minimum and not minimum_open)
    high_ok = maximum is None or number < maximum or (number == maximum and not maximum_open)
    if math.isfinite(number) and low_ok and high_ok:
        return
    low = "-inf" if minimum is None else f"{minimum:g}"
    high = "inf" if maximum is None else f"{maximum:g}"
    left = "(" if minimum is None or minimum_open else "["
    right = ")" if maximum is None or maximum_open else "]"
    raise ValueError(f"{name} must be a finite number in {left}{low}, {high}{right}, got {value!r}. {hint}".rstrip())


def check_count(name: str, value: Any, minimum: int) -> None:
    """Raises unless `value` is a Python integer >= `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a Python integer (it fixes a shape or a branch), got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {value}.")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {known}, got {value!r}.")


def as_schedule(scalar_or_schedule: Any) -> Callable[[Any], Any]:
    """A schedule as it stands, a number as the schedule that always gives it."""
    return scalar_or_schedule if callable(scalar_or_schedule) else optax.constant_schedule(scalar_or_schedule)


def check_scalar_value(value: Any, *, where: str) -> Any:
    """The loss as a real array scalar, or a clear error."""
    if isinstance(value, tuple | list | dict):
        raise TypeError(
            f"{where} needs `value` to be a scalar (the loss whose gradient is passed), got a {type(value).__name__}. "
            "If the loss function has an auxiliary output: `(loss, aux), grads = ...`, then `value=loss`."
        )
    array = jnp.asarray(value)
    if array.shape != ():
        raise ValueError(
            f"{where} needs `value` to be a scalar (the loss whose gradient is passed), got shape {array.shape}. "
            "Reduce it first, for example `value=loss.mean()`."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{where} needs `value` to be a real floating-point scalar, got dtype {array.dtype}.")
    return array


def check_dtype(name: str, dtype: Any) -> None:
    """Raises unless `dtype` is None or a real floating-point dtype."""
    if dtype is not None and not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"{name} must be a real floating-point dtype, got {dtype!r}.")


def named_dtypes(params: Any) -> Iterator[tuple[str, Any]]:
    """What to call each leaf in a message, and its dtype. Raises where a leaf has none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = f"parameter {jax.tree_util.keystr(path) or 'tree'}"
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            raise TypeError(f"{where} must be a jax array, got {type(leaf).__name__} {leaf!r}. Write jnp.asarray(...).")
        yield where, dtype


def check_params(params: Any) -> None:
    """Raises unless every leaf is an array (or a ShapeDtypeStruct) of a real floating-point dtype."""
    for where, dtype in named_dtypes(params):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{where} must have a real floating-point dtype, got {dtype}: Langevin dynamics needs a real gradient. "
                "Leave such leaves out with optax.masked or optax.partition; split a complex one into real and imaginary parts."
            )


def as_key(key: Any) -> jax.Array:
    """One typed key from an int, a typed key or a legacy uint32 key."""
    if isinstance(key, bool) or not isinstance(key, int | np.integer | jax.Array | np.ndarray):
        raise TypeError(f"key must be an int or a jax.random.key, got {key!r}.")
    if isinstance(key, int | np.integer):
        return jax.random.key(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        typed = jnp.asarray(key)
    elif key.shape == () and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(key)  # a seed that optax.inject_hyperparams has made an array of
    elif key.dtype == jnp.uint32 and key.ndim == 1:
        typed = jax.random.wrap_key_data(jnp.asarray(key))
    else:
        raise TypeError(f"key must be an int or a jax.random.key, got an array of dtype {key.dtype}, shape {key.shape}.")
    if typed.shape != ():
        raise ValueError(
            f"key must be one key, got an array of keys of shape {typed.shape}. For replicas, vmap over it: "
            "jax.vmap(lambda key: ctld(..., key=key).init(params))(keys)."
        )
    return typed
