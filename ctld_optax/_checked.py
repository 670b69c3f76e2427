"""The kind of an argument is said once, by its annotation, and every public call is held to it.

What an annotation cannot say (ranges, shapes, what is in a pytree) is asked by :mod:`ctld_optax._validate`.
"""

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax._validate import AN_INTEGER

P = ParamSpec("P")
R = TypeVar("R")
NUMBERS = (float, int, bool, complex, np.bool, np.number, np.ndarray, jax.Array)


def checked(**hints: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: every argument must be of the kind that its annotation says.

    `float`, alone or in a union such as `ArrayLike`, stands for real numbers and arrays of them, traced ones included; `int`
    for a Python or NumPy integer; a class for its instances; `Any` for whatever the function itself asks.

    Args:
      **hints: what to write instead, by the name of the argument. Without one the message shows an instance of the class
        that is wanted.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                given = {}  # Python's own message, of the call below, says which argument is missing or not known
            check_kinds(given, annotations, hints)
            return function(*args, **kwargs)

        return call

    return decorate


def check_fields(instance: Any) -> None:
    """As :func:`checked`, for the fields of a dataclass."""
    check_kinds(vars(instance), {field.name: field.type for field in dataclasses.fields(instance)}, {})


def check_kinds(values: Mapping[str, Any], annotations: Mapping[str, Any], hints: Mapping[str, str]) -> None:
    """Raises a `TypeError` for the first value that is not of its kind, a `ValueError` for an unknown option."""
    for name, value in values.items():
        arms = _arms(annotations[name])
        if any(_is_of(value, arm) for arm in arms):
            continue
        is_unknown = isinstance(value, str) and any(get_origin(arm) is Literal for arm in arms)
        advice = hints.get(name) or _advice(name, value, arms)
        message = f"{name} must be {_listed(arms)}, got {_shown(value)}. {advice}".rstrip()
        raise ValueError(message) if is_unknown else TypeError(message)


def _arms(annotation: Any) -> list[Any]:
    """The kinds that a union allows (of another annotation itself), with all that are numbers as one, `float`."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    arms = [arm for part in get_args(annotation) for arm in _arms(part)]
    return [float, *(arm for arm in arms if arm not in NUMBERS)] if float in arms else arms


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    return not isinstance(value, bool) and isinstance(value, numbers.Real)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


INSTANCES: dict[Any, Callable[[Any], bool]] = {int: _is_integer, float: _is_number, jax.Array: _is_array}


def _is_of(value: Any, arm: Any) -> bool:
    origin = get_origin(arm) or arm
    if origin is Literal:
        return isinstance(value, str) and value in get_args(arm)
    if origin is collections.abc.Callable:
        return callable(value) and not isinstance(value, type)
    if origin in INSTANCES:
        return INSTANCES[origin](value)
    # `self` has no annotation; and what is no class, or a protocol such as that of dtypes, cannot be asked for its instances.
    is_class = isinstance(origin, type) and not getattr(origin, "_is_protocol", False)
    return origin in {Any, inspect.Parameter.empty} or not is_class or isinstance(value, origin)


def _listed(arms: list[Any]) -> str:
    """The kinds in words."""
    words = list(dict.fromkeys(word for arm in arms for word in _words(arm)))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(arm: Any) -> list[str]:
    origin = get_origin(arm) or arm
    if origin is Literal:
        return [repr(choice) for choice in get_args(arm)]
    known = {
        int: AN_INTEGER,
        jax.Array: "a jax.Array",
        float: "a number",
        collections.abc.Callable: "a function",
        type(None): "None",
    }
    return [known.get(origin) or f"a {origin.__name__}"]


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else f'{shown[:60]}...'}, of type {type(value).__name__}"


def _advice(name: str, value: Any, arms: list[Any]) -> str:
    """An instance to write, of the class that came or of the first one that may."""
    ours = [arm for arm in arms if isinstance(arm, type) and arm.__module__.startswith("ctld_optax")]
    return f"Write {name}={(value if value in ours else ours[0]).__name__}(...)." if ours else ""
