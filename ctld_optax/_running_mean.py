"""A weighted mean that grows with a run: of predictions, of weights, of batch statistics. It keeps the mean and no sample."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax._arrays.dtypes import mean_dtype_of, scalar_dtype_of
from ctld_optax._checked import check_fields, checked
from ctld_optax._validate import check_arrays, check_count, check_range


class RunningMeanState(NamedTuple):
    """State of a :class:`RunningMean`. Same structure, shapes and dtypes from `init` to every `update`.

    Attributes:
      mean: like what the function gives, at least float32; NaN while nothing has come in.
      weight: shape (), float32, or float64 if a mean is: sum of the weights that came in.
      num_open: shape (), int32: steps so far whose weight was above 0.

    Example:
      >>> average = ctld_optax.posterior.RunningMean()
      >>> state = average.init(jnp.zeros(2))
      >>> state = average.update(state, 1.0, jnp.array([1.0, 4.0]))
      >>> state = average.update(state, 3.0, jnp.array([5.0, 0.0]))
      >>> state.mean
      Array([4., 1.], dtype=float32)
    """

    mean: Any
    weight: jax.Array
    num_open: jax.Array


def as_given(value: Any) -> Any:
    """The value itself."""
    return value


@dataclasses.dataclass(frozen=True)
class RunningMean:
    r"""The weighted mean of `function(*args)` over the steps of a run, in the memory of one.

    .. math:: W_n = W_{n-1} + w_n, \qquad m_n = m_{n-1} + \frac{w_n}{W_n} (f_n - m_{n-1})

    With a model's probabilities on a fixed set of inputs, it is the posterior predictive of every network of a run, where
    a :class:`Reservoir` keeps some of the networks, and so can be asked for any input later. With the parameters themselves it
    is stochastic weight averaging; with the batch statistics that batches give under averaged parameters, what such a network
    needs in place of those that it never had.

    Args:
      function: `function(*args)` gives an array, or a pytree of them; average probabilities, not logits. Called at the
        steps that come in and at no other (under `vmap` at all). As it stands the argument itself is averaged.
      thin: >= 1, take in every so many of the steps whose weight is above 0. A prediction costs as much as a step
        where the set is as large as a few minibatches, and neighbours say nearly the same.

    Raises:
      ValueError, TypeError: if `thin` is no Python integer >= 1, or `function` is no function.

    Source: West, "Updating Mean and Variance Estimates: An Improved Method", CACM 22 (1979).

    Example:
      >>> model = lambda params, x: jax.nn.sigmoid(x @ params)
      >>> x = jnp.ones((4, 2))
      >>> average = ctld_optax.posterior.RunningMean(model, thin=10)
      >>> state = average.init(jnp.zeros(2), x)
      >>> for number in range(100):
      ...     params, alpha = jnp.full(2, 0.01 * number), 0.2
      ...     state = average.update(state, ctld_optax.posterior.in_window(alpha), params, x)
      >>> state.mean.shape, int(state.num_open), float(state.weight)
      ((4,), 100, 10.0)
    """

    function: Callable[..., Any] = as_given
    thin: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("thin", self.thin, 1)

    def init(self, *args: Any) -> RunningMeanState:
        """NaN in the shape of `function(*args)`, which is not computed. The arguments are arrays or their shapes."""
        check_arrays(args, "argument")
        result = jax.eval_shape(self.function, *args)
        empty = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, mean_dtype_of(leaf.dtype)), result)
        return RunningMeanState(empty, jnp.zeros((), scalar_dtype_of(empty)), jnp.zeros((), jnp.int32))

    @checked(state="Write state = average.init(params, inputs).")
    def update(self, state: RunningMeanState, weight: Any, *args: Any) -> RunningMeanState:
        """Takes in `function(*args)` of one step with its weight >= 0: a number, or a boolean as :func:`in_window` gives."""
        w = _as_weight(weight).astype(state.weight.dtype)
        is_open = w > 0.0
        is_taken = is_open & (state.num_open % self.thin == 0)
        total = state.weight + jnp.where(is_taken, w, 0.0)

        def taken() -> Any:
            found = self.function(*args)
            _check_like(found, state.mean)
            # The first one is assigned: before it there is no number to move away from.
            return jax.tree.map(lambda mean, f: _moved(mean, f, w, total, is_first=state.weight == 0.0), state.mean, found)

        mean = jax.lax.cond(is_taken, taken, lambda: state.mean)
        return RunningMeanState(mean, total, state.num_open + is_open.astype(jnp.int32))


def _as_weight(weight: Any) -> jax.Array:
    """A number >= 0 or a boolean, as an array."""
    is_array = isinstance(weight, jax.Array | np.ndarray | np.generic)
    kind = weight.dtype if is_array else jnp.result_type(type(weight)) if isinstance(weight, bool | int | float) else None
    if kind is None or not any(jnp.issubdtype(kind, known) for known in (jnp.bool, jnp.integer, jnp.floating)):
        raise TypeError(f"weight must be a number or a boolean, got {weight!r:.60}. Write True, or what in_window gives.")
    if kind != jnp.bool:
        check_range("weight", weight, minimum=0.0, hint="Call update once a step.")
    elif jnp.shape(weight) != ():
        raise ValueError(f"weight must be one boolean, got an array of shape {jnp.shape(weight)}. Call update once a step.")
    return jnp.asarray(weight)


def _check_like(found: Any, mean: Any) -> None:
    given, known = jax.tree.structure(found), jax.tree.structure(mean)
    if given != known:
        raise ValueError(f"the function must give the structure that it gave at init, {known}, got {given}.")
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(mean), strict=True):
        if jnp.shape(new) != old.shape:
            raise ValueError(f"the function must give shape {old.shape}, as at init, got {jnp.shape(new)}.")


def _moved(mean: jax.Array, found: Any, weight: jax.Array, total: jax.Array, *, is_first: jax.Array) -> jax.Array:
    value = jnp.asarray(found).astype(mean.dtype)
    # The share in the mean's own dtype: 1/3 in float32 would spoil a float64 mean.
    return jnp.where(is_first, value, mean + weight.astype(mean.dtype) / total.astype(mean.dtype) * (value - mean))
