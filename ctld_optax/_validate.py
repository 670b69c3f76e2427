"""Checks of hyperparameters: what came, why it is wrong, what to write instead.

Only concrete Python (or NumPy) numbers are checked. A traced hyperparameter, as `optax.inject_hyperparams`
makes, has no value yet and passes through.
"""

import collections
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

SCHEDULE_STEPS = (0, 10, 100, 1_000, 10_000, 100_000, 1_000_000)  # where a schedule is looked at, outside a run
AN_INTEGER = "a Python integer (it fixes a shape or a branch)"


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

    Of an array that is traced only shape and dtype are looked at. A bound that is traced, such as another hyperparameter, does
    not bind.
    """
    minimum, maximum = (bound if isinstance(bound, numbers.Real | np.number) else None for bound in (minimum, maximum))
    if isinstance(value, jax.Array | np.ndarray):
        if value.shape != ():
            raise ValueError(f"{name} must be one number, got an array of shape {value.shape}. {hint}".rstrip())
        if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4:
            raise TypeError(
                f"{name} must be float32 or wider, got {value.dtype}, in which a momentum may be 1 or a temperature 0. Under "
                "optax.inject_hyperparams, which takes the parameters' dtype, write hyperparam_dtype=jnp.float32."
            )
        if not is_known(value):
            return
        value = np.asarray(value)[()]
    if isinstance(value, bool | np.bool) or not isinstance(value, numbers.Real | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}. {hint}".rstrip())
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


def is_known(array: jax.Array | np.ndarray) -> bool:
    """Whether an array has values that this process can look at: it is not traced, and not elsewhere."""
    return not isinstance(array, Tracer) and getattr(array, "is_fully_addressable", True)


def check_values(name: str, array: Any, hint: str) -> None:
    """Raises a `ValueError` if an array has entries < 0 or not finite, where its values are known."""
    if is_known(array):
        with jax.ensure_compile_time_eval():  # a number known inside `jit` is known all the same
            low, high = float(jnp.min(array, initial=0.0)), float(jnp.max(array, initial=0.0))
        if not (low >= 0.0 and math.isfinite(high)):
            raise ValueError(f"{name} must be finite and >= 0, and its values lie between {low:g} and {high:g}. {hint}")


def check_count(name: str, value: Any, minimum: int) -> None:
    """Raises unless `value` is a Python integer >= `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be {AN_INTEGER}, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {value}.")


def as_schedule(name: str, scalar_or_schedule: Any, *, minimum_open: bool = False) -> Callable[[Any], Any]:
    """A schedule as it stands, a number as the schedule that always gives it.

    Raises a `ValueError` or `TypeError` if the number is negative, or 0 where that is left out, or if the schedule gives
    anything but one finite number >= 0 at the steps at which it is looked at.
    """
    if not callable(scalar_or_schedule):
        # An array may be one step of a schedule, as optax.inject_hyperparams hands it on, which may give 0.
        is_array = isinstance(scalar_or_schedule, jax.Array | np.ndarray)
        check_range(name, scalar_or_schedule, minimum=0.0, minimum_open=minimum_open and not is_array)
        return optax.constant_schedule(scalar_or_schedule)
    with jax.ensure_compile_time_eval():  # so that there are numbers inside `jit` too, unless a traced one goes in
        for step in SCHEDULE_STEPS:
            number = scalar_or_schedule(jnp.asarray(step, jnp.int32))
            check_range(f"{name}, at step {step} of its schedule,", number, minimum=0.0)
    return scalar_or_schedule


def check_scalar_value(value: Any, *, where: str) -> Any:
    """The loss as a real array scalar, or a clear error."""
    if isinstance(value, tuple | list | dict):
        raise TypeError(
            f"{where} needs `value` to be a scalar (the loss whose gradient is passed), got a {type(value).__name__}. "
            "If the loss function has an auxiliary output: `(loss, aux), grads = ...`, then `value=loss`."
        )
    if not isinstance(value, jax.Array | np.ndarray | np.generic | numbers.Number):
        raise TypeError(f"{where} needs `value` to be a scalar (the loss whose gradient is passed), got {value!r:.60}.")
    array = jnp.asarray(value)
    if array.shape != ():
        raise ValueError(
            f"{where} needs `value` to be a scalar (the loss whose gradient is passed), got shape {array.shape}. "
            "Reduce it first, for example `value=loss.mean()`."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{where} needs `value` to be a real floating-point scalar, got dtype {array.dtype}.")
    return array


def as_numbers(name: str, values: Any) -> np.ndarray:
    """Real numbers of any shape, in float64 on the host."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # ragged lists, typed keys
        array = np.asarray(None)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool)):
        raise TypeError(f"{name} must be an array of real numbers, got {type(values).__name__} {values!r:.60}.")
    return array.astype(np.float64)


def check_dtype(name: str, dtype: Any) -> None:
    """Raises unless `dtype` is None or a real floating-point dtype."""
    try:
        is_array = isinstance(dtype, jax.Array | np.ndarray)
        is_real = dtype is None or (not is_array and jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
    except TypeError:
        is_real = False
    if not is_real:
        raise TypeError(f"{name} must be a real floating-point dtype, got {dtype!r}. Write jnp.float32, for example.")


def check_specs(name: str, specs: Any) -> None:
    """Raises unless a pytree holds `PartitionSpec`s only."""
    for spec in jax.tree.leaves(specs):
        if not isinstance(spec, jax.sharding.PartitionSpec):
            raise TypeError(
                f"{name} must be a pytree of jax.sharding.PartitionSpec, like in_specs of jax.shard_map; got {spec!r}."
            )


def named_dtypes(tree: Any, word: str = "parameter") -> Iterator[tuple[str, Any]]:
    """What to call each leaf in a message, and its dtype. Raises where a leaf has none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = f"{word} {jax.tree_util.keystr(path) or 'tree'}"
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            raise TypeError(
                f"{where} must be a jax array, got {type(leaf).__name__} {leaf!r:.60}. Write jnp.asarray(...) for a number; "
                "leave out what is none, for example by eqx.filter(model, eqx.is_inexact_array)."
            )
        yield where, dtype


def check_arrays(tree: Any, word: str = "parameter") -> None:
    """Raises unless every leaf is an array, or a ShapeDtypeStruct."""
    collections.deque(named_dtypes(tree, word), maxlen=0)


def check_params(params: Any, word: str = "parameter") -> None:
    """Raises unless every leaf is an array (or a ShapeDtypeStruct) of a real floating-point dtype."""
    for where, dtype in named_dtypes(params, word):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{where} must have a real floating-point dtype, got {dtype}: Langevin dynamics needs a real gradient. "
                "Leave such leaves out with optax.masked or optax.partition; split a complex one into real and imaginary parts."
            )


def check_bias(name: str, array: Any, num_bins: int) -> None:
    """Raises unless an array is what a bias of so many bins remembers, or several of them stacked."""
    if np.shape(array)[-2:] != (2, num_bins + 1):
        raise ValueError(
            f"{name} must be that of a bias of {num_bins} bins, of shape (2, {num_bins + 1}), got {np.shape(array)}. Pass the "
            "bias as it was given to ctld."
        )


def check_update(updates: Any, params: Any, like: Any) -> None:
    """Raises unless `updates` are arrays like those that the state has of them, and `params`, if any, are parameters."""
    check_arrays(updates, "updates, the gradient")
    given, known = jax.tree.structure(updates), jax.tree.structure(like)
    if given != known:
        raise ValueError(f"updates, the gradients, must have the structure that init saw in params, {known}; got {given}.")
    for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(like), strict=True):
        if new.shape != old.shape:
            raise ValueError(
                f"updates, the gradients, must have the shapes that init saw in params, {old.shape} for "
                f"{jax.tree_util.keystr(path) or 'the one leaf'}; got {new.shape}. Take the mean over a batch of them first."
            )
    if params is not None:
        check_params(params)


def as_key(key: Any) -> jax.Array:
    """One typed key from an int of any size, a typed key or a legacy uint32 key."""
    if isinstance(key, int | np.integer):
        if -(2**31) < key < 2**32:
            return jax.random.key(key)
        # JAX drops all but the last 32 bits, or stops: the rest is folded in, 32 bits at a time.
        typed, rest = jax.random.key(np.uint32(key & 0xFFFFFFFF)), int(key) >> 32
        while True:
            typed, rest = jax.random.fold_in(typed, np.uint32(rest & 0xFFFFFFFF)), rest >> 32
            if rest in (0, -1):
                return typed
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
