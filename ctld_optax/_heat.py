r"""How hot is hot enough, and what the target is like on the way there.

The chains, in copies if they are few, climb a ladder of constant temperatures, each twice the last, a window on each, and come
down again. What every window shows is kept: its metric (as the warm-up refines one), the mean energy, and whether chains that
come from a hotter place still agree.

- *How hot.* The climb ends where the data are forgotten: where the heated energy varies by less than `FORGOTTEN` k_B T, as
  under the prior; or after `MOST` doublings. On the way down chains fall out of agreement where modes part: R-hat rises to
  several times its value of 1. One level above the coldest at which it is less than `AGREED`, and stays so on all that are
  hotter, is hot enough.
- *The metric of each temperature.* The frame is that in which both ends of the ladder are diagonal; in it each level has widths
  of its own, and with them its own learning rate where steps make too large an error. Once alpha moves, chains see modes
  that none of them has come down to, where the step may be too long: the mean square of the gradient, the mean curvature over
  all modes, mends the widths, and then the share of steps that are refused, which is to be a twentieth at each temperature
  (`relearned`), until the samples are taken.
- *What the bias has to learn.* The mean force on alpha is :math:`-g'(\alpha) \langle U \rangle_{g(\alpha)}`, thermodynamic
  integration; the bias begins with it and need not fill.
- *Where to begin.* The chains have come down from where all modes are one.

Source: the way down is simulated annealing's (Kirkpatrick et al. 1983), agreement is Gelman and Rubin's (1992), mean energies
as forces are Kirkwood's (1935).
"""

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from ctld_optax import _warmup as warmup
from ctld_optax._chains import Target, Trace
from ctld_optax._dynamics.adaptive_force import AdaptiveBiasingForce
from ctld_optax._dynamics.preconditioner import Dense, Diagonal
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._heated import Heated
from ctld_optax._windows import WINDOW, Sampler, start, steps

MOST = 10  # doublings
LOWEST = 1e-3  # log of the hottest temperature, at least: a ladder has two ends
WALKERS = 8  # at least so many climb
FORGOTTEN = 0.5
AGREED = 1.3
ASTRAY = 1e12  # a parameter beyond this is on its way to infinity
LAST = 2  # windows more at the temperature 1
STEPS_APART = 10.0  # of which one is worth as much as an independent sample,
PRIOR_VISITS = 5.0  # of those, that what is known before a window counts as
STIFF = 4.0
REFUSED = 0.05
LARGEST_RATE = 1.0  # a direction STIFF times as stiff is stable still
TRUSTED = 100.0  # visits to each node that the first mean force counts as


class Level(NamedTuple):
    """What a window at one temperature has shown.

    Attributes:
      log_beta: of the temperature.
      metric: that it gives.
      energy: the mean of the heated one.
      spread: its standard deviation, in units of k_B T.
      disagreement: split R-hat, the largest of all coordinates.
    """

    log_beta: float
    metric: warmup.Metric
    energy: float
    spread: float
    disagreement: float


class Ladder(NamedTuple):
    """What the way up and down has shown.

    Attributes:
      levels: from the coldest, of the temperature 1, to the hottest.
      positions: where the chains have come down to, shape (chains, d).
      gradients: that this took, of all chains.
    """

    levels: list[Level]
    positions: jax.Array
    gradients: int


def explored(
    target: Target,
    sampler: Sampler,
    metric: warmup.Metric,
    positions: jax.Array,
    key: jax.Array,
    hottest: float | None = None,
) -> Ladder:
    """Up the ladder and down again.

    Args:
      target: what is sampled.
      sampler: one without tempering.
      metric: of the temperature 1.
      positions: where the chains stand, shape (chains, d).
      key: used up.
      hottest: the highest temperature, where it is known.
    """
    count = positions.shape[0]
    walkers = jnp.tile(positions, (math.ceil(WALKERS / count), 1))
    spent, largest = 0, metric.learning_rate
    doublings = MOST if hottest is None else max(1, math.ceil(math.log2(hottest) - 1e-6))
    rung = -math.log(2.0) if hottest is None else -max(math.log(hottest), LOWEST) / doublings

    def visit(number: int, metric: warmup.Metric, walkers: jax.Array) -> tuple[jax.Array, Level]:
        nonlocal spent
        spent += 1
        visit_key, log_beta = jax.random.fold_in(key, spent), number * rung
        beta = math.exp(log_beta)
        chains = start(target, sampler, metric.learning_rate, walkers, visit_key, beta)
        # Metrics here are of the tempered density itself, which its momentum, of the temperature 1/beta, is not.
        coordinates = jax.tree.map(lambda scale: math.sqrt(beta) * scale, metric.coordinates)
        chains, window = steps(target, sampler, coordinates, metric.learning_rate, chains, warmup.CLIP)
        after, _ = warmup.refined(metric, window, largest)
        energy, spread, disagreement = (float(x) for x in _shown(window.heated, window.position, jnp.asarray(beta)))
        return chains.place.position, Level(log_beta, after, energy, spread, disagreement)

    top = 0
    for number in range(1, doublings + 1):
        reached, level = visit(number, metric, walkers)
        if not bool(jnp.all(jnp.abs(reached) < ASTRAY)):
            break
        walkers, metric, top = reached, level.metric, number
        if hottest is None and level.spread < FORGOTTEN:
            break
    if top == 0:
        raise ValueError(
            "tempering must leave the chains where energies are numbers, but at the first higher temperature one ran away: "
            "give the prior as prior_fn=, which is never heated, or take tempering=None."
        )
    levels: list[Level] = []
    for number in [*range(top, -1, -1), *[0] * LAST]:
        walkers, level = visit(number, metric, walkers)
        metric = level.metric
        levels = [*levels[: top - number], level]
    return Ladder(levels[::-1], walkers[:count], spent * WINDOW * walkers.shape[0])


