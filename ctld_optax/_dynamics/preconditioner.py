r"""The coordinates in which the step is taken.

A preconditioner is a change of coordinates :math:`\theta = S z` around a kernel of unit mass: the gradient is multiplied by
:math:`S^T` on the way in, the update by S on the way out, and noise, kinetic energy, alpha and the guard do not know of it.
The mass of the parameters is then

.. math:: M = (S S^T)^{-1}, \qquad \text{best} \quad M = \nabla^2 \text{value} = T\, \mathrm{cov}(\theta)^{-1},

which gives `value` the curvature 1 in every direction, so that one learning rate, free of units, serves them all.

While S stands still the stationary density is what it was. A metric that follows the run lacks a term of its divergence
(as Santa's does): to sample exactly, let it stand before the samples are taken.

Metrics that follow the run are in :mod:`ctld_optax._dynamics.second_moment`. Nothing here knows of noise or of Optax.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ctld_optax._arrays import compat, shards
from ctld_optax._arrays.dtypes import scalar_dtype_of
from ctld_optax._checked import checked
from ctld_optax._validate import check_params, check_range, is_known


class Coordinates(Protocol):
    """S, of theta = S z."""

    def inward(self, grads: Any) -> Any:
        """S^T times a gradient."""
        ...

    def outward(self, updates: Any) -> Any:
        """S times a step in z."""
        ...


class Memory(Protocol):
    """What a preconditioner remembers: a pytree of arrays, part of the sampler's state."""

    def variances(self, of_grads: Any) -> Any:
        """The diagonal of S^T Sigma S, of the diagonal of Sigma: a number, or a pytree like params."""
        ...


class Observed(NamedTuple):
    """What a preconditioner makes of a gradient.

    Attributes:
      memory: what it remembers now, part of the sampler's state.
      coordinates: of this step.
      momentum: the last one, in them.
    """

    memory: Any
    coordinates: Coordinates
    momentum: Any


class Preconditioner(Protocol):
    """Which coordinates a step is taken in."""

    def init(self, params: Any, specs: Any = None) -> Any:
        """What it remembers at first; `specs` are the `param_specs` of the sampler."""
        ...

    def observe(self, memory: Any, momentum: Any, grads: Any, temperature: jax.Array, specs: Any = None) -> Observed:
        """Takes a gradient in, before the step that it is for."""
        ...


class Still:
    """A preconditioner whose coordinates never change: all that it remembers."""

    def observe(self, memory: Any, momentum: Any, grads: Any, temperature: jax.Array, specs: Any = None) -> Observed:
        """Nothing to learn."""
        del grads, temperature, specs
        return Observed(memory, memory, momentum)


class Natural(NamedTuple):
    """The parameters themselves: S is the identity, and costs nothing."""

    def inward(self, grads: Any) -> Any:
        return grads

    def outward(self, updates: Any) -> Any:
        return updates

    def variances(self, of_grads: Any) -> Any:
        return of_grads


class Diagonal(NamedTuple):
    """S is diagonal.

    Attributes:
      scale: like params: its diagonal.
    """

    scale: Any

    def inward(self, grads: Any) -> Any:
        return jax.tree.map(lambda s, g: s.astype(g.dtype) * g, self.scale, grads)

    def outward(self, updates: Any) -> Any:
        return self.inward(updates)

    def variances(self, of_grads: Any) -> Any:
        given = jax.tree.structure(of_grads)
        if jax.tree_util.treedef_is_leaf(given):
            of_grads = jax.tree.map(lambda _: of_grads, self.scale)
        elif given != jax.tree.structure(self.scale):
            return of_grads  # who injects the noise says what is wrong with that
        return jax.tree.map(lambda s, v: jnp.square(s) * jnp.asarray(v).astype(s.dtype), self.scale, of_grads)


class Dense(NamedTuple):
    """S is a matrix over all parameters, in the order of `jax.flatten_util.ravel_pytree`.

    Attributes:
      factor: shape (d, d).
    """

    factor: jax.Array

    def inward(self, grads: Any) -> Any:
        flat, unravel = ravel_pytree(grads)
        return unravel(flat @ self.factor.astype(flat.dtype))

    def outward(self, updates: Any) -> Any:
        flat, unravel = ravel_pytree(updates)
        return unravel(self.factor.astype(flat.dtype) @ flat)

    def variances(self, of_grads: Any) -> Any:
        return only_nothing(
            of_grads,
            "a dense metric, which looks along directions of its own: the variances of single parameters do not say how much "
            "noise there is along those",
        )


