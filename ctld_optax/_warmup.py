r"""How chains find the scale of a target by themselves: a mode, the curvature there, then windows of sampling.

1. *Descend.* Each chain runs L-BFGS from where it begins, in units that the secants of some small steps give; from where it
   gets stuck it goes on by Newton's steps.
2. *Compare.* A mode whose mass in Laplace's approximation, :math:`e^{-U} |\nabla^2 U|^{-1/2}`, is less than `NEGLIGIBLE` times
   that of the best is left for the best one. Modes that count stay apart.
3. *Spread.* The metric is the mean curvature of the modes, by absolute eigenvalue; each chain begins at a draw of the normal
   law that this makes around its mode.
4. *Walk.* Windows of steps with gradients clipped. After each the metric is made anew from that window alone, about the mean
   of each chain: the matrix geometric mean of the covariance of the gradients and the inverse covariance of the positions,

   .. math:: M = C_g \# C_x^{-1}, \qquad M C_x M = C_g,

   which is the curvature itself where the target is Gaussian, however short the window and however badly it mixed, and
   elsewhere the metric of least Fisher divergence. Beyond `LARGEST_DENSE` dimensions each coordinate has its own. A chain
   whose window shows a mode without mass is set beside the best one, as in 2.
5. *Step.* The learning rate falls where the energy error of a step, by the trapezoid rule, exceeds `ERROR` k_B T per sqrt(d):
   that error is 0 where the target is harmonic, as is BAOAB's.

Then everything stands still, and the law is that of the sampler.

Source: the stages are Stan's (Carpenter et al. 2017); the metric is nutpie's (Seyboldt et al. 2024).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ctld_optax._chains import Target, Trace
from ctld_optax._dynamics.preconditioner import Dense, Diagonal, absolute

PROBES = 64  # secants of which the first scale is made
DESCENT = 200  # iterations of a search at most
NEGLIGIBLE = 1e-6
LARGEST_DENSE = 200
CLIP = 3.0  # the largest norm of a gradient in a window, in units of sqrt(d)
ERROR = 0.1
RISE = 1.25  # how much larger the learning rate may become from window to window
FLOOR = 1e-12  # the smallest curvature, in units of the largest


class Metric(NamedTuple):
    """What the warm-up has found: coordinates and a learning rate."""

    coordinates: Dense | Diagonal
    learning_rate: jax.Array


class Found(NamedTuple):
    """Where the descent has led, and what that took.

    Attributes:
      positions: where to begin, shape (chains, d).
      metric: to begin with.
      gradients: how many were taken, by all chains.
      energies: of the modes, shape (chains,).
      kept: whether each chain stayed with its own mode, shape (chains,).
    """

    positions: jax.Array
    metric: Metric
    gradients: jax.Array
    energies: jax.Array
    kept: jax.Array


@jax.jit
def find(target: Target, positions: jax.Array, learning_rate: jax.Array, key: jax.Array) -> Found:
    """Modes, their curvature, and places to begin (1 to 3 above)."""
    chains, size = positions.shape
    secant_key, spread_key = jax.random.split(key)
    energy = jax.vmap(target.total)
    descend = functools.partial(_descend, target)
    modes, curvatures, gradients = jax.vmap(descend)(positions, jax.random.split(secant_key, chains))
    log_determinants = jnp.linalg.slogdet(curvatures)[1] if curvatures.ndim == 3 else jnp.sum(jnp.log(curvatures), axis=-1)

    energies = energy(modes)
    masses = -energies - 0.5 * log_determinants
    masses = jnp.where(jnp.isfinite(masses), masses, -jnp.inf)  # a search that ended nowhere, or where there is no curvature
    best = jnp.argmax(masses)
    kept = _counts(masses)
    modes, curvatures = (jnp.where(_column(kept, x), x, x[best]) for x in (modes, curvatures))
    coordinates = _coordinates_of(jnp.mean(curvatures, axis=0))

    # Draws of Laplace's approximation; nearer by halves where that goes astray.
    step = jax.vmap(coordinates.outward)(jax.random.normal(spread_key, positions.shape, positions.dtype))
    scale = jnp.ones(chains, positions.dtype)
    for _ in range(6):
        reached = energy(modes + scale[:, None] * step) - energy(modes)
        scale = jnp.where(reached < 3.0 * size + 10.0, scale, scale / 2)
    metric = Metric(coordinates, learning_rate)
    return Found(modes + scale[:, None] * step, metric, jnp.sum(gradients), energies, kept)


@jax.jit
def refined(metric: Metric, window: Trace, largest_rate: jax.Array) -> tuple[Metric, jax.Array]:
    """The metric that a window of all chains gives (4 and 5), and the largest factor by which it changed, in any direction."""
    positions, grads = (_about_their_means(x) for x in (window.position, window.grad))
    count, size = positions.shape
    error = jnp.sqrt(jnp.mean(jnp.square(window.error)) / size)
    wanted = metric.learning_rate * slower(error)
    # Of about ten steps each, a tenth of what they cannot tell is taken from the last metric, in whose units all this is.
    share = 0.1 * size / (count / 10.0 + size)
    if isinstance(metric.coordinates, Dense):
        factor = metric.coordinates.factor
        inside, outside = _inside(metric.coordinates, positions), grads @ factor
        blend = lambda x: (1.0 - share) * (x.T @ x) / count + share * jnp.eye(size, dtype=x.dtype)
        change = _geometric_mean(blend(outside), blend(inside))
        values = jnp.linalg.eigvalsh(change)
        coordinates: Dense | Diagonal = Dense(factor @ _coordinates_of(absolute(change, FLOOR)).factor)
    else:
        scale = metric.coordinates.scale
        blend = lambda x: (1.0 - share) * jnp.mean(jnp.square(x), axis=0) + share
        values = jnp.sqrt(blend(grads * scale) / blend(_inside(metric.coordinates, positions)))
        coordinates = Diagonal(scale / jnp.sqrt(values))
    return Metric(coordinates, jnp.minimum(wanted, largest_rate)), jnp.max(jnp.maximum(values, 1.0 / values))


def slower(error: jax.Array, wanted: float = ERROR) -> jax.Array:
    """By how much the learning rate is to change, by a step's energy error in k_B T per sqrt(d) (5), or what goes as it."""
    # Falls at once and rises slowly: near the limit of stability the error grows much faster than the step's power 3/2.
    return jnp.minimum(RISE, (wanted / jnp.maximum(error, 1e-30)) ** (2.0 / 3.0))


