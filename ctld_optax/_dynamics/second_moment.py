r"""Metrics that follow the run: the mass is a power of the gradient's running second moment.

A step first takes its gradient in, then asks for the scale s of :math:`\theta = s z`, which is made of the second moment each
time anew and never stored. The momentum of the sampler is that of z: it stays as it is when s changes, and thermal. At a
temperature of 0 there is no thermal law to keep, and m / s stays instead, the sum of raw gradients: that is Adam.

Nothing here knows of noise, of alpha or of Optax.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._arrays import compat, shards
from ctld_optax._arrays.dtypes import at_least_float32, scalar_dtype_of
from ctld_optax._arrays.inplace import change_if
from ctld_optax._checked import check_fields
from ctld_optax._dynamics.preconditioner import Observed, only_nothing
from ctld_optax._validate import check_count, check_range

_Map = Callable[[Any], Any]
_Change = Callable[[jax.Array, jax.Array], jax.Array]


class Moments(NamedTuple):
    """What a running metric remembers.

    Attributes:
      nu: Adam's running mean of squares, not corrected for its start at 0, at least float32: of :class:`SecondMoment` like
        params, of :class:`LayerScale` an array of one number a leaf, in the order of `jax.tree.leaves`.
      num_seen: shape (), int32: of how many gradients.
    """

    nu: Any
    num_seen: jax.Array

    def variances(self, of_grads: Any) -> Any:
        """No variances in coordinates that will be others in the next step."""
        return only_nothing(
            of_grads,
            "a metric that follows the run: variances of the parameters' own gradients are not those in its coordinates",
        )


class ByEntry(NamedTuple):
    """The coordinates of one step, where each entry has a scale of its own.

    Attributes:
      nu: like params.
      scale: what makes s of it.
    """

    nu: Any
    scale: Callable[[jax.Array], jax.Array]

    def inward(self, grads: Any) -> Any:
        return jax.tree.map(lambda v, g: self.scale(v) * g.astype(v.dtype), self.nu, grads)

    def outward(self, updates: Any) -> Any:
        # Behind a barrier s is made again of nu. Without one XLA keeps it from the way in, in a buffer like params, which costs
        # more than the square root.
        return jax.tree.map(lambda v, u: self.scale(compat.barrier(v)).astype(u.dtype) * u, self.nu, updates)


class ByLeaf(NamedTuple):
    """The coordinates of one step, where each leaf has one scale.

    Attributes:
      scale: s, a pytree of one number a leaf.
    """

    scale: Any

    def inward(self, grads: Any) -> Any:
        return jax.tree.map(lambda s, g: s * g.astype(s.dtype), self.scale, grads)

    def outward(self, updates: Any) -> Any:
        return jax.tree.map(lambda s, u: s.astype(u.dtype) * u, self.scale, updates)


@dataclasses.dataclass(frozen=True)
class _RunningMetric:
    """What both metrics have in common."""

    power: float = 0.5
    decay: float = 0.999
    eps: float = 1e-8
    freeze_after: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("power", self.power, minimum=0.0, maximum=1.0, minimum_open=True)
        check_range("decay", self.decay, minimum=0.0, maximum=1.0, maximum_open=True)
        check_range("eps", self.eps, minimum=0.0, minimum_open=True)
        if self.freeze_after is not None:
            check_count("freeze_after", self.freeze_after, 1)

    def init(self, params: Any, specs: Any = None) -> Moments:
        del specs
        return Moments(self._zeros(params), jnp.zeros((), jnp.int32))

    def observe(self, memory: Moments, momentum: Any, grads: Any, temperature: jax.Array, specs: Any = None) -> Observed:
        """Takes a gradient in. Where its square is not finite nu stays as it was."""
        is_open, is_hot = self.freeze_after is None or memory.num_seen < self.freeze_after, temperature > 0.0
        num_seen = memory.num_seen + jnp.asarray(is_open, jnp.int32)
        scale, last_scale = (self.scale_of(seen, temperature) for seen in (num_seen, memory.num_seen))

        def running(nu: jax.Array, square: jax.Array) -> jax.Array:
            # What is added and the factor are selected, not the sum: a selection between the new nu and the old one, in whose
            # place it goes, XLA makes a store of some entries and not of others, which takes half as long again.
            takes = jnp.isfinite(square) & is_open
            return jnp.where(takes, (1.0 - self.decay) * square, 0.0) + jnp.where(takes, self.decay, 1.0) * nu

        def taken_in(nu: Any) -> Any:
            return jax.tree.map(running, nu, self._squares(nu, grads, specs))

        def change(new: jax.Array, old: jax.Array) -> jax.Array:
            return scale(new) / last_scale(old)

        momentum, nu = self._carried(momentum, memory.nu, taken_in, change, is_hot)
        nu = change_if((memory.num_seen == 0) & is_hot, lambda nu: self._begun(nu, specs), nu)
        return Observed(Moments(nu, num_seen), self._coordinates(nu, scale, grads), momentum)

    def correction(self, num_seen: jax.Array, dtype: Any) -> jax.Array:
        """What takes nu to the mean of squares itself, of which it has seen so many."""
        return 1.0 / (1.0 - self.decay ** jnp.maximum(num_seen, 1).astype(dtype))

    def scale_of(self, num_seen: jax.Array, temperature: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """What makes s, M^(-1/2), of nu."""
        correction = self.correction(num_seen, temperature.dtype)
        factor = jnp.where(temperature > 0.0, temperature, 1.0) ** (self.power - 0.5)
        # What has seen no gradient but 0 has no scale of its own yet: it moves no faster than in unit mass.
        unseen = jnp.minimum(factor * self.eps**-self.power, 1.0)

        def scale(nu: jax.Array) -> jax.Array:
            seen = nu > 0.0
            # The square root of 0 has no derivative, which would make a gradient through the run NaN.
            root = jnp.sqrt(correction.astype(nu.dtype) * jnp.where(seen, nu, 1.0)) + self.eps
            # A power of 1/2 is Adam's, and 1 as cheap: no logarithms there.
            s = jax.lax.rsqrt(root) if self.power == 0.5 else factor.astype(nu.dtype) * root**-self.power
            return jnp.where(seen, s, unseen.astype(nu.dtype))

        return scale

    def _zeros(self, params: Any) -> Any:
        """Nu at first."""
        raise NotImplementedError

    def _squares(self, nu: Any, grads: Any, specs: Any) -> Any:
        """What nu is a running mean of."""
        raise NotImplementedError

    def _begun(self, nu: Any, specs: Any) -> Any:
        """What nu of one gradient counts as where there is noise: a gradient that is near 0 by chance is no scale."""
        raise NotImplementedError

    def _carried(self, momentum: Any, nu: Any, taken_in: _Map, change: _Change, is_hot: jax.Array) -> tuple[Any, Any]:
        """The momentum, times the change of s where it is cold, and nu with the gradient taken in."""
        raise NotImplementedError

    def _coordinates(self, nu: Any, scale: Callable[[jax.Array], jax.Array], like: Any) -> ByEntry | ByLeaf:
        """Those of a step with gradients `like` these."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class SecondMoment(_RunningMetric):
    r"""Adam's metric: the mass of each parameter is a power of its gradient's running second moment.

    .. math::
        \nu_t = \rho \nu_{t-1} + (1-\rho) g_t^2, \qquad
        M_t = \left(\sqrt{\nu_t / (1-\rho^t)} + \epsilon\right)^{2p} T^{1-2p}, \qquad \theta = s z, \quad s = M_t^{-1/2}

    with g the gradient as it is passed, :math:`\rho` the `decay`, p the `power`, T the temperature (its factor is 1 at T = 0).

    - `power=0.5`: :math:`M = \sqrt{\hat\nu} + \epsilon`, that of Adam. **At T = 0 the run is that of `optax.adam(rate, b1, b2,
      eps)` with learning rate (1 - b1) rate, momentum b1 and decay b2, but for the bias correction of Adam's first moment**,
      which rises to 1 in some 1/(1 - b1) steps; so that at T > 0 the learning rate reads like Adam's, times 1 - momentum.
    - `power=1`: :math:`M = E[g g^T]/T`, which is the curvature of `value` where the samples are Gaussian and gradients are of
      all data: it makes such a posterior round, and the learning rate free of units (0.1 to 1). With minibatches E[g^2]
      is mostly their noise. T is then to be a number > 0.

    While s moves with the gradients, the momentum (stored in z, where it is thermal) stays as it is, and at T = 0 m / s does.

    The stationary density is :func:`ctld_optax.ctld`'s once s stands still: with `freeze_after`, from there on. A metric that
    keeps moving lacks a term of its divergence; measured, variance over that of the target, from the softest of three
    coordinates with curvatures (of x^4/4: factors) 1, 100 and 10^4 to the stiffest, 4,000 of each, standard error 0.001:

    =====================  =====================  =====================  ======
    power, learning rate   decay 0.99             decay 0.999            frozen
    =====================  =====================  =====================  ======
    1, 0.3, Gaussian       1.008, 1.009, 1.008    1.001, 1.000, 1.000    1.000
    1/2, 0.0018, Gaussian  1.143, 1.018, 1.004    1.017, 1.001, 1.000    1.000
    1, 0.1, x^4            1.013, 1.013, 1.013    0.998, 0.998, 0.999    0.997
    1/2, 0.0018, x^4       1.147, 1.051, 1.017    1.015, 1.005, 1.001    1.000
    =====================  =====================  =====================  ======

    (What is left where it is frozen is the step's own error.) With power 1 begin where the samples will be, within a few
    standard deviations: from afar the gradients are large, the mass with them, and the way takes forever.

    Example:
      >>> metric = ctld_optax.SecondMoment()  # as AdamW(3e-3, b1=0.9, b2=0.999) would have it
      >>> rate = (1 - 0.9) * 3e-3
      >>> sampler = ctld_optax.ctld(rate, 1e-6, momentum=0.9, key=0, preconditioner=metric)
      >>> warm_up = ctld_optax.SecondMoment(power=1.0, freeze_after=4_000)  # posteriors
      >>> sampler = ctld_optax.posterior_sampler(0.3, key=0, preconditioner=warm_up)

    Args:
      power: p in (0, 1].
      decay: rho in [0, 1), Adam's b2.
      eps: > 0, in units of the gradient. The noise moves a parameter whose gradients are of size f by about
        sqrt(learning_rate T / (eps + f)) a step (at p = 1/2), however small f is: where gradients start tiny but not at 0,
        make it as large as the gradients that matter.
      freeze_after: how many gradients to take in, >= 1; then nu stands still. None: it never does.

    One buffer like params, at least float32, of which a block goes with a block of its parameter inside `jax.shard_map`; a
    second one is reserved during a step whose temperature is no constant, and used where that is 0. A
    gradient whose square is not finite is left out of it. While an entry has seen no gradient but 0, its s is at most 1. At
    T > 0 a first gradient counts as no smaller than the root mean square of its leaf: near 0 by chance it is no scale.

    Raises:
      TypeError, ValueError: for an argument of the wrong kind, or out of range.

    Source: Kingma and Ba, "Adam", ICLR 2015; Li et al., "Preconditioned Stochastic Gradient Langevin Dynamics", AAAI 2016.
    """

    def _zeros(self, params: Any) -> Any:
        return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=at_least_float32(p.dtype)), params)

    def _squares(self, nu: Any, grads: Any, specs: Any) -> Any:
        del specs
        return jax.tree.map(lambda v, g: jnp.square(g.astype(v.dtype)), nu, grads)

    def _begun(self, nu: Any, specs: Any) -> Any:
        sums = [jnp.sum(v) for v in jax.tree.leaves(nu)]
        means = jax.tree.structure(nu).unflatten(_means(sums, nu, specs))
        return jax.tree.map(lambda v, mean: jnp.where(v > 0.0, jnp.maximum(v, mean), v), nu, means)

    def _carried(self, momentum: Any, nu: Any, taken_in: _Map, change: _Change, is_hot: jax.Array) -> tuple[Any, Any]:
        def in_the_cold(carry: tuple[Any, Any]) -> tuple[Any, Any]:
            momentum, old = carry
            new = taken_in(old)
            return jax.tree.map(_times, momentum, jax.tree.map(change, new, old)), new

        # Not a selection, for which the change would be made in every step, of a copy of the old nu beside the new one.
        momentum, nu = change_if(~is_hot, in_the_cold, (momentum, nu))
        return momentum, change_if(is_hot, taken_in, nu)

    def _coordinates(self, nu: Any, scale: Callable[[jax.Array], jax.Array], like: Any) -> ByEntry:
        del like
        return ByEntry(nu, scale)


