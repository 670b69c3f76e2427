"""Stochastic gradient Hamiltonian Monte Carlo: :func:`ctld_optax.ctld` at a constant temperature."""

from typing import Any

import jax

from ctld_optax._ctld import LangevinTransformation, ctld
from ctld_optax._validate import ScalarOrSchedule


def sghmc(
    learning_rate: ScalarOrSchedule,
    temperature: ScalarOrSchedule,
    momentum: Any = 0.9,
    *,
    key: int | jax.Array,
    noise: str = "irwin_hall",
    initial_momentum: str = "zeros",
    momentum_dtype: Any = None,
    param_specs: Any = None,
    gradient_noise: Any = None,
) -> LangevinTransformation:
    r"""Stochastic gradient Hamiltonian Monte Carlo: `optax.sgd(learning_rate, momentum)` at a temperature.

    One update, with m the buffer that `optax.sgd` calls `trace`:

    .. math::
        m_t = \mu m_{t-1} + \nabla_\theta \text{value}(\theta_t) - \sqrt{2 (1-\mu) T / \ell}\; \epsilon_t,
        \qquad \theta_{t+1} = \theta_t - \ell\, m_t

    with :math:`\ell` the learning rate, T the temperature, :math:`\mu` the momentum and :math:`\epsilon_t` standard noise.
    In the variables of the source (Eq. 15): :math:`v = -\ell m`, :math:`\alpha = 1 - \mu`, :math:`\eta = \ell T`,
    :math:`U = \text{value}/T`; its :math:`\hat\beta`, the estimate of the gradient's own noise, is `gradient_noise`.

    Stationary density: :math:`\exp(-\text{value}/T)`, up to an error of the variances of about :math:`\ell U''/(2(1+\mu))`,
    relative, with U'' the curvature of `value`.

    It is :func:`ctld_optax.ctld` with `tempering=None`, arguments, state and errors included; `value` is not needed.

    Source: Chen, Fox and Guestrin, "Stochastic Gradient Hamiltonian Monte Carlo", ICML 2014.
    """
    return ctld(
        learning_rate,
        temperature,
        momentum,
        key=key,
        tempering=None,
        noise=noise,
        initial_momentum=initial_momentum,
        momentum_dtype=momentum_dtype,
        param_specs=param_specs,
        gradient_noise=gradient_noise,
    )