def only_nothing(of_grads: Any, beside: str) -> Any:
    """The variances if they are 0; else a `ValueError`, since they cannot be carried over to a metric, and why."""
    if isinstance(of_grads, int | float) and of_grads == 0.0:
        return of_grads
    raise ValueError(f"gradient_noise must be RunningNoise() beside {beside}. Or take a diagonal FixedMetric.")


@dataclasses.dataclass(frozen=True)
class Unpreconditioned(Still):
    """Unit mass: the parameters as they are."""

    def init(self, params: Any, specs: Any = None) -> Natural:
        del params, specs
        return Natural()


@dataclasses.dataclass(frozen=True, eq=False)
class FixedMetric(Still):
    r"""A metric that stands still: the stationary density is that of :func:`ctld_optax.ctld`, in any metric.

    .. math:: \theta = S z, \qquad S S^T = M^{-1}, \qquad M \approx \nabla^2 \text{value}

    Example:
      >>> curvature = jnp.asarray([1.0, 10_000.0])
      >>> loss_fn = lambda x: 0.5 * jnp.sum(curvature * x**2)
      >>> metric = ctld_optax.FixedMetric(curvature)
      >>> sampler = ctld_optax.posterior_sampler(0.1, key=0, preconditioner=metric)

    Args:
      mass: M: a pytree like params (or a prefix of it) of positive numbers, its diagonal; or one positive definite matrix of
        shape (d, d) over all d parameters, in the order of `jax.flatten_util.ravel_pytree`. An array of the shape of the one
        and only parameter is a diagonal. About the curvature of `value`, that is T times the inverse of the variance or the
        covariance that is to be sampled. Beside `param_specs` a diagonal: numbers, or arrays of the whole parameters' shapes
        (of the blocks', where they have been cut like the parameters).

    The learning rate is then free of units: with M exact, the limit of stability is 2 (1 + momentum), and 0.1 a good choice.

    Raises:
      TypeError: if `mass` holds what is no number. ValueError: for a mass that is not positive (where it is concrete), or, from
        `init`, that does not fit the parameters, or is a matrix beside `param_specs`.
    """

    mass: Any

    def __post_init__(self) -> None:
        for leaf in jax.tree.leaves(self.mass):
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int) or isinstance(leaf, bool):
                raise TypeError(f"mass must be a matrix, or a pytree of numbers like params, got {leaf!r:.60}.")
            if isinstance(leaf, float | int):
                check_range("mass", leaf, minimum=0.0, minimum_open=True)
        if not jax.tree.leaves(self.mass):
            raise TypeError(f"mass must be a matrix, or a pytree of numbers like params, got {self.mass!r:.60}.")

    def init(self, params: Any, specs: Any = None) -> Diagonal | Dense:
        dtype = scalar_dtype_of(params)
        leaves, structure = jax.tree.flatten(params)
        spec_of = shards.spec_leaves(shards.specs_in_scope(specs), params)
        blocks = [shards.block(leaf.shape, spec) for leaf, spec in zip(leaves, spec_of, strict=True)]
        size = sum(math.prod(block.whole) for block in blocks)
        is_one_array = isinstance(self.mass, jax.Array | np.ndarray)
        is_one_leaf = structure == jax.tree.structure(0) and np.shape(self.mass) == blocks[0].whole
        if is_one_array and np.shape(self.mass) == (size, size) and not is_one_leaf:
            if specs is not None:
                raise ValueError(
                    f"mass must be a diagonal beside param_specs, got a ({size}, {size}) matrix: it mixes all parameters, and "
                    "a shard holds some of them. Write FixedMetric of a pytree like params."
                )
            return Dense(_inverse_factor(_positive(jnp.asarray(self.mass, dtype), jnp.linalg.eigvalsh)))
        try:
            masses = jax.tree.leaves(compat.broadcast(self.mass, params))
            masses = [_block_of(m, leaf.shape, block) for m, leaf, block in zip(masses, leaves, blocks, strict=True)]
        except ValueError as error:
            raise ValueError(
                f"mass must be a ({size}, {size}) matrix, or have the structure and the shapes of params "
                f"({structure}), or of a prefix of it; got {jax.tree.map(jnp.shape, self.mass)}."
            ) from error
        for mass in jax.tree.leaves(self.mass):  # as it was given: inside `jit` what is made of it has no value
            _positive(jnp.asarray(mass, dtype), jnp.ravel)
        return Diagonal(jax.tree.unflatten(structure, [jax.lax.rsqrt(jnp.asarray(m, dtype)) for m in masses]))


