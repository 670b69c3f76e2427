"""Stochastic gradient Hamiltonian Monte Carlo: :func:`ctld_optax.ctld` at a constant temperature."""

from typing import Any, Literal

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from ctld_optax._arrays import noise as sources
from ctld_optax._checked import checked
from ctld_optax._ctld import ctld
from ctld_optax._dynamics.integrators import IntegratorName
from ctld_optax._dynamics.langevin import LangevinTransformation
from ctld_optax._dynamics.layers import PerLayer
from ctld_optax._dynamics.prior import Prior


@checked()
def sghmc(
    learning_rate: optax.ScalarOrSchedule | PerLayer,
    temperature: optax.ScalarOrSchedule | PerLayer,
    momentum: ArrayLike = 0.9,
    *,
    key: int | jax.Array,
    noise: sources.SourceName = "three_point",
    integrator: IntegratorName = "baoab",
    initial_momentum: Literal["zeros", "stationary"] = "zeros",
    momentum_dtype: DTypeLike | None = None,
    param_specs: Any = None,
    gradient_noise: Any = None,
    prior: Prior | None = None,
) -> LangevinTransformation:
    r"""Stochastic gradient Hamiltonian Monte Carlo: `optax.sgd(learning_rate, momentum)` at a temperature.

    One update, with m the buffer that `optax.sgd` calls `trace`:

    .. math::
        m_t = \mu m_{t-1} + \nabla_\theta \text{value}(\theta_t) - \sqrt{2 (1-\mu) T / \ell}\; \frac{\xi_t + \xi_{t-1}}{2},
        \qquad \theta_{t+1} = \theta_t - \ell\, m_t

    with :math:`\ell` the learning rate, T the temperature, :math:`\mu` the momentum and :math:`\xi_t` standard noise.
    In the variables of the source (Eq. 15): :math:`v = -\ell m`, :math:`\alpha = 1 - \mu`, :math:`\eta = \ell T`,
    :math:`U = \text{value}/T`; its :math:`\hat\beta`, the estimate of the gradient's own noise, is `gradient_noise`. Its noise
    is :math:`\xi_t` alone, `integrator="euler"`; the mean of two makes it BAOAB, for no gradient more.

    Stationary density: :math:`\exp(-\text{value}/T)`, up to an error of second order in the step and none where `value` is
    harmonic. In Euler's order the variances are too large by :math:`1/(1 - \ell U''/(2(1+\mu)))`, with U'' the curvature of
    `value`.

    It is :func:`ctld_optax.ctld` with `tempering=None`, arguments, state and errors included; `value` is not needed.

    Source: Chen, Fox and Guestrin, "Stochastic Gradient Hamiltonian Monte Carlo", ICML 2014.

    Example:
      >>> tx = ctld_optax.baselines.sghmc(0.01, temperature=1e-3, key=0)
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    return ctld(
        learning_rate,
        temperature,
        momentum,
        key=key,
        tempering=None,
        noise=noise,
        integrator=integrator,
        initial_momentum=initial_momentum,
        momentum_dtype=momentum_dtype,
        param_specs=param_specs,
        gradient_noise=gradient_noise,
        prior=prior,
    )