@jax.jit
def homes(metric: Metric, window: Trace) -> jax.Array:
    """From which chain each goes on: from itself, or from the best if its own mode has no mass to speak of (2).

    Here a mode's mass is that of the normal law with the window's mean energy and variances, in the units of the metric.
    """
    variances = jnp.var(_inside(metric.coordinates, window.position), axis=1)
    masses = -jnp.mean(window.energy, axis=1) + 0.5 * jnp.sum(jnp.log(variances), axis=1)
    return jnp.where(_counts(masses), jnp.arange(masses.size), jnp.argmax(masses))


def _counts(masses: jax.Array) -> jax.Array:
    """Which modes count, by the logarithms of their masses."""
    return masses >= jnp.max(masses) + math.log(NEGLIGIBLE)


def _inside(coordinates: Dense | Diagonal, positions: jax.Array) -> jax.Array:
    """Positions, along the last axis, in the units of a metric."""
    if isinstance(coordinates, Dense):
        return jnp.linalg.solve(coordinates.factor, positions.reshape(-1, positions.shape[-1]).T).T.reshape(positions.shape)
    return positions / coordinates.scale


def _about_their_means(series: jax.Array) -> jax.Array:
    """(chains, steps, d) -> (chains * steps, d), each chain about its own mean."""
    return (series - series.mean(axis=1, keepdims=True)).reshape(-1, series.shape[-1])


def _geometric_mean(grads: jax.Array, positions: jax.Array) -> jax.Array:
    """The M with M positions M = grads."""
    values, vectors = jnp.linalg.eigh(positions)
    root = (vectors * jnp.sqrt(values)) @ vectors.T
    inverse_root = (vectors / jnp.sqrt(values)) @ vectors.T
    values, vectors = jnp.linalg.eigh(root @ grads @ root)
    return inverse_root @ (vectors * jnp.sqrt(jnp.maximum(values, 0.0))) @ vectors.T @ inverse_root


def _coordinates_of(mass: jax.Array) -> Any:
    """S with S S^T = mass^-1: the symmetric one, which equal curvatures leave no choice of axes."""
    if mass.ndim == 1:
        return Diagonal(jax.lax.rsqrt(mass))
    values, vectors = jnp.linalg.eigh(mass)
    return Dense((vectors / jnp.sqrt(values)) @ vectors.T)


def _secant_curvature(target: Target, position: jax.Array, key: jax.Array) -> jax.Array:
    """The norm of each row of the Hessian, by the gradients' changes over small random steps: no less than its diagonal."""
    epsilon = jnp.finfo(position.dtype).eps ** (1.0 / 3.0)
    steps = epsilon * jnp.maximum(1.0, jnp.abs(position)) * jax.random.normal(key, (PROBES, position.size), position.dtype)
    grad = jax.grad(target.total)
    changes = jax.vmap(lambda step: grad(position + step) - grad(position))(steps)
    rows = jnp.sqrt(jnp.mean(jnp.square(changes), axis=0) / jnp.mean(jnp.square(steps), axis=0))
    largest = jnp.where(jnp.max(rows) > 0.0, jnp.max(rows), 1.0)
    return jnp.maximum(rows, FLOOR * largest)