@checked()
def metric_from_hessian(loss_fn: Callable[..., Any], params: Any, *args: Any, floor: float = 1e-8) -> FixedMetric:
    r"""The dense metric that whitens a posterior near a mode: the curvature there.

    .. math:: M = |\nabla^2 \text{loss\_fn}(\theta)|

    The absolute value is that of the eigenvalues (as in the SoftAbs metric), none of them taken smaller than `floor` times the
    largest, so that a saddle or a flat direction gives a metric too. Costs d Hessian-vector products and d^2 numbers.

    Example:
      >>> mode = jnp.zeros(2)
      >>> loss_fn = lambda x: 0.5 * x @ jnp.asarray([[2.0, 1.9], [1.9, 2.0]]) @ x
      >>> metric = ctld_optax.metric_from_hessian(loss_fn, mode)
      >>> bool(jnp.allclose(metric.mass, jnp.asarray([[2.0, 1.9], [1.9, 2.0]]), atol=1e-5))
      True

    Args:
      loss_fn: `loss_fn(params, *args)`, a scalar: the `value` that is to be sampled.
      params: where; a mode, or near one.
      *args: handed on.
      floor: > 0, the smallest eigenvalue in units of the largest.

    Returns:
      A :class:`FixedMetric`.

    Source: Betancourt, "A General Metric for Riemannian Manifold Hamiltonian Monte Carlo", 2013.
    """
    check_params(params)
    check_range("floor", floor, minimum=0.0, minimum_open=True)
    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda x: loss_fn(unravel(x), *args))(flat)
    return FixedMetric(absolute(hessian, floor))


def absolute(matrix: jax.Array, floor: float | jax.Array) -> jax.Array:
    """A symmetric matrix with its eigenvalues made positive, and at least `floor` times the largest.

    And at least what the dtype resolves of it: below that an eigenvalue is rounding, and may come out negative again.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    values, floor = jnp.abs(values), jnp.maximum(floor, 4.0 * matrix.shape[0] * jnp.finfo(matrix.dtype).eps)
    largest = jnp.where(jnp.max(values) > 0.0, jnp.max(values), 1.0)  # a plain has no scale
    return (vectors * jnp.maximum(values, floor * largest)[None, :]) @ vectors.T


def _block_of(mass: Any, shape: tuple[int, ...], block: shards.Block) -> jax.Array:
    """Of the masses of a whole parameter those of a block; what has the block's own shape is the block's."""
    if np.shape(mass) != shape:
        mass = jax.lax.dynamic_slice(jnp.broadcast_to(mass, block.whole), block.offset, shape)
    return jnp.asarray(mass)


def _inverse_factor(mass: jax.Array) -> jax.Array:
    """S, lower or upper, with S S^T = mass^-1."""
    lower = jnp.linalg.cholesky(mass)
    return jax.scipy.linalg.solve_triangular(lower, jnp.eye(mass.shape[0], dtype=mass.dtype), lower=True).T


def _positive(mass: jax.Array, values_of: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The mass as it is, or a `ValueError` where its values are known and not positive."""
    if is_known(mass):
        with jax.ensure_compile_time_eval():  # a number known inside `jit` is known all the same
            values = values_of(mass)
            if not bool(jnp.all((values > 0.0) & jnp.isfinite(values))):
                raise ValueError(
                    "mass must be positive and finite, a matrix positive definite; its values lie between "
                    f"{values.min()} and {values.max()}."
                )
    return mass
