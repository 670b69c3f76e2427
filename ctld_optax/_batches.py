r"""Chains that see a few rows of the data at a time, in a metric that stands.

Each chain has an anchor :math:`\hat\theta`, a place in its mode where energy and gradient of all N rows are known. From B rows
drawn at random, with replacement, it estimates (a control variate)

.. math::
    \hat U(\theta) &= U(\hat\theta) + \nabla U(\hat\theta) \cdot \delta
        + \frac{N}{B} \sum_{i \in \text{batch}} [u_i(\theta) - u_i(\hat\theta) - \nabla u_i(\hat\theta) \cdot \delta],
        \qquad \delta = \theta - \hat\theta \\
    \nabla \hat U(\theta) &= \nabla U(\hat\theta)
        + \frac{N}{B} \sum_{i \in \text{batch}} [\nabla u_i(\theta) - \nabla u_i(\hat\theta)],

both right on average. What is left of noise has the covariance :math:`\Sigma = (N^2/B)\, \text{cov}_i [\nabla u_i(\theta) -
\nabla u_i(\hat\theta)]`, which falls as the posterior narrows with N; that of a plain minibatch does not, and allows no more
than about one independent sample a pass over the data.

:math:`\Sigma` is measured, averaged over places that the warm-up has seen. A dense metric fixes its coordinates up to a
rotation; the one that makes :math:`S^T \Sigma S` diagonal is taken, so that what minibatches bring is known of every
coordinate, and that much less is injected. The learning rate is lowered until they bring no more than `SHARE` of what is due
to any.

Source: Baker, Fearnhead, Fox and Nemeth, Statistics and Computing 29 (2019), for the control variate; Ye, Zhu and Mantiuk 2017,
Eq. 8, for the compensation.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._chains import Target, Trace, begun, refreshed
from ctld_optax._dynamics.langevin import CTLDState, Langevin
from ctld_optax._dynamics.minibatch import KnownNoise, Variances
from ctld_optax._dynamics.preconditioner import Coordinates, Dense
from ctld_optax._warmup import Metric

PLACES = 64  # where the noise is measured,
ROWS = 256  # and of how many rows at each
SHARE = 0.5  # of the noise that is due, what minibatches may bring


class Anchor(NamedTuple):
    """Where a chain knows the whole likelihood: position and gradient of shape (d,), energy of shape ()."""

    position: jax.Array
    energy: jax.Array
    grad: jax.Array


class Chain(NamedTuple):
    """One chain: where it stands, shape (d,), where it stood before, and its sampler's state."""

    position: jax.Array
    last: jax.Array
    state: CTLDState


class Measured(KnownNoise):
    """Variances in the coordinates of the metric, not of the parameters."""

    def variances(self, state: Any, coordinates: Any = None) -> Variances:
        del state, coordinates
        return Variances(self.gradient, self.value)


class Noise(NamedTuple):
    """What minibatches bring: the metric turned to it, and the variance along each of its coordinates, shape (d,)."""

    metric: Metric
    variances: jax.Array


def drawn(target: Any, key: jax.Array, count: int) -> Any:
    """Some rows of the data of a part of a target, at random with replacement."""
    index = jax.random.randint(key, (count,), 0, num_rows(target))
    return jax.tree.map(lambda rows: rows[index], target.data)


def num_rows(target: Any) -> int:
    return jax.tree.leaves(target.data)[0].shape[0]


@jax.jit
def anchored(target: Target, window: Trace) -> Anchor:
    """Each chain at the mean of its window, with a leading axis of chains."""
    means = jnp.mean(window.position, axis=1)
    return Anchor(means, *jax.vmap(jax.value_and_grad(target.heated))(means))


