"""SGD with annealed gradient noise."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from ctld_optax._arrays import noise as sources
from ctld_optax._checked import checked
from ctld_optax._dynamics.integrators import IntegratorName
from ctld_optax._dynamics.langevin import LangevinTransformation
from ctld_optax._validate import as_schedule, check_range
from ctld_optax.baselines._sghmc import sghmc


@checked()
def anneal_sgd(
    learning_rate: optax.ScalarOrSchedule,
    variance: ArrayLike,
    momentum: ArrayLike = 0.0,
    *,
    key: int | jax.Array,
    decay: ArrayLike = 0.55,
    noise: sources.SourceName = "irwin_hall",
    integrator: IntegratorName = "euler",
    momentum_dtype: DTypeLike | None = None,
    param_specs: Any = None,
) -> LangevinTransformation:
    r"""SGD whose gradient gets Gaussian noise of a variance that falls as a power of the step count.

    .. math::
        m_t = \mu m_{t-1} + \nabla_\theta \text{value}(\theta_t) + \sigma_t \epsilon_t, \qquad
        \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}, \qquad \theta_{t+1} = \theta_t - \ell\, m_t

    with t = 0 at the first update, :math:`\ell` the learning rate, :math:`\eta` the `variance`, :math:`\gamma` the `decay`,
    :math:`\mu` the momentum and :math:`\epsilon_t` standard noise. The source has no momentum, takes :math:`\gamma = 0.55` and
    picks :math:`\eta` from 0.01, 0.3 and 1.

    It is :func:`sghmc` whose temperature is the schedule :math:`T_t = \ell_t \sigma_t^2 / (2 (1 - \mu))`, and shares its state.
    It has no stationary density, since it cools. Where a schedule changes :math:`\ell`, the trace is scaled as in
    :func:`ctld_optax.ctld`.

    Args:
      learning_rate: > 0, or a schedule of the step count.
      variance: eta >= 0, of one entry of the gradient of `value` at the first step, in units of that gradient squared.
      momentum: mu in [0, 1).
      key: an int or one key, as in :func:`ctld_optax.ctld`.
      decay: gamma >= 0.
      noise: as in :func:`ctld_optax.ctld`.
      integrator: as in :func:`ctld_optax.ctld`. "euler" is the source's white noise; there is no density to be exact in.
      momentum_dtype: as in :func:`ctld_optax.ctld`.
      param_specs: as in :func:`ctld_optax.ctld`, for `jax.shard_map`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`ctld_optax.CTLDState`. Extra arguments, `value` among
      them, are not needed. With variance 0 it is `optax.sgd(learning_rate, momentum)`, bit for bit.

    Raises:
      TypeError, ValueError: as :func:`ctld_optax.ctld`.

    Source: Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks", 2015, arXiv:1511.06807.

    Example:
      >>> tx = ctld_optax.baselines.anneal_sgd(0.01, variance=1e-3, key=0)
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    check_range("variance", variance, minimum=0.0)
    check_range("momentum", momentum, minimum=0.0, maximum=1.0, maximum_open=True)
    check_range("decay", decay, minimum=0.0)
    rate = as_schedule("learning_rate", learning_rate, minimum_open=True)

    def temperature(count: Any) -> Any:
        # In float64 where there is one; `sghmc` casts.
        step = 1.0 + jnp.asarray(count, jnp.result_type(float))
        return rate(count) * variance * step ** -cast("Any", decay) / (2.0 * (1.0 - cast("Any", momentum)))

    return sghmc(
        rate,
        temperature,
        momentum,
        key=key,
        noise=noise,
        integrator=integrator,
        momentum_dtype=momentum_dtype,
        param_specs=param_specs,
    )
