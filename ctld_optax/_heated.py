r"""Coordinates that change with the temperature: what a metric becomes where it is hot.

At the inverse temperature beta the step is taken in :math:`\theta = S\, W(\beta)\, z`, with S the metric of the temperature
1 and W diagonal. Where all of the energy is heated and Gaussian, W is the identity: noise and momentum of the temperature
1/beta are all that is needed. What is kept, a prior, is as narrow where it is hot as where it is cold, and W falls as
sqrt(beta) there: without that its stiffness, in the units of the step, would grow as 1/beta.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._dynamics.preconditioner import Dense, Diagonal


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
        """W S^T times a gradient."""
        return self._width(beta) * self.base.inward(grad)

    def outward(self, velocity: jax.Array, beta: jax.Array) -> jax.Array:
        """S W times a step in z."""
        return self.base.outward(self._width(beta) * velocity)

    def _width(self, beta: jax.Array) -> jax.Array:
        """W, linear in its logarithm between levels."""
        last = self.widths.shape[0] - 1
        place = last * jnp.clip(jnp.log(beta) / self.lowest, 0.0, 1.0)
        left = jnp.minimum(place.astype(jnp.int32), last - 1)
        share = place - left.astype(place.dtype)
        return jnp.exp((1.0 - share) * self.widths[left] + share * self.widths[left + 1])