@functools.partial(jax.jit, static_argnames=("batch_size", "momentum"))
def measured(
    target: Target, metric: Metric, window: Trace, anchors: Anchor, batch_size: int, momentum: float, key: jax.Array
) -> Noise:
    """The noise of minibatches about the places of a window, and the metric and the learning rate that suit it."""
    chains, steps, _ = window.position.shape
    heated: Any = target.heated

    def changes(at: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        """S^T [grad u_i(theta) - grad u_i(anchor)] about their mean, shape (rows, d)."""
        place, anchor, key = at
        grad = lambda x, row: jax.grad(heated.of(jax.tree.map(lambda leaf: leaf[None], row)))(x)
        change = jax.vmap(lambda row: grad(place, row) - grad(anchor, row))(drawn(heated, key, ROWS))
        change = change - change.mean(axis=0)
        return change @ coordinates.factor if isinstance(coordinates, Dense) else change * coordinates.scale

    coordinates = metric.coordinates
    chosen = jnp.arange(PLACES) % chains, jnp.arange(PLACES) * steps // PLACES
    at = (window.position[chosen], anchors.position[chosen[0]], jax.random.split(key, PLACES))
    scale = num_rows(heated) ** 2 / batch_size / (PLACES * (ROWS - 1))
    if isinstance(coordinates, Dense):
        products = jax.lax.map(lambda one: jnp.einsum("ri,rj->ij", *[changes(one)] * 2), at)
        variances, turn = jnp.linalg.eigh(scale * jnp.sum(products, axis=0))
        coordinates = Dense(coordinates.factor @ turn)
    else:
        variances = scale * jnp.sum(jax.lax.map(lambda one: jnp.sum(jnp.square(changes(one)), axis=0), at), axis=0)
    variances = jnp.maximum(variances, 0.0)
    limit = SHARE * 2.0 * (1.0 - momentum) / jnp.maximum(jnp.max(variances), 1e-30)
    return Noise(Metric(coordinates, jnp.minimum(metric.learning_rate, limit)), variances)


def begin(kernel: Langevin, coordinates: Coordinates, position: jax.Array, key: jax.Array) -> Chain:
    """A chain with thermal momentum."""
    return Chain(position, position, begun(kernel, coordinates, position, key))


def walk(
    target: Target, kernel: Langevin, chain: Chain, anchor: Anchor, batch_size: int, num_steps: int
) -> tuple[Chain, Trace]:
    """Steps of one chain. From where energy or gradient is not finite it goes back one step, with a fresh momentum."""
    heated: Any = target.heated
    scale = num_rows(heated) / batch_size

    def estimate(position: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss = jax.value_and_grad(heated.of(drawn(heated, key, batch_size)))
        (here, grad_here), (there, grad_there) = loss(position), loss(anchor.position)
        away = position - anchor.position
        energy = anchor.energy + anchor.grad @ away + scale * (here - there - grad_there @ away)
        return energy, anchor.grad + scale * (grad_here - grad_there)

    def step(chain: Chain, _: None) -> tuple[Chain, Trace]:
        here, last, state = chain
        heated_energy, grad = estimate(here, jax.random.fold_in(state.key, 1))
        kept, kept_grad = jax.value_and_grad(target.kept)(here)
        grad = grad + kept_grad
        is_good = jnp.isfinite(heated_energy + kept) & jnp.all(jnp.isfinite(grad))
        updates, after = kernel.update(grad, state, here, value=heated_energy + kept)
        fresh = refreshed(after, jax.random.fold_in(after.key, 0))
        after = jax.tree.map(lambda new, other: jnp.where(is_good, new, other), after, fresh)
        position = jnp.where(is_good, here, last)
        seen = Trace(
            position=position,
            grad=grad,
            heated=heated_energy,
            energy=heated_energy + kept,
            alpha=after.alpha,
            beta=after.beta,
            kinetic_energy=after.kinetic_energy,
            error=jnp.zeros_like(kept),  # not known of a step: its two ends see different rows
            diverging=~is_good,
        )
        return Chain(jnp.where(is_good, here + jnp.asarray(updates), last), position, after), seen

    return jax.lax.scan(step, chain, None, length=num_steps)
