"""Stochastic gradient Langevin dynamics: gradient descent plus noise."""

from typing import Any

import jax

from ctld_optax._ctld import LangevinTransformation
from ctld_optax._validate import ScalarOrSchedule
from ctld_optax.baselines._sghmc import sghmc


def sgld(
    learning_rate: ScalarOrSchedule,
    temperature: ScalarOrSchedule,
    *,
    key: int | jax.Array,
    noise: str = "irwin_hall",
    param_specs: Any = None,
    gradient_noise: Any = None,
) -> LangevinTransformation:
    r"""Stochastic gradient Langevin dynamics, first order.

    .. math::
        \theta_{t+1} = \theta_t - \ell\, \nabla_\theta \text{value}(\theta_t) + \sqrt{2 \ell T}\; \epsilon_t

    with :math:`\ell` the learning rate, T the temperature and :math:`\epsilon_t` standard noise. In the variables of the
    source (Eq. 4): its step :math:`\epsilon_t` is :math:`2 \ell T`, its log posterior :math:`-\text{value}/T`.

    Stationary density: :math:`\exp(-\text{value}/T)`, up to an error of the variances of about :math:`\ell U''/2`, relative,
    with U'' the curvature of `value`; none in the limit of the source, where a schedule takes the learning rate to zero.

    It is :func:`sghmc` with a momentum that is forgotten at once, and shares its state: the `momentum` in there
    is the last noised gradient. This costs a buffer, and nothing else.

    Args:
      learning_rate: > 0, or a schedule of the step count.
      temperature: k_B T >= 0 in units of `value`, or a schedule: 1/N for the posterior of N independent examples from a mean
        loss.
      key: an int or one key, as in :func:`ctld_optax.ctld`.
      noise: as in :func:`ctld_optax.ctld`.
      param_specs: as in :func:`ctld_optax.ctld`, for `jax.shard_map`.
      gradient_noise: as in :func:`ctld_optax.ctld`: what the minibatches bring in by themselves.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`ctld_optax.CTLDState`. Extra arguments, `value` among
      them, are not needed.

    Raises:
      TypeError, ValueError: as :func:`ctld_optax.ctld`.

    Source: Welling and Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", ICML 2011.
    """
    return sghmc(learning_rate, temperature, 0.0, key=key, noise=noise, param_specs=param_specs, gradient_noise=gradient_noise)
