r"""The orders of the step: what becomes of the momentum of one leaf, and every constant that follows from the order.

With m the buffer that `optax.sgd` calls `trace`, l the learning rate, mu its momentum (`decay` here) and T/beta the
temperature, both orders here are the heavy ball with noise,

.. math::
    m_t = \mu m_{t-1} + \nabla \text{value}(\theta_t) - \sigma_t \epsilon_t, \qquad
    \theta_{t+1} = \theta_t - \ell m_t, \qquad \sigma_t^2 = \frac{2 (1-\mu) T}{\ell \beta_t},

and differ in which noise a step takes in:

- `EULER`, the order of the paper's Algorithm 1: :math:`\epsilon_t = \xi_t`, one fresh variate a step;
- `BAOAB` (Leimkuhler and Matthews 2013): :math:`\epsilon_t = (\xi_t + \xi_{t-1}) / 2`, half of each variate now and half a
  step later.

**Why the mean of two variates is BAOAB.** Its step of length :math:`\sqrt{2\ell/(1+\mu)}` kicks the momentum by the gradient
(B, two half kicks in one), drifts half a step (A), lets friction and noise at it (O), and drifts the other half (A). With p
the momentum before O and c = 1/(1+mu), in the units of m,

.. math::
    p_t = \mu p_{t-1} - s\xi_{t-1} + \nabla\text{value}(\theta_t), \qquad
    \theta_{t+1} = \theta_t - \ell\, (p_t - c s \xi_t), \qquad s = \sigma (1+\mu) / 2.

Let :math:`m_t = p_t - c s \xi_t`, the velocity from one gradient to the next. Since :math:`1 - \mu c = c`, its recursion is
the one above. A step costs one gradient and no buffer; the last variate is not stored but made again from its 64 bits.

**What follows**, all of it exact on a harmonic value of curvature U'' and for the stiffness k = l U'' < 2 (1 + mu):

=========================================  ===========================  =====
\                                          Euler                        BAOAB
=========================================  ===========================  =====
variance of theta, in units of T/U''       1 / (1 - k / (2 (1 + mu)))   1
variance of r = m sqrt(l/T)                2 / (1 + mu) times that      1
=========================================  ===========================  =====

so that BAOAB samples the parameters without error of the step where the value is harmonic, with one of second order elsewhere,
and its kinetic energy l m^2 / 2 shows the temperature. Where a part f of the noise is not ours but the minibatch's, that part
is white whatever the order, and each figure is (1 - f) times BAOAB's plus f times Euler's.

Nothing here knows of trees, of alpha or of how the temperature comes about.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

IntegratorName = Literal["baoab", "euler"]


@dataclasses.dataclass(frozen=True)
class Integrator:
    """One order: which share of a variate enters at once, and what follows from that.

    Attributes:
      name: how `ctld(integrator=...)` calls it.
      later: the share of a variate that a step leaves to the next: 0 or 1/2.
    """

    name: IntegratorName
    later: float

    @property
    def now(self) -> float:
        """The share of a variate that enters at once."""
        return 1.0 - self.later

    def variance(self, stiffness: Any, decay: Any, brought: Any = 0.0) -> Any:
        """<theta^2> U'' / T for the stiffness l U'', where a part `brought` of the noise comes with the gradient."""
        white = 1.0 / (1.0 - stiffness / (2.0 * (1.0 + decay)))
        return white if self.later == 0.0 else 1.0 - brought + brought * white

    def kinetic_temperature(self, decay: Any, stiffness: Any = 0.0, brought: Any = 0.0) -> Any:
        """<r^2> = 2 <K> / T per parameter, likewise."""
        white = 2.0 / ((1.0 + decay) * (1.0 - stiffness / (2.0 * (1.0 + decay))))
        return white if self.later == 0.0 else 1.0 - brought + brought * white

    def drift(self, beta: Any, next_beta: Any, decay: Any) -> Any:
        """The drift of a step in which beta changes, in units of l m, for momenta that keep r sqrt(beta).

        Of A O A the first half drifts by p, the second by what O leaves of it, mu p, times sqrt(beta / next_beta). Euler's
        order drifts once, before beta changes.
        """
        # Written so that it is exactly 1 where beta stays.
        return 1.0 if self.later == 0.0 else 1.0 + decay / (1.0 + decay) * (jnp.sqrt(beta / next_beta) - 1.0)

    def momenta_exponent(self, decay: Any) -> Any:
        """The power of 1/g that one momentum contributes to alpha's density: <K> g / T, as the discrete momenta have it."""
        return 0.5 * self.kinetic_temperature(decay)


