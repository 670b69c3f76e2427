"""From the energy of the parameters to the energy that drives alpha.

The force on alpha is -g'(alpha) * coupled_energy (Eq. 6). Two choices of the coupled energy are here. Nothing here knows of
Optax, of alpha or of the bias.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


class EnergyStatistics(NamedTuple):
    """Running mean and variance of the energy, in units of `value` and its square."""

    mean: jax.Array
    var: jax.Array


def update_statistics(
    statistics: EnergyStatistics, energy: jax.Array, num_seen: jax.Array, decay: float = 0.99
) -> EnergyStatistics:
    """Exponential moving mean and variance without start-up bias.

    The weight of the newest energy is (1 - decay) / (1 - decay^t), which is bias correction written as a recursion on
    differences: a constant offset of the loss costs no digits but those that the energy itself has lost in its dtype.

    Args:
      statistics: those before this step.
      energy: the energy of this step.
      num_seen: how many energies have gone in, this one excluded.
      decay: in (0, 1); 0.99 remembers about 100 steps.
    """
    dtype = statistics.mean.dtype
    decay = jnp.asarray(decay, dtype)
    weight = (1.0 - decay) / (1.0 - decay ** (num_seen.astype(dtype) + 1.0))
    # Exactly 1 for the first energy: a rounding error here would enter the variance times the square of the offset.
    weight = jnp.where(num_seen == 0, 1.0, weight)
    difference = energy - statistics.mean
    mean = statistics.mean + weight * difference
    var = (1.0 - weight) * (statistics.var + weight * jnp.square(difference))
    return EnergyStatistics(mean, var)


@dataclasses.dataclass(frozen=True)
class Hamiltonian:
    r"""The paper's coupling, :math:`H = (\text{value} + K)/T`, with K the kinetic energy in units of `value`.

    Exact: once the bias stands still, exp(-g H - phi - V_b - r_alpha^2/2) is stationary. H grows with the number of
    parameters d (mean d/2g, spread sqrt(d/2)), and so does the time alpha needs for a round trip: right for small d.
    """

    def __call__(self, energy: jax.Array, temperature: jax.Array, statistics: EnergyStatistics) -> jax.Array:
        return energy / temperature


@dataclasses.dataclass(frozen=True)
class Standardized:
    """(energy - running mean) / running standard deviation, clipped to +-5.

    Free of units: alpha moves in the same way whatever the number of parameters, the temperature, or an offset of the
    loss. Not exact: it becomes so as alpha moves slowly (alpha_step_size -> 0).
    """

    clip: float = 5.0

    def __call__(self, energy: jax.Array, temperature: jax.Array, statistics: EnergyStatistics) -> jax.Array:
        tiny = jnp.finfo(statistics.var.dtype).tiny
        score = (energy - statistics.mean) * jax.lax.rsqrt(jnp.maximum(statistics.var, tiny))
        return jnp.clip(score, -self.clip, self.clip)


COUPLINGS = {"hamiltonian": Hamiltonian(), "standardized": Standardized()}