def _descend(target: Target, position: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A mode, as near as a thousandth of k_B T tells, the curvature there, and the gradients taken on the way."""
    position, count = _quasi_newton(target, position, key)
    # Where scales are parameters, walls rise as e^(2x): there a search is stuck whose units are those of one place. Where the
    # first has found a mode, one step of the second sees it, and the curvature.
    position, curvature, more = _newton(target, position, key)
    return position, curvature, count + more


def _quasi_newton(target: Target, position: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L-BFGS, until a step falls by less than a thousandth of k_B T or none is found that falls."""
    scale = jax.lax.rsqrt(_secant_curvature(target, position, key))
    energy = lambda z: target.total(scale * z)
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=15, initial_guess_strategy="one")
    optimizer: Any = optax.lbfgs(linesearch=search)
    value_and_grad = optax.value_and_grad_from_state(energy)

    def goes_on(carry: Any) -> jax.Array:
        *_, iteration, _, fall = carry
        return (iteration < DESCENT) & (fall >= 1e-3)

    def iterate(carry: Any) -> Any:
        z, state, iteration, count, _ = carry
        value, grad = value_and_grad(z, state=state)
        with jax.numpy_dtype_promotion("standard"):  # Optax's search itself breaks the strict one, under x64
            updates, state = optimizer.update(grad, state, z, value=value, grad=grad, value_fn=energy)
        moved, fall = z + updates, _resolved(value - state[-1].value, value)
        fall = jnp.where(jnp.isfinite(fall) & jnp.all(jnp.isfinite(moved)), fall, -jnp.inf)
        count = count + state[-1].info.num_linesearch_steps.astype(count.dtype)
        return jnp.where(fall >= 0.0, moved, z), state, iteration + 1, count, fall

    start = position / scale
    none = jnp.zeros((), jnp.int32)
    beginning = (start, optimizer.init(start), none, none, jnp.asarray(jnp.inf, start.dtype))
    z, _, _, count, _ = jax.lax.while_loop(goes_on, iterate, beginning)
    return scale * z, PROBES + 1 + count


def _resolved(fall: jax.Array, value: Any) -> jax.Array:
    """None where it is rounding: a sum over 100,000 rows is known to some hundredths of k_B T in float32."""
    return jnp.where(fall > 4.0 * jnp.finfo(value.dtype).eps * jnp.abs(value), fall, jnp.minimum(fall, 0.0))


def _newton(target: Target, position: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Steps by the absolute Hessian (Dauphin et al. 2014), each as long as of sixteen lengths is best, likewise.

    Beyond `LARGEST_DENSE` dimensions by the norms of its rows.
    """
    lengths = 10.0 ** -jnp.arange(16.0, dtype=position.dtype)
    is_dense = position.size <= LARGEST_DENSE
    # A Hessian-vector product costs about two gradients, an energy about half of one.
    cost = 1 + lengths.size // 2 + (2 * position.size if is_dense else PROBES)

    def goes_on(carry: Any) -> jax.Array:
        *_, iteration, fall = carry
        return (iteration < DESCENT) & (fall >= 1e-3)

    def iterate(carry: Any) -> Any:
        position, _, iteration, _ = carry
        value, grad = jax.value_and_grad(target.total)(position)
        if is_dense:
            curvature = absolute(jax.hessian(target.total)(position), FLOOR)
            step = jnp.linalg.solve(curvature, grad)
        else:
            curvature = _secant_curvature(target, position, jax.random.fold_in(key, iteration))
            step = grad / curvature
        places = position - lengths[:, None] * step
        energies = jax.vmap(target.total)(places)
        falls = _resolved(value - jnp.where(jnp.isfinite(energies), energies, jnp.inf), value)
        best = jnp.argmax(falls)
        return jnp.where(falls[best] > 0.0, places[best], position), curvature, iteration + 1, falls[best]

    unknown = jnp.zeros((position.size,) * (2 if is_dense else 1), position.dtype)
    beginning = (position, unknown, jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf, position.dtype))
    position, curvature, iterations, _ = jax.lax.while_loop(goes_on, iterate, beginning)
    return position, curvature, cost * iterations


def _column(flags: jax.Array, like: jax.Array) -> jax.Array:
    return flags.reshape(-1, *(1,) * (like.ndim - 1))