@dataclasses.dataclass(frozen=True)
class LayerScale(_RunningMetric):
    r"""One mass a leaf, of its gradient's running mean square: :class:`SecondMoment` with one number in the place of many.

    .. math:: \nu_t = \rho \nu_{t-1} + (1-\rho) |g_t|^2 / d, \qquad d \text{ the number of entries of the leaf}

    It takes the layers of a network to one scale and leaves each layer round. There is no buffer like params.

    Example:
      >>> sampler = ctld_optax.ctld(3e-4, 1e-6, key=0, preconditioner=ctld_optax.LayerScale())

    Args:
      power: as of :class:`SecondMoment`.
      decay: likewise.
      eps: likewise.
      freeze_after: likewise.

    Inside `jax.shard_map`, with `param_specs`, the mean is that of the whole leaf.

    Raises:
      TypeError, ValueError: for an argument of the wrong kind, or out of range.

    Source: Wenzel et al., "How Good is the Bayes Posterior in Deep Neural Networks Really?", ICML 2020, Algorithm 3, which
    estimates it once an epoch, with power 1/2, and divides it by the smallest, so that the learning rate is that of one layer.
    """

    def _zeros(self, params: Any) -> jax.Array:
        # One array: a pytree of the parameters' structure would be taken for one of their shapes (by optax.tree.map_params).
        return jnp.zeros((len(jax.tree.leaves(params)),), scalar_dtype_of(params))

    def _squares(self, nu: jax.Array, grads: Any, specs: Any) -> jax.Array:
        return jnp.stack(_means([jnp.sum(jnp.square(g.astype(nu.dtype))) for g in jax.tree.leaves(grads)], grads, specs))

    def _begun(self, nu: jax.Array, specs: Any) -> jax.Array:
        del specs
        return nu

    def _carried(self, momentum: Any, nu: Any, taken_in: _Map, change: _Change, is_hot: jax.Array) -> tuple[Any, Any]:
        new = taken_in(nu)
        return jax.tree.map(_times, momentum, _one_a_leaf(jnp.where(is_hot, 1.0, change(new, nu)), momentum)), new

    def _coordinates(self, nu: jax.Array, scale: Callable[[jax.Array], jax.Array], like: Any) -> ByLeaf:
        return ByLeaf(_one_a_leaf(scale(nu), like))


