"""Chains that walk side by side over one target: what :func:`ctld_optax.posterior.sample` does again and again.

A chain is a flat vector of parameters with a sampler's state. Nothing here looks for a metric or makes a report.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._dynamics.langevin import CTLDState, Langevin
from ctld_optax._dynamics.preconditioner import Coordinates, Dense, Diagonal, Natural

# A step with a larger energy error, in units of k_B T, is not taken: it has left the region where the step size makes sense.
# Where it makes sense errors are of the order of 0.1, so that the guard costs a sample nothing.
DIVERGENCE = 10.0
SHORTER = 0.25  # how much shorter the next step is then; with each that is taken the reach doubles, up to the whole
Energy = Callable[[jax.Array], jax.Array]


class Target(NamedTuple):
    """A negative log density, in two parts: functions that are pytrees, of the data that they hold.

    Attributes:
      heated: what tempering divides by its temperature.
      kept: what always counts in full, a prior.
    """

    heated: Energy
    kept: Energy

    def total(self, position: jax.Array) -> jax.Array:
        return self.heated(position) + self.kept(position)


class Place(NamedTuple):
    """Where a chain stands, and what it knows of the place.

    Attributes:
      position: shape (d,).
      heated, kept: shape (), the two energies.
      heated_grad, kept_grad: shape (d,).
    """

    position: jax.Array
    heated: jax.Array
    kept: jax.Array
    heated_grad: jax.Array
    kept_grad: jax.Array

    def at(self, beta: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Energy and gradient in units of the temperature that heats one part.

        The noise has the temperature 1 / beta. What is to be kept is multiplied by that, so that the density is
        exp(-beta heated - kept).
        """
        return self.heated + self.kept / beta, self.heated_grad + self.kept_grad / beta


class Trace(NamedTuple):
    """What a chain has seen, with a leading axis of steps.

    Attributes:
      position: shape (steps, d).
      grad: of what is sampled at the step's temperature, likewise.
      heated, energy: of the part that tempering divides, and of the whole target at full weight, shape (steps,).
      alpha, beta, kinetic_energy: of the sampler, shape (steps,).
      error: of the energy: by the trapezoid rule along the step, 0 where the target is harmonic, whatever the step; where steps
        are accepted or refused, the work by which that is decided.
      diverging: whether the step could not be taken.
      acceptance: the chance that the step had of being taken, where there is one.
    """

    position: jax.Array
    grad: jax.Array
    heated: jax.Array
    energy: jax.Array
    alpha: jax.Array
    beta: jax.Array
    kinetic_energy: jax.Array
    error: jax.Array
    diverging: jax.Array
    acceptance: Any = ()


class Chain(NamedTuple):
    """One chain.

    Attributes:
      place: where it stands.
      state: of its sampler.
      reach: the share of a step that it goes, shape (): 1, except after a step that was not taken.
    """

    place: Place
    state: CTLDState
    reach: jax.Array


def place(target: Target, position: jax.Array) -> Place:
    heated, heated_grad = jax.value_and_grad(target.heated)(position)
    kept, kept_grad = jax.value_and_grad(target.kept)(position)
    return Place(position, heated, kept, heated_grad, kept_grad)


def begin(target: Target, kernel: Langevin, position: jax.Array, key: jax.Array, beta: Any = 1.0) -> Chain:
    """A chain with thermal momentum, at an inverse temperature that stays if the sampler has no tempering."""
    state = begun(kernel, Natural(), position, key, beta)
    return Chain(place(target, position), state, jnp.ones((), position.dtype))


def begun(kernel: Langevin, coordinates: Coordinates, position: jax.Array, key: jax.Array, beta: Any = 1.0) -> CTLDState:
    """The state of a sampler that begins in a metric, with thermal momentum."""
    key, momentum_key = jax.random.split(key)
    state = kernel.init(position)
    beta = jnp.asarray(beta, state.beta.dtype)
    return refreshed(state._replace(coordinates=coordinates, key=key, beta=beta), momentum_key)


def refreshed(state: CTLDState, key: jax.Array) -> CTLDState:
    """With a momentum drawn anew at the temperature of the last noise; in a metric it is N(0, T / learning_rate)."""
    scale = jnp.sqrt(1.0 / (state.learning_rate * state.beta))
    momentum = jnp.asarray(state.momentum)
    return state._replace(momentum=scale * jax.random.normal(key, momentum.shape, momentum.dtype))


def walk(
    target: Target, kernel: Langevin, coordinates: Dense | Diagonal, chain: Chain, num_steps: int, clip: Any
) -> tuple[Chain, Trace]:
    """Steps of one chain.

    A step to where energy or gradient is not finite, or one that makes an energy error of more than `DIVERGENCE`, is not taken:
    the chain stays, with a fresh momentum, and makes shorter steps until it is out of there.

    Args:
      target: what is sampled.
      kernel: the sampler, whose momentum is in the coordinates.
      coordinates: in which the step is taken.
      chain: where from.
      num_steps: how many.
      clip: the largest norm of a gradient in the sampler's coordinates, in units of sqrt(d); infinite for samples.
    """

    def step(chain: Chain, _: None) -> tuple[Chain, Trace]:
        here, state, reach = chain
        energy, grad = here.at(state.beta)
        inward = coordinates.inward(grad)
        inward = inward * jnp.minimum(1.0, clip * jnp.sqrt(grad.size / state.beta) / jnp.linalg.norm(inward))
        momentum = kernel.accelerate(inward, state.momentum, kernel.kept(state))
        after = kernel.thermalize(state._replace(momentum=momentum), here.heated, inward)
        velocity = coordinates.outward(jnp.asarray(after.momentum))
        updates = -reach * after.learning_rate * velocity
        there = place(target, here.position + updates)
        new_energy, new_grad = there.at(state.beta)
        error = state.beta * (new_energy - energy - 0.5 * jnp.sum((grad + new_grad) * updates))
        is_good = jnp.isfinite(new_energy) & jnp.all(jnp.isfinite(new_grad)) & (jnp.abs(error) < DIVERGENCE)
        there = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), there, here)
        fresh = refreshed(after, jax.random.fold_in(after.key, 0))
        after = jax.tree.map(lambda kept, new: jnp.where(is_good, kept, new), after, fresh)
        reach = jnp.where(is_good, jnp.minimum(1.0, 2.0 * reach), SHORTER * reach)
        seen = Trace(
            position=here.position,
            grad=state.beta * grad,
            heated=here.heated,
            energy=here.heated + here.kept,
            alpha=after.alpha,
            beta=after.beta,
            kinetic_energy=after.kinetic_energy,
            error=jnp.where(is_good, error, 0.0),
            diverging=~is_good,
        )
        return Chain(there, after, reach), seen

    return jax.lax.scan(step, chain, None, length=num_steps)
