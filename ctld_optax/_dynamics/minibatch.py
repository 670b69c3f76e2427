"""Compensation for the noise of minibatches, Eq. 8-10: inject only the noise that the gradient does not bring itself.

A minibatch gradient is grad + N(0, Sigma), and it enters the momentum as it is, so the variance left to inject is

    max(0, 2 (1 - momentum) T / (lr beta) - Sigma)          per parameter, in units of the gradient squared;

a minibatch loss is value + N(0, sigma^2), and it enters r_alpha as h g'(alpha) times value/T, so the variance left there is

    max(0, 2 (1 - alpha_momentum) - (h g'(alpha) sigma / scale)^2),

with `scale` = T for the hamiltonian coupling and the running standard deviation for the standardized one. The paper prints
g' without the square (Eq. 9) and leaves it out (Eq. 10); the variance of g' times a variate is g'^2 times its variance.

In a metric, theta = S z, all this is about the gradient in its coordinates, S^T g: there the momentum takes it in, and there
noise is injected. Its own noise has the covariance S^T Sigma S, so that what is left is

    max(0, 2 (1 - momentum) T / (lr beta) - diag(S^T Sigma S))

for each coordinate, exact where S^T Sigma S is diagonal. That of a metric of the curvature, S^T H S = I, is so by itself where
the model is right: then the covariance of the gradients of single examples is their mean curvature (the information equality),
and minibatches of B out of N examples make S^T Sigma S = (N/B) I, for `value` the sum over the examples.

The noise of a minibatch is white whatever the order of the step, and what is injected has the same power at low frequencies
in either order, so that the rule is the same in both. :mod:`ctld_optax._dynamics.integrators` has what the white part does to
the variances at a step that is not small.

Nothing here knows of Optax or of alpha.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax._arrays import shards
from ctld_optax._arrays.dtypes import at_least_float32
from ctld_optax._checked import check_fields
from ctld_optax._dynamics.layers import each
from ctld_optax._dynamics.preconditioner import Memory, Natural
from ctld_optax._validate import check_range, check_values


class NoiseState(NamedTuple):
    """What an estimator remembers; kept in the sampler's state only if there is one.

    Attributes:
      gradient: like params: running mean of (g_t - g_{t-1})^2 / 2.
      last_gradient: like params.
      value: shape (): running mean of (value_t - value_{t-1})^2 / 2.
      last_value: shape ().
      num_seen: shape (), int32: gradients taken in.
    """

    gradient: Any
    last_gradient: Any
    value: jax.Array
    last_value: jax.Array
    num_seen: jax.Array


class Variances(NamedTuple):
    """Sigma, a number or a pytree like params, and sigma^2."""

    gradient: Any
    value: Any


@dataclasses.dataclass(frozen=True)
class KnownNoise:
    """Variances that are known, or estimated elsewhere, and stay as they are. No state.

    Args:
      gradient: Sigma >= 0, variance of an entry of the minibatch gradient about the full one: a number, or a pytree like
        params of arrays that broadcast against them. A diagonal metric carries it over to its coordinates; a dense one has
        directions of its own, and needs :class:`~ctld_optax.RunningNoise`.
      value: sigma^2 >= 0, variance of the minibatch loss about the full one.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> noise = ctld_optax.KnownNoise(gradient=0.1)  # variance of each entry
      >>> sampler = ctld_optax.posterior_sampler(0.01, 1e-3, key=0, gradient_noise=noise)
    """

    gradient: Any
    value: Any = 0.0

    def __post_init__(self) -> None:
        _check_variances("gradient", self.gradient)
        check_range("value", self.value, minimum=0.0)

    def init(self, params: Any, dtype: Any, coordinates: Memory = Natural()) -> tuple[()]:
        del params, dtype
        coordinates.variances(self.gradient)  # what cannot be carried over is to be heard of now
        return ()

    def observe(self, state: Any, grads: Any, value: jax.Array, specs: Any = None) -> Any:
        """Nothing to learn: the state as it is."""
        del grads, value, specs
        return state

    def variances(self, state: Any, coordinates: Memory = Natural()) -> Variances:
        """The variances given, in the coordinates of a metric."""
        del state
        return Variances(coordinates.variances(self.gradient), self.value)


@dataclasses.dataclass(frozen=True)
class RunningNoise:
    r"""Estimates both variances from the differences of successive minibatches, parameter by parameter.

    .. math::
        \hat\Sigma_t = \overline{(g_t - g_{t-1})^2} / 2, \qquad
        \hat\sigma^2_t = \overline{(\text{value}_t - \text{value}_{t-1})^2} / 2,

    exponential moving means with bias correction. Differences, and not deviations from a running mean, because the gradient
    itself moves with the parameters. Over one step that makes the estimate too large by the factor 1 + lr U'' (the noise of one
    minibatch moves the gradient of the next) and by (lr U'')^2 / (4 (1 - mu)) of the whole noise, U'' the curvature of
    `value` (2 (1 - mu^2) for 4 (1 - mu) in Euler's order): a few per cent for lr U'' below 0.1, a third at 0.3. Where more
    is asked for, estimate Sigma from the gradients of single examples and pass it. Successive
    minibatches must be independent, or nearly: shuffled epochs will
    do. Costs two buffers like the parameters.

    With a `preconditioner` it looks at gradients in the coordinates of the metric. Correlations between coordinates are not
    compensated: it is exact where the noise is diagonal, as it nearly is in a metric of the curvature. Measured on logistic
    regression (breast cancer data, 11 parameters, minibatches of 128, coordinates with diagonal noise): posterior
    variances 18 % too large on average without, within 3 % of NUTS with it.

    Args:
      decay: in (0, 1); 0.999 remembers about 1,000 steps.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> noise = ctld_optax.RunningNoise(decay=0.999)
      >>> sampler = ctld_optax.posterior_sampler(0.01, 1e-3, key=0, gradient_noise=noise)
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("decay", self.decay, minimum=0.0, maximum=1.0, minimum_open=True, maximum_open=True)

    def init(self, params: Any, dtype: Any, coordinates: Memory = Natural()) -> NoiseState:
        del coordinates  # in which the gradients come

        def zeros(p: Any) -> jax.Array:
            return jnp.zeros_like(p, dtype=at_least_float32(p.dtype))

        return NoiseState(
            gradient=jax.tree.map(zeros, params),
            last_gradient=jax.tree.map(zeros, params),
            value=jnp.zeros((), dtype),
            last_value=jnp.zeros((), dtype),
            num_seen=jnp.zeros((), jnp.int32),
        )

    def observe(self, state: NoiseState, grads: Any, value: jax.Array, specs: Any = None) -> NoiseState:
        """Takes in one minibatch. One that is not finite is skipped, on every shard alike."""
        grads = jax.tree.map(lambda g, last: g.astype(last.dtype), grads, state.last_gradient)
        sums = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]
        squares = shards.sum_over_shards(sums, shards.spec_leaves(specs, grads), value.dtype)
        is_good = jnp.isfinite(squares) & jnp.isfinite(value)
        # The first minibatch has no predecessor. From then on t differences: weight (1 - decay) / (1 - decay^t).
        num_differences = state.num_seen.astype(value.dtype)
        weight = (1.0 - self.decay) / (1.0 - self.decay ** jnp.maximum(num_differences, 1.0))
        weight = jnp.where(is_good & (num_differences > 0.0), weight, 0.0)

        def running(old: jax.Array, now: jax.Array, last: jax.Array) -> jax.Array:
            difference = jnp.where(is_good, now - last, 0.0)
            return old + weight.astype(old.dtype) * (0.5 * jnp.square(difference) - old)

        def newest(now: jax.Array, last: jax.Array) -> jax.Array:
            return jnp.where(is_good, now, last)

        return NoiseState(
            gradient=jax.tree.map(running, state.gradient, grads, state.last_gradient),
            last_gradient=jax.tree.map(newest, grads, state.last_gradient),
            value=running(state.value, value, state.last_value),
            last_value=newest(value, state.last_value),
            num_seen=state.num_seen + is_good.astype(jnp.int32),
        )

    def variances(self, state: NoiseState, coordinates: Memory = Natural()) -> Variances:
        """The estimates so far."""
        del coordinates
        return Variances(state.gradient, state.value)