def _times(momentum: jax.Array, change: jax.Array) -> jax.Array:
    return change.astype(momentum.dtype) * momentum


def _one_a_leaf(numbers: jax.Array, like: Any) -> Any:
    """The numbers as a pytree like `like`.

    Each is taken from its place by an index that comes from memory, so that leaves of one shape share one compiled loop; an
    index in the code makes a loop for each leaf. XLA would put a single constant there, and any but for the 0 that is added,
    which it cannot know.
    """
    zero = jnp.isnan(numbers[:1]).astype(jnp.int32)
    indices = [(jnp.asarray([place, 0]) + zero)[0] for place in range(numbers.size)]
    found = [jax.lax.dynamic_index_in_dim(numbers, index, keepdims=False) for index in indices]
    return jax.tree.structure(like).unflatten(found)


def _means(sums: list[jax.Array], tree: Any, specs: Any) -> list[jax.Array]:
    """The mean of each leaf, over all its shards, from its local sum."""
    leaves, spec_of = jax.tree.leaves(tree), shards.spec_leaves(specs, tree)
    sizes = [math.prod(shards.block(leaf.shape, spec).whole) for leaf, spec in zip(leaves, spec_of, strict=True)]
    return [total / max(size, 1) for total, size in zip(shards.leaf_sums_over_shards(sums, spec_of), sizes, strict=True)]
