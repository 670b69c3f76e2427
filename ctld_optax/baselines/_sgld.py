"""Stochastic gradient Langevin dynamics: gradient descent plus noise."""

from typing import Any

import jax
import optax

from ctld_optax._arrays import noise as sources
from ctld_optax._checked import checked
from ctld_optax._dynamics.integrators import IntegratorName
from ctld_optax._dynamics.langevin import LangevinTransformation
from ctld_optax._dynamics.layers import PerLayer
from ctld_optax._dynamics.prior import Prior
from ctld_optax.baselines._sghmc import sghmc


@checked()
def sgld(
    learning_rate: optax.ScalarOrSchedule | PerLayer,
    temperature: optax.ScalarOrSchedule | PerLayer,
    *,
    key: int | jax.Array,
    noise: sources.SourceName = "irwin_hall",
    integrator: IntegratorName = "baoab",
    param_specs: Any = None,
    gradient_noise: Any = None,
    prior: Prior | None = None,
) -> LangevinTransformation:
    r"""Stochastic gradient Langevin dynamics, first order.

    .. math::
        \theta_{t+1} = \theta_t - \ell\, \nabla_\theta \text{value}(\theta_t) + \sqrt{2 \ell T}\; \frac{\xi_t + \xi_{t-1}}{2}

    with :math:`\ell` the learning rate, T the temperature and :math:`\xi_t` standard noise. In the variables of the
    source (Eq. 4): its step :math:`\epsilon_t` is :math:`2 \ell T`, its log posterior :math:`-\text{value}/T`. Its noise is
    :math:`\xi_t` alone, `integrator="euler"`; the mean of two (Leimkuhler and Matthews, AMRX 2013) costs no gradient.

    Stationary density: :math:`\exp(-\text{value}/T)`, up to an error of second order in :math:`\ell` and none where `value`
    is harmonic. In Euler's order the variances are too large by about :math:`\ell U''/2`, relative, with U'' the curvature
    of `value`; in the limit of the source a schedule takes the learning rate, and with it this error, to zero.

    It is :func:`sghmc` with a momentum that is forgotten at once, and shares its state: the `momentum` in there
    is the last noised gradient. This costs a buffer, and nothing else.

    Args:
      learning_rate: > 0, or a schedule of the step count, or a :class:`~ctld_optax.PerLayer`.
      temperature: k_B T >= 0 in units of `value`, or likewise: 1/N for the posterior of N independent examples from a mean
        loss.
      key: an int or one key, as in :func:`ctld_optax.ctld`.
      noise: as in :func:`ctld_optax.ctld`.
      integrator: likewise.
      param_specs: as in :func:`ctld_optax.ctld`, for `jax.shard_map`.
      gradient_noise: as in :func:`ctld_optax.ctld`: what the minibatches bring in by themselves.
      prior: as in :func:`ctld_optax.ctld`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`ctld_optax.CTLDState`. Extra arguments, `value` among
      them, are not needed.

    Raises:
      TypeError, ValueError: as :func:`ctld_optax.ctld`.

    Source: Welling and Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", ICML 2011.

    Example:
      >>> tx = ctld_optax.baselines.sgld(0.01, temperature=1e-3, key=0)
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    return sghmc(
        learning_rate,
        temperature,
        0.0,
        key=key,
        noise=noise,
        integrator=integrator,
        param_specs=param_specs,
        gradient_noise=gradient_noise,
        prior=prior,
    )
