r"""The alpha half of Algorithm 1: a scalar subsystem, driven by an energy. It knows neither parameters nor Optax.

.. math::
    \alpha_t &= \alpha_{t-1} + h\, r_{\alpha, t-1}, \qquad V_b \mathrel{+}= \text{hill}(\alpha_t) \\
    r_{\alpha, t} &= \mu_\alpha r_{\alpha, t-1} + h \left[-g'(\alpha_t) E_t - \phi'(\alpha_t) - V_b'(\alpha_t)\right]
        + \sqrt{2 (1-\mu_\alpha)}\, \epsilon_t, \qquad \beta_t = g(\alpha_t)

with h the `step_size`, :math:`\mu_\alpha` the `decay`, E the coupled energy and :math:`\epsilon_t` the noise of the
integrator's order: the same recursion as that of the parameters, with unit learning rate and temperature.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctld_optax._arrays import noise as sources
from ctld_optax._dynamics.adaptive_force import AdaptiveBiasingForce
from ctld_optax._dynamics.coupling import Coupling, EnergyStatistics, update_statistics
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.integrators import Integrator
from ctld_optax._dynamics.metadynamics import Metadynamics
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._dynamics.walls import Walls

Bias = Metadynamics | AdaptiveBiasingForce


class AlphaState(NamedTuple):
    """What the alpha half remembers.

    Attributes:
      alpha: shape (), the tempering variable.
      r_alpha: shape (), its momentum.
      beta: shape (), g(alpha), by which the next step of the parameters goes.
      bias: shape (2, nodes), the bias's own state.
      statistics: running mean and variance of the energy.
      rest: shape (), the share of this step's noise that the next will take in.
    """

    alpha: jax.Array
    r_alpha: jax.Array
    beta: jax.Array
    bias: jax.Array
    statistics: EnergyStatistics
    rest: jax.Array

    @property
    def is_finite(self) -> jax.Array:
        return jnp.isfinite(self.r_alpha) & jnp.isfinite(self.statistics.var)


@dataclasses.dataclass(frozen=True)
class AlphaHalf:
    """The settings, and the step.

    Attributes:
      tempering: g, or None for a constant temperature, with which only the energy's statistics move.
      bias: what makes alpha's distribution flat, or None.
      coupling: from the energy to what drives alpha.
      walls: what keeps alpha in its window.
      step_size: h.
      decay: mu_alpha.
      integrator: the order.
    """

    tempering: PolynomialTempering | None
    bias: Bias | None
    coupling: Coupling
    walls: Walls | None
    step_size: Any
    decay: Any
    integrator: Integrator

    def init(self, key: jax.Array, dtype: Any) -> AlphaState:
        """Alpha = 0 with r_alpha ~ N(0, 1)."""
        # Every scalar is a buffer of its own: one buffer in two fields could not be donated.
        return AlphaState(
            alpha=jnp.zeros((), dtype),
            r_alpha=jax.random.normal(key, (), dtype),
            beta=jnp.ones((), dtype),
            bias=jnp.zeros((2, 0), dtype) if self.bias is None else self.bias.init(dtype),
            statistics=EnergyStatistics(jnp.zeros((), dtype), jnp.zeros((), dtype)),
            rest=jnp.zeros((), dtype),
        )

    def step(
        self,
        state: AlphaState,
        energy: jax.Array,
        temperature: jax.Array,
        key: jax.Array,
        *,
        num_seen: jax.Array,
        value_variance: jax.Array | None = None,
    ) -> AlphaState:
        """One step.

        Args:
          state: of the step before.
          energy: that of the coupling, shape (), in units of value.
          temperature: k_B T_c, shape (), in the same units.
          key: of this step's noise, used up.
          num_seen: how many energies have gone into the statistics.
          value_variance: variance of a minibatch's value, whose noise is then injected that much less.
        """
        statistics = update_statistics(state.statistics, energy, num_seen, self.coupling.decay)
        state = state._replace(statistics=statistics)
        if self.tempering is None or self.walls is None:
            return state
        alpha, turned = self.walls.advance(state.alpha, state.r_alpha, self.step_size)
        slope = self.tempering.beta_gradient(alpha)
        force = -slope * self.coupling(energy, temperature, statistics)
        bias = state.bias
        if self.bias is not None:
            good = jnp.isfinite(energy) & jnp.isfinite(force) & jnp.isfinite(statistics.var)
            bias = self.bias.deposit(bias, Visit(alpha, force, good), self.walls)
            force = force - self.bias.gradient(bias, alpha, self.walls.limit)
        force = force + self.walls.force(alpha)
        variance = 2.0 * (1.0 - jnp.asarray(self.decay, alpha.dtype))
        if value_variance is not None:
            lever = slope * self.coupling.sensitivity(temperature, statistics)
            variance = jnp.maximum(variance - jnp.square(self.step_size * lever) * value_variance, 0.0)
        r_alpha = self.decay * (turned * state.r_alpha) + self.step_size * force
        variate = jnp.sqrt(variance) * sources.standard_normal(key, alpha.dtype)
        r_alpha = r_alpha + self.integrator.now * variate
        if self.integrator.later:
            r_alpha = r_alpha + turned * state.rest
        rest = self.integrator.later * variate
        # Where momenta are not heated the parameters' drift and noise go by the temperature of where alpha goes next.
        next_alpha = alpha if self.coupling.heats_momenta else self.walls.advance(alpha, r_alpha, self.step_size)[0]
        return AlphaState(alpha, r_alpha, self.tempering.beta(next_alpha), bias, statistics, rest)
