r"""Chains whose temperature moves and whose moves are accepted or refused: exact, however long a step is.

What a step errs by is a bias of each mode's own, larger where a mode is narrow, so that between modes of different widths it is
one of their weights. Chains that are to weigh modes therefore obey Metropolis's rule. The joint density is

.. math:: \exp(-g(\alpha)\, U(\theta) - K(\theta) - p \cdot p / 2 - V_b(\alpha) - r_\alpha^2 / 2)

and a step of a chain has two halves, each of which leaves it invariant:

- *alpha*, where the parameters stand: BAOAB of :math:`\alpha, r_\alpha`, which asks for no gradient;
- *the parameters*, where alpha stands: BAOAB in the metric of that temperature, at one gradient.

Each half is B A O A B, a palindrome whose O is reversible and exact, so that what decides is what its other parts do to the
energy, the shadow work w. With the probability min(1, exp(-w)) the half is taken; else nothing moves, and the momentum turns.

How long a step is must not hang on where it is made, or it would have to be the same on the way back; but one length for all
places is too long for the narrowest. So it is drawn, now and then anew: :math:`u^{1/2}` times the whole with u uniform, so that
the share of steps shorter than x times the whole is :math:`x^2`. Where a tenth of the whole would do, one in a hundred does.

Source: Metropolis's rule for such a palindrome: Bou-Rabee and Vanden-Eijnden, CPAM 63 (2010); shadow work: Sivak, Chodera and
Crooks, Phys. Rev. X 3 (2013); the momentum that turns: Horowitz, Phys. Lett. B 268 (1991).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._chains import Place, Target, Trace, place
from ctld_optax._dynamics.alpha import Bias
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._dynamics.walls import ReflectingWall
from ctld_optax._heated import Heated

ALPHA_MOMENTUM = 0.9
REDRAWN = 0.1  # of the steps begin with a new length


class Walker(NamedTuple):
    """One chain.

    Attributes:
      place: where it stands.
      momentum: p, N(0, 1) in equilibrium at every temperature, shape (d,), in the coordinates of the metric.
      alpha, r_alpha: the tempering variable and its momentum, shape ().
      bias: the state of alpha's bias.
      reach: how long its steps are, a share of the whole, shape ().
      key: of the next step.
    """

    place: Place
    momentum: jax.Array
    alpha: jax.Array
    r_alpha: jax.Array
    bias: jax.Array
    reach: jax.Array
    key: jax.Array


def begin(target: Target, position: jax.Array, bias: jax.Array, key: jax.Array) -> Walker:
    """A cold chain with thermal momenta."""
    key, momentum_key, alpha_key = jax.random.split(key, 3)
    momentum = jax.random.normal(momentum_key, position.shape, position.dtype)
    r_alpha = jax.random.normal(alpha_key, (), position.dtype)
    nowhere = jnp.zeros((), position.dtype)
    return Walker(place(target, position), momentum, nowhere, r_alpha, bias, nowhere + 1.0, key)


class Alphas(NamedTuple):
    """The half of alpha: its tempering, its bias and the size of its steps."""

    tempering: PolynomialTempering
    bias: Bias | None
    step_size: float

    def moved(
        self, alpha: jax.Array, r_alpha: jax.Array, bias: jax.Array, energy: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Alpha, its momentum and the bias, which learns from where alpha is then; `energy` is that of the heated part."""
        walls = ReflectingWall(self.tempering.delta_prime)
        length = self.step_size * math.sqrt(2.0 / (1.0 + ALPHA_MOMENTUM))
        force = lambda alpha: self._pull(alpha, energy) - self._slope(bias, alpha)
        noise_key, rule_key = jax.random.split(key)
        kicked = r_alpha + 0.5 * length * force(alpha)
        middle, turned = walls.advance(alpha, kicked, 0.5 * length)
        noise = jax.random.normal(noise_key, (), alpha.dtype)
        fresh = ALPHA_MOMENTUM * turned * kicked + math.sqrt(1.0 - ALPHA_MOMENTUM**2) * noise
        new, turned = walls.advance(middle, fresh, 0.5 * length)
        after = turned * fresh + 0.5 * length * force(new)
        both = jnp.stack([alpha, new])
        before, behind = self.tempering.beta(both) * energy + self._potential(bias, both)
        kinetic = 0.5 * (jnp.square(kicked) - jnp.square(r_alpha) + jnp.square(after) - jnp.square(fresh))
        work = behind - before + kinetic
        taken = jax.random.uniform(rule_key, (), work.dtype) < jnp.exp(-jnp.maximum(work, 0.0))
        alpha, r_alpha = jnp.where(taken, new, alpha), jnp.where(taken, after, -r_alpha)
        if self.bias is not None:
            bias = self.bias.deposit(bias, Visit(alpha, self._pull(alpha, energy)), walls)
        return alpha, r_alpha, bias

    def _pull(self, alpha: jax.Array, energy: jax.Array) -> jax.Array:
        """The force of the energy."""
        return -self.tempering.beta_gradient(alpha) * energy

    def _slope(self, bias: jax.Array, alpha: jax.Array) -> Any:
        return 0.0 if self.bias is None else self.bias.gradient(bias, alpha, self.tempering.delta_prime)

    def _potential(self, bias: jax.Array, alpha: jax.Array) -> Any:
        """For each of several alphas."""
        if self.bias is None:
            return 0.0
        each = functools.partial(self.bias.potential, bias, limit=self.tempering.delta_prime)
        return jax.vmap(each)(alpha)