def enough(ladder: Ladder) -> float:
    """The highest temperature that there need be, in units of the lowest."""
    levels = ladder.levels
    apart = [number for number, level in enumerate(levels) if not level.disagreement < AGREED]
    coldest = apart[-1] + 1 if apart else 0  # above all levels at which they are apart
    return math.exp(-levels[min(max(coldest + 1, 1), len(levels) - 1)].log_beta)


def heated(ladder: Ladder) -> Heated:
    """The coordinates of every temperature, for one learning rate of all."""
    metrics = [level.metric for level in ladder.levels]
    coldest, hottest = metrics[0].coordinates, metrics[-1].coordinates
    if isinstance(coldest, Dense) and isinstance(hottest, Dense):
        _, frame = jnp.linalg.eigh(_covariance(coldest, hottest))
        base: Dense | Diagonal = Dense(coldest.factor @ frame)
        widths = [-0.5 * jnp.log(jnp.diag(jnp.linalg.inv(_covariance(base, one.coordinates)))) for one in metrics]
    else:
        base = coldest
        scales = [cast("Diagonal", metric.coordinates).scale for metric in metrics]
        widths = [jnp.log(scale / scales[0]) for scale in scales]
    log_betas = jnp.asarray([level.log_beta for level in ladder.levels], ladder.positions.dtype)
    return Heated(base, (jnp.stack(widths) + 0.5 * log_betas[:, None]).at[0].set(0.0), log_betas[-1])


def shortened(coordinates: Heated, ladder: Ladder, learning_rate: jax.Array) -> Heated:
    """Where a level has a learning rate of its own, that is a matter of its widths: what counts is the stiffness."""
    rates = jnp.stack([level.metric.learning_rate for level in ladder.levels])
    return coordinates._replace(widths=coordinates.widths + 0.5 * jnp.log(rates / learning_rate)[:, None])


@jax.jit
def relearned(coordinates: Heated, widest: jax.Array, window: Trace) -> Heated:
    """The coordinates that a window in which temperatures move asks for, by what each level has shown.

    In modes where no chain has come down a step may be too long. Chains that cross see them all: by the mean square of the
    gradient, the mean curvature over all modes, a direction of more than `STIFF` times the curvature that the metric gives it
    is mended. Then the whole level becomes wider or narrower, until `REFUSED` of its steps are not taken; up to the `widest`.
    """
    last = coordinates.widths.shape[0] - 1
    inward = jax.vmap(jax.vmap(coordinates.inward))(window.grad, window.beta) / jnp.sqrt(window.beta)[..., None]
    place = jnp.round(last * jnp.clip(jnp.log(window.beta) / coordinates.lowest, 0.0, 1.0)).astype(jnp.int32)
    here = jax.nn.one_hot(place, last + 1, dtype=inward.dtype) / STEPS_APART
    seen = PRIOR_VISITS + here.sum((0, 1))
    curvature = (PRIOR_VISITS + jnp.einsum("csl,csd->ld", here, jnp.square(inward))) / seen[:, None]
    refused = (PRIOR_VISITS * REFUSED + jnp.einsum("csl,cs->l", here, 1.0 - window.acceptance)) / seen
    # The work of a step goes as its length cubed, as its error does.
    stiffness = jnp.maximum(1.0, curvature / STIFF) / warmup.slower(refused, REFUSED)[:, None]
    return coordinates._replace(widths=jnp.minimum(coordinates.widths - 0.5 * jnp.log(stiffness), widest))


def informed(bias: AdaptiveBiasingForce, tempering: PolynomialTempering, ladder: Ladder, offset: jax.Array) -> jax.Array:
    """The bias's state, as if the ladder's mean energies, less an offset, had been seen everywhere."""
    alpha = bias.nodes(tempering.delta_prime, offset.dtype)
    log_betas, energies = (jnp.asarray(x, offset.dtype) for x in zip(*[level[:3:2] for level in ladder.levels], strict=True))
    energy = jnp.interp(-jnp.log(tempering.beta(alpha)), -log_betas, energies) - offset
    return jnp.stack([jnp.full_like(alpha, TRUSTED), -tempering.beta_gradient(alpha) * energy])


def _covariance(base: Any, other: Any) -> jax.Array:
    """Of a dense metric, in the coordinates of another."""
    factor = jnp.linalg.solve(base.factor, other.factor)
    return factor @ factor.T


@jax.jit
def _shown(energies: jax.Array, positions: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and spread of the heated energy, and the largest split R-hat, of a window of shape (chains, steps, ...)."""
    halves = positions.reshape(2 * positions.shape[0], positions.shape[1] // 2, -1)
    within, between = jnp.mean(jnp.var(halves, axis=1), axis=0), jnp.var(jnp.mean(halves, axis=1), axis=0, ddof=1)
    return jnp.mean(energies), beta * jnp.std(energies), jnp.sqrt(1.0 + jnp.max(between / within))
