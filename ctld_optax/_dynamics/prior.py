"""A prior that the sampler brings in itself: what weight decay means while a run samples.

Nothing here knows of noise, of alpha or of Optax.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ctld_optax._arrays import shards
from ctld_optax._arrays.dtypes import at_least_float32
from ctld_optax._checked import check_fields
from ctld_optax._dynamics.layers import of_prefix
from ctld_optax._validate import check_range, check_scalar_value

NO_PARAMS = "ctld needs the parameters for its prior, got None. Write tx.update(grads, state, params, value=loss)."


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    r"""A prior beside a loss that has none: :func:`ctld_optax.ctld` adds its gradient and its energy.

    .. math::
        \text{value} + \tfrac{\lambda}{2} |\theta|^2, \qquad \text{which samples the loss times a prior}\quad
        \theta \sim N(0,\, T/\lambda)

    For the posterior of N independent examples from a mean loss (T = 1/N) a prior of variance v is :math:`\lambda = 1/(N v)`.

    At T = 0 it is `optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(...))`, to the bit. That is not the
    decoupled decay of AdamW; :doc:`how the two go together </weight_decay>`.

    By default tempering heats the prior with the loss: at the temperature 1/g the density is that of (value + prior) g/T, which
    is wider than the prior. With `cold=True` it never does,

    .. math:: \exp\left(-g(\alpha)\, \text{value}/T - \tfrac{\lambda}{2} |\theta|^2 / T\right),

    and alpha is driven by the value alone; where g is small the run samples the prior, and where the loss is flat it stays put.
    Steps with :math:`|\alpha| \le \delta` sample the same in both. A cold prior is stiffer by 1/g than the noise there, which
    the limit of stability must bear: a learning rate below :math:`2 (1+\mu) / (U'' + \lambda/g)`.

    The metric of a :class:`~ctld_optax.SecondMoment` is made of the loss's gradients, as AdamW's is. A clip before the sampler
    does not see the prior, whose walls stay as steep as they are.

    Example:
      >>> loss_fn = lambda params: jnp.mean((params["w"] - 1.0) ** 2)
      >>> params = {"w": jnp.zeros(3), "b": jnp.zeros(1)}
      >>> prior = ctld_optax.Prior(1e-2, mask={"w": True, "b": False})
      >>> sampler = ctld_optax.ctld(0.05, 1e-3, key=0, prior=prior)
      >>> value, grads = jax.value_and_grad(loss_fn)(params)  # of the loss alone
      >>> updates, state = sampler.update(grads, sampler.init(params), params, value=value)
      >>> size_of = lambda params: 1e-2 * jnp.sum(jnp.abs(params["w"]))
      >>> laplace = ctld_optax.Prior(size_of, cold=True)

    Args:
      weight_decay: :math:`\lambda \ge 0`, in units of `value` over those of the parameters squared; or the negative log prior
        times T itself, a function of the parameters to a scalar (not inside `jax.shard_map`).
      mask: which parameters have it, as in `optax.add_decayed_weights`: a pytree prefix of booleans, or a function of the
        parameters that gives one. None: all. A function says itself what it is of.
      cold: whether tempering leaves it alone.

    Raises:
      TypeError: for a weight decay or a mask that is none. ValueError: for one out of range, a mask beside a function, and from
        `init` for a mask of another structure.
    """

    weight_decay: float | jax.Array | Callable[[Any], Any]
    mask: Any = None
    cold: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not callable(self.weight_decay):
            check_range("weight_decay", self.weight_decay, minimum=0.0)
        elif self.mask is not None:
            raise ValueError("mask must be None beside a function, which says itself what it is of.")
        if self.mask is not None and not callable(self.mask):
            _check_mask(self.mask)

    def check(self, params: Any) -> None:
        """Raises for a mask that is none of these parameters, and for a function that gives no scalar."""
        energy = self.weight_decay
        if callable(energy):
            jax.eval_shape(lambda p: check_scalar_value(energy(p), where="the prior"), params)
        self._is_in(params)

    def energy_and_gradient(self, params: Any, dtype: Any, specs: Any = None) -> tuple[jax.Array, list[Any]]:
        """Of the parameters, shape (), and for each leaf, in at least float32; None for what has no prior."""
        leaves = [leaf.astype(at_least_float32(leaf.dtype)) for leaf in jax.tree.leaves(params)]
        if callable(self.weight_decay):
            energy, gradient = jax.value_and_grad(self.weight_decay)(jax.tree.structure(params).unflatten(leaves))
            return energy.astype(dtype), jax.tree.leaves(gradient)
        is_in = self._is_in(params)
        sums = [
            jnp.sum(jnp.square(leaf.astype(dtype))) if own else jnp.zeros((), dtype)
            for leaf, own in zip(leaves, is_in, strict=True)
        ]
        squares = shards.sum_over_shards(sums, shards.spec_leaves(specs, params), dtype)
        decay = jnp.asarray(self.weight_decay)
        gradient = [decay.astype(leaf.dtype) * leaf if own else None for leaf, own in zip(leaves, is_in, strict=True)]
        return 0.5 * decay.astype(dtype) * squares, gradient

    def added(self, grads: Any, gradient: list[Any], beta: jax.Array) -> Any:
        """The gradient of the loss and the prior, at the temperature that heats the loss."""
        share = lambda term: term / beta.astype(term.dtype) if self.cold else term
        leaves, structure = jax.tree.flatten(grads)
        return structure.unflatten(
            [g if term is None else g.astype(term.dtype) + share(term) for g, term in zip(leaves, gradient, strict=True)]
        )

    def _is_in(self, params: Any) -> list[bool]:
        mask = self.mask(params) if callable(self.mask) else self.mask
        count = len(jax.tree.leaves(params))
        if mask is None:
            return [True] * count
        _check_mask(mask)
        return of_prefix(mask, params, "mask must have the structure of the parameters, or of a prefix of it")


def _check_mask(mask: Any) -> None:
    for leaf in jax.tree.leaves(mask):
        if not isinstance(leaf, bool):
            raise TypeError(f"mask must be a pytree prefix of True and False, or a function that gives one; got {leaf!r:.60}.")