class Pace(NamedTuple):
    """Of the parameters: the learning rate l, in units in which the target is round, and the momentum mu."""

    learning_rate: Any
    momentum: float

    @property
    def length(self) -> jax.Array:
        """Of a whole step."""
        return jnp.sqrt(2.0 * self.learning_rate / (1.0 + self.momentum))


class _Parameters(NamedTuple):
    """The half of the parameters: a step of length h at the inverse temperature beta, with the momentum's share mu kept."""

    target: Target
    coordinates: Heated
    beta: jax.Array
    length: jax.Array
    decay: jax.Array

    def proposed(self, here: Place, momentum: jax.Array, key: jax.Array) -> tuple[Place, jax.Array, jax.Array]:
        """Place and momentum at its end, and the shadow work."""
        energy, force = self._at(here)
        kicked = momentum - 0.5 * self.length * force
        noise = jax.random.normal(key, momentum.shape, momentum.dtype)
        fresh = self.decay * kicked + jnp.sqrt(1.0 - jnp.square(self.decay)) * noise
        # Widths are those of the temperature 1/beta of the momentum, which here is 1.
        drift = self.coordinates.outward(0.5 * self.length / jnp.sqrt(self.beta) * (kicked + fresh), self.beta)
        there = place(self.target, here.position + drift)
        new_energy, new_force = self._at(there)
        after = fresh - 0.5 * self.length * new_force
        kinetic = 0.5 * (kicked @ kicked - momentum @ momentum + after @ after - fresh @ fresh)
        return there, after, new_energy - energy + kinetic

    def _at(self, place: Place) -> tuple[jax.Array, jax.Array]:
        """Energy and gradient in the metric's coordinates."""
        gradient = self.beta * place.heated_grad + place.kept_grad
        return self.beta * place.heated + place.kept, self.coordinates.inward(gradient, self.beta) / jnp.sqrt(self.beta)


def walk(
    target: Target, coordinates: Heated, alphas: Alphas, pace: Pace, walker: Walker, num_steps: int, offset: Any
) -> tuple[Walker, Trace]:
    """Steps of one chain.

    Args:
      target: what is sampled.
      coordinates: in which a step is made, by its temperature.
      alphas: how alpha moves.
      pace: how the parameters do.
      walker: where from.
      num_steps: how many.
      offset: taken off the heated energy before alpha sees it, which changes the share of each alpha and nothing else: with
        the energy of a cold chain the bias has little to learn where the run begins.
    """

    def step(walker: Walker, _: None) -> tuple[Walker, Trace]:
        here, alpha, r_alpha, bias = walker.place, walker.alpha, walker.r_alpha, walker.bias
        key, alpha_key, reach_key, noise_key, rule_key = jax.random.split(walker.key, 5)
        alpha, r_alpha, bias = alphas.moved(alpha, r_alpha, bias, here.heated - offset, alpha_key)
        beta = alphas.tempering.beta(alpha)
        reach = _redrawn(walker.reach, reach_key)
        move = _Parameters(target, coordinates, beta, reach * pace.length, pace.momentum**reach)
        there, momentum, work = move.proposed(here, walker.momentum, noise_key)
        chance = jnp.where(jnp.isfinite(work), jnp.exp(-jnp.maximum(work, 0.0)), 0.0)
        taken = jax.random.uniform(rule_key, (), chance.dtype) < chance
        seen = Trace(
            position=here.position,
            grad=beta * here.heated_grad + here.kept_grad,
            heated=here.heated,
            energy=here.heated + here.kept,
            alpha=alpha,
            beta=beta,
            kinetic_energy=0.5 * walker.momentum @ walker.momentum,
            error=work,
            diverging=~jnp.isfinite(work),
            acceptance=chance,
        )
        there, momentum = jax.tree.map(lambda new, old: jnp.where(taken, new, old), (there, momentum), (here, -walker.momentum))
        return Walker(there, momentum, alpha, r_alpha, bias, reach, key), seen

    return jax.lax.scan(step, walker, None, length=num_steps)


def _redrawn(reach: jax.Array, key: jax.Array) -> jax.Array:
    when_key, what_key = jax.random.split(key)
    fresh = jnp.sqrt(jax.random.uniform(what_key, (), reach.dtype))
    return jnp.where(jax.random.uniform(when_key) < REDRAWN, fresh, reach)