EULER = Integrator("euler", 0.0)
BAOAB = Integrator("baoab", 0.5)
INTEGRATORS = {integrator.name: integrator for integrator in (BAOAB, EULER)}


def kick(grad: jax.Array, momentum: jax.Array, decay: Any) -> jax.Array:
    """B: the heavy-ball step decay * m + grad, in the arithmetic of `optax.trace`."""
    return grad.astype(momentum.dtype) + jnp.asarray(decay, momentum.dtype) * momentum


def refresh(momentum: jax.Array, noise: jax.Array, scale: jax.Array) -> jax.Array:
    """O: the momentum less noise of the standard deviation `scale`."""
    # The noise first: in this order XLA finds the loops of equal leaves equal, and compiles them once.
    return -scale.astype(momentum.dtype) * noise.astype(momentum.dtype) + momentum


def noise_variance(learning_rate: jax.Array, temperature: jax.Array, beta: jax.Array, decay: Any) -> jax.Array:
    """sigma^2; 0 at learning_rate = 0, where nothing moves and an infinite noise would be due."""
    variance = 2.0 * (1.0 - decay) * temperature / (learning_rate * beta)
    return jnp.where(learning_rate > 0.0, variance, 0.0)


def stationary_scale(learning_rate: jax.Array, temperature: jax.Array) -> jax.Array:
    """sqrt(T/l), the standard deviation of m for the paper's r ~ N(0, I); 0 at learning_rate = 0, as above."""
    moves = learning_rate > 0.0
    return jnp.where(moves, jnp.sqrt(temperature / jnp.where(moves, learning_rate, 1.0)), 0.0)


def kinetic_energy(learning_rate: jax.Array, squares: jax.Array) -> jax.Array:
    """K = l |m|^2 / 2 = T r.r / 2, in units of value; of learning rates and squares that are each a layer's, the sum."""
    return jnp.sum(0.5 * learning_rate * squares)


def thermal_factor(last_rate: jax.Array, learning_rate: jax.Array, temperature: jax.Array) -> jax.Array:
    """What keeps the momentum thermal when the learning rate changes: sqrt(l_old / l_new), for r = -m sqrt(l/T) is to stay.

    Unscaled, m would be heat after a rise: r^2 grows by l_new / l_old. 1 at T = 0, where m is the trace of an optimizer, and
    where either learning rate is 0.
    """
    known = (last_rate > 0.0) & (learning_rate > 0.0)
    ratio = jnp.where(known, last_rate, 1.0) / jnp.where(known, learning_rate, 1.0)
    return jnp.where(known & (temperature > 0.0), jnp.sqrt(ratio), 1.0)


def ratio_of_noise(last_variance: jax.Array, variance: jax.Array, otherwise: jax.Array) -> jax.Array:
    """What keeps the momentum as thermal as the noise is, sigma / sigma_last; `otherwise` in a step without noise.

    So r sqrt(beta) stays, whatever has changed of l, T and beta.
    """
    known = (last_variance > 0.0) & (variance > 0.0)
    ratio = jnp.where(known, variance, 1.0) / jnp.where(known, last_variance, 1.0)
    return jnp.where(known, jnp.sqrt(ratio), otherwise)
