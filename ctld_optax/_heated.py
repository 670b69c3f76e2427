r"""Coordinates that change with the temperature: what a metric becomes where it is hot.

At the inverse temperature beta the step is taken in :math:`\theta = S\, W(\beta)\, z`, with S the metric of the temperature
1 and W diagonal. Where all of the energy is heated and Gaussian, W is the identity: noise and momentum of the temperature
1/beta are all that is needed. What is kept, a prior, is as narrow where it is hot as where it is cold, and W falls as
sqrt(beta) there: without that its stiffness, in the units of the step, would grow as 1/beta.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._dynamics.preconditioner import Dense, Diagonal


class Even(NamedTuple):
    """S times one number: W = 1, momentum alone is heated; or what is right at one temperature.

    Attributes:
      base: S.
      width: of all coordinates, shape ().
    """

    base: Dense | Diagonal
    width: Any = 1.0

    def inward(self, grad: jax.Array, beta: jax.Array) -> jax.Array:
        """W S^T times a gradient."""
        del beta
        return self.width * self.base.inward(grad)

    def outward(self, velocity: jax.Array, beta: jax.Array, next_beta: jax.Array, decay: float) -> jax.Array:
        """S W times a step in z, half of it made before beta changes and half after, as `Integrator.drift` has it."""
        return self.base.outward(_in_halves(self.width, self.width, beta / next_beta, decay) * velocity)


class Heated(NamedTuple):
    """S W(beta) of a flat vector.

    Attributes:
      base: S.
      widths: log W, shape (levels, d), at equal distances in log beta, from 0 on.
      lowest: log beta of the last level, shape (), < 0.
    """

    base: Dense | Diagonal
    widths: jax.Array
    lowest: jax.Array

    def inward(self, grad: jax.Array, beta: jax.Array) -> jax.Array:
        """As of `Even`."""
        return self._width(beta) * self.base.inward(grad)

    def outward(self, velocity: jax.Array, beta: jax.Array, next_beta: jax.Array, decay: float) -> jax.Array:
        """Likewise."""
        return self.base.outward(_in_halves(self._width(beta), self._width(next_beta), beta / next_beta, decay) * velocity)

    def _width(self, beta: jax.Array) -> jax.Array:
        """W, linear in its logarithm between levels."""
        last = self.widths.shape[0] - 1
        place = last * jnp.clip(jnp.log(beta) / self.lowest, 0.0, 1.0)
        left = jnp.minimum(place.astype(jnp.int32), last - 1)
        share = place - left.astype(place.dtype)
        return jnp.exp((1.0 - share) * self.widths[left] + share * self.widths[left + 1])


def _in_halves(width: Any, next_width: Any, ratio: jax.Array, decay: float) -> jax.Array:
    """W of a step in which beta changes by a ratio, and W with it."""
    return width + decay / (1.0 + decay) * (jnp.sqrt(ratio) * next_width - width)