GradientNoise = KnownNoise | RunningNoise


def as_gradient_noise(option: Any) -> GradientNoise | None:
    """The option `gradient_noise=` of `ctld`: None, an estimator, or a number or pytree taken as known."""
    if option is None or isinstance(option, GradientNoise):
        return option
    _check_variances("gradient_noise", option)
    return KnownNoise(option)


def _check_variances(name: str, variances: Any) -> None:
    """Raises unless they are numbers >= 0 or arrays of them; the values of traced arrays are not looked at."""
    for leaf in jax.tree.leaves(variances, is_leaf=lambda node: node is None):
        if not isinstance(leaf, jax.Array | np.ndarray):
            hint = "Write a variance, a pytree of arrays like params, KnownNoise(...) or RunningNoise()."
            check_range(name, leaf, minimum=0.0, hint=hint)
        elif not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name} must be a number or a pytree of arrays of real numbers, got dtype {leaf.dtype}.")
        else:
            check_values(name, leaf, hint="It is a variance.")


def remaining(variance: jax.Array, brought: Any, like: Any, share: Any) -> Any:
    """The scale of the noise still to inject, share sqrt(max(0, variance - brought)): a pytree like `like`.

    `variance` and `share` are numbers, or one for each leaf.

    Raises:
      ValueError: if `brought` is a pytree of another structure.
    """
    structure, given = jax.tree.structure(like), jax.tree.structure(brought)
    # In the dtype of the scalars: a variance given in bfloat16 would round what is left.
    scale = lambda b, v, s: s * jnp.sqrt(jnp.maximum(v - jnp.asarray(b).astype(variance.dtype), 0.0))
    if given == structure:
        return jax.tree.map(scale, brought, each(variance, like), each(share, like))
    if not jax.tree_util.treedef_is_leaf(given):
        raise ValueError(
            f"gradient_noise must be a number or a pytree like the parameters, {structure}; got {given}. Write, for example, "
            "jax.tree.map(lambda p: variance_of(p), params)."
        )
    return each(scale(brought, variance, share), like)
