"""Gradient accumulation that averages the loss too."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ctld_optax._arrays.dtypes import at_least_float32, scalar_dtype_of
from ctld_optax._checked import checked
from ctld_optax._validate import check_count, check_scalar_value, check_update, named_dtypes


class AccumulateState(NamedTuple):
    """State of :func:`accumulate`. Same structure, shapes and dtypes from `init` to every `update`.

    Attributes:
      micro_step: shape (), int32: micro-batches taken in since the last update.
      num_updates: shape (), int32: updates made.
      value: shape (), float32, or float64 if a parameter is: mean of `value` over those micro-batches.
      grads: like params, at least float32: mean gradient over those micro-batches.
      inner: state of the wrapped transformation.
      value_rest: like value: what float32 does not hold of the mean of a float64 loss; empty where there can be none.

    Example:
      >>> tx = ctld_optax.accumulate(ctld_optax.ctld(0.01, 1e-3, key=0), every_k=2)
      >>> isinstance(tx.init(jnp.ones(3)), ctld_optax.AccumulateState)
      True
    """

    micro_step: jax.Array
    num_updates: jax.Array
    value: jax.Array
    grads: Any
    inner: Any
    value_rest: Any = ()


@checked()
def accumulate(
    inner: optax.GradientTransformation, every_k: int | Callable[[jax.Array], Any]
) -> optax.GradientTransformationExtraArgs:
    """Hands the mean gradient *and the mean `value`* of `every_k` micro-batches to `inner`, once.

    What `optax.MultiSteps` does, made right for a transformation that reads the loss and draws noise. `optax.MultiSteps`
    hands over the `value` of the last micro-batch only (the energy that drives alpha is then not that of the gradient), and
    calls the inner update on every micro-batch and throws away all but the last (so the noise is paid for `every_k` times).
    Here the inner update stands in a branch that is taken once in `every_k` calls; the other calls return zeros.

    Args:
      inner: for example :func:`ctld_optax.ctld` or :func:`ctld_optax.phase_switch`. Its own step counts (schedules,
        `sampling_steps`) count updates, not micro-batches.
      every_k: a Python integer >= 1, or a function of the number of updates made so far.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`AccumulateState`. Extra arguments other than `value` are
      handed on as the last micro-batch gave them. A micro-batch that is not finite makes the mean so, and `inner` sees that.

    Raises:
      TypeError, ValueError: if `every_k` is neither a function nor an integer >= 1, `value` is not a real scalar, or a
        parameter has an integer dtype.

    Example:
      >>> tx = ctld_optax.accumulate(ctld_optax.ctld(0.01, 1e-3, key=0), every_k=2)
      >>> params = {"w": jnp.ones(3)}
      >>> state = tx.init(params)
      >>> for loss in (1.0, 3.0):  # two micro-batches, one update
      ...     updates, state = tx.update(params, state, params, value=loss)
      ...     print(bool(jnp.any(updates["w"] != 0.0)))
      False
      True
    """
    if not callable(every_k):
        check_count("every_k", every_k, 1)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> AccumulateState:
        _check_gradients_have_means(params)
        dtype = scalar_dtype_of(params)
        return AccumulateState(
            micro_step=jnp.zeros((), jnp.int32),
            num_updates=jnp.zeros((), jnp.int32),
            value=jnp.zeros((), dtype),
            grads=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=at_least_float32(p.dtype)), params),
            inner=inner.init(params),
            value_rest=() if dtype == _widest() else jnp.zeros((), dtype),
        )

    @checked(state="Write state = tx.init(params); the order is tx.update(grads, state, params, value=loss).")
    def update(
        updates: Any,
        state: AccumulateState,
        params: Any = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulateState]:
        def mean_with(mean: jax.Array, x: jax.Array) -> jax.Array:
            # The share in the mean's own dtype: 1/3 in float32 would spoil a float64 mean.
            return mean + (x.astype(mean.dtype) - mean) / (state.micro_step + 1).astype(mean.dtype)

        check_update(updates, None, state.grads)
        grads = jax.tree.map(mean_with, state.grads, updates)
        dtype, mean_value, rest = state.value.dtype, state.value, state.value_rest
        if value is not None:
            value = check_scalar_value(value, where="accumulate")
            # In float64 wherever there is one. The state, whose dtypes are those of the parameters, holds the mean as a sum of
            # two floats if it must: a float64 loss of float32 parameters is not to lose its last digits here.
            wide = state.value.astype(_widest())
            wide = mean_with(wide if isinstance(rest, tuple) else wide + rest.astype(wide.dtype), value)
            mean_value = wide.astype(dtype)
            rest = rest if isinstance(rest, tuple) else (wide - mean_value.astype(wide.dtype)).astype(dtype)
            extra_args["value"] = wide if value.dtype == wide.dtype else mean_value

        def emit(grads: Any, inner_state: Any) -> tuple[Any, Any, Any]:
            mean_grads = optax.tree.cast_like(grads, updates)
            new_updates, inner_state = inner.update(mean_grads, inner_state, params, **extra_args)
            return optax.tree.cast_like(new_updates, updates), optax.tree.zeros_like(grads), inner_state

        def wait(grads: Any, inner_state: Any) -> tuple[Any, Any, Any]:
            return optax.tree.zeros_like(updates), grads, inner_state

        micro_step = state.micro_step + 1
        done = micro_step >= (every_k(state.num_updates) if callable(every_k) else every_k)
        new_updates, grads, inner_state = jax.lax.cond(done, emit, wait, grads, state.inner)
        return new_updates, AccumulateState(
            micro_step=jnp.where(done, 0, micro_step),
            num_updates=jnp.where(done, optax.safe_increment(state.num_updates), state.num_updates),
            value=jnp.where(done, jnp.zeros_like(mean_value), mean_value),
            grads=grads,
            inner=inner_state,
            value_rest=jax.tree.map(lambda r: jnp.where(done, jnp.zeros_like(r), r), rest),
        )

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def _widest() -> Any:
    """float64 under x64, else float32."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def _check_gradients_have_means(params: optax.Params) -> None:
    for where, dtype in named_dtypes(params):
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{where} has the dtype {dtype}: accumulate takes the mean of gradients, and integers have no gradient. Leave "
                "such leaves out: optax.masked(accumulate(...), lambda params: jax.tree.map(lambda p: "
                "jnp.issubdtype(p.dtype, jnp.inexact), params))."
            )
