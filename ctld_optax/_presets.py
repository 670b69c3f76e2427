"""Settings of :func:`ctld_optax.ctld` that belong together."""

from typing import Any, Literal

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from ctld_optax._arrays import noise as sources
from ctld_optax._checked import checked
from ctld_optax._ctld import ctld
from ctld_optax._dynamics.adaptive_force import AdaptiveBiasingForce
from ctld_optax._dynamics.alpha import Bias
from ctld_optax._dynamics.langevin import LangevinTransformation
from ctld_optax._dynamics.layers import PerLayer
from ctld_optax._dynamics.metadynamics import Metadynamics
from ctld_optax._dynamics.preconditioner import FixedMetric
from ctld_optax._dynamics.prior import Prior
from ctld_optax._dynamics.second_moment import LayerScale, SecondMoment
from ctld_optax._dynamics.tempering import GeometricTempering, PolynomialTempering
from ctld_optax._validate import check_range

A_NUMBER = "algorithm1 needs learning_rate and temperature as numbers, not as schedules: they set alpha's clock. Use ctld."


@checked()
def posterior_sampler(
    learning_rate: optax.ScalarOrSchedule | PerLayer,
    temperature: optax.ScalarOrSchedule = 1.0,
    momentum: ArrayLike = 0.9,
    *,
    key: int | jax.Array,
    tempering: PolynomialTempering | None = GeometricTempering(),
    bias: Bias | None = AdaptiveBiasingForce(),
    alpha_step_size: ArrayLike = 0.05,
    alpha_momentum: ArrayLike = 0.9,
    noise: sources.SourceName = "irwin_hall",
    initial_momentum: Literal["zeros", "stationary"] = "zeros",
    momentum_dtype: DTypeLike | None = None,
    param_specs: Any = None,
    gradient_noise: Any = None,
    preconditioner: FixedMetric | SecondMoment | LayerScale | None = None,
    prior: Prior | None = None,
) -> LangevinTransformation:
    r"""The settings of :func:`ctld_optax.ctld` that sample exactly, when samples are wanted rather than an optimum.

    The coupling "potential", whose stationary density is known, temperatures that are spaced geometrically, and a bias that
    settles as 1/t. The steps with
    :math:`|\alpha| \le \delta` sample :math:`\exp(-\text{value}/T)`; :mod:`ctld_optax.posterior` picks, weights and stores
    them.

    How to choose what is left:

    - The learning rate is a fraction of the limit of stability, :math:`2 (1+\mu)/U''` with U'' the largest curvature of
      `value`: 3.8/U'' at momentum 0.9. A tenth of it is a good start. A harmonic `value` is sampled without error up to the
      limit, where half of it is faster; with barriers the error grows with the learning rate, and half of that shows it.
    - `tempering`'s strength such that at the hottest, T/(1 - strength), the barriers are one or two temperatures high. None
      where there is one mode: all steps then count.
    - A larger `alpha_step_size` makes more round trips, up to 0.1 in a few dimensions; it must fall with their number and with
      the range of temperatures, as 0.4/(sqrt(d) log(1/(1 - strength))).

    Args:
      learning_rate: as in :func:`ctld_optax.ctld`.
      temperature: likewise, but one for all layers: 1 if `value` is the negative log posterior itself, 1/N for a mean loss of N
        examples.
      momentum: likewise.
      key: likewise.
      tempering: likewise.
      bias: likewise.
      alpha_step_size: likewise.
      alpha_momentum: likewise.
      noise: likewise.
      initial_momentum: likewise.
      momentum_dtype: likewise.
      param_specs: likewise.
      gradient_noise: likewise.
      preconditioner: likewise; the learning rate is then in its units, where 0.1 is a good choice (of `SecondMoment` and
        `LayerScale` with power=1).
      prior: likewise; `cold=True` for one that tempering leaves alone.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`CTLDState`.

    Raises:
      TypeError, ValueError: as :func:`ctld_optax.ctld`.

    Example:
      >>> num_examples = 1_000  # of a mean loss, with the log prior over num_examples in it
      >>> sampler = ctld_optax.posterior_sampler(0.01, temperature=1 / num_examples, key=0)
    """
    return ctld(
        learning_rate,
        temperature,
        momentum,
        key=key,
        tempering=tempering,
        bias=bias,
        coupling="potential",
        noise=noise,
        alpha_step_size=alpha_step_size,
        alpha_momentum=alpha_momentum,
        initial_momentum=initial_momentum,
        momentum_dtype=momentum_dtype,
        param_specs=param_specs,
        gradient_noise=gradient_noise,
        preconditioner=preconditioner,
        prior=prior,
    )


@checked(learning_rate=A_NUMBER, temperature=A_NUMBER)
def algorithm1(
    learning_rate: float,
    momentum: float,
    *,
    temperature: float = 1.0,
    key: int | jax.Array,
    tempering: PolynomialTempering = PolynomialTempering(),
    height: float = 20.0,
    width: float = 0.04,
    num_bins: int = 300,
    noise: sources.SourceName = "gaussian",
    momentum_dtype: DTypeLike | None = None,
) -> LangevinTransformation:
    r"""Algorithm 1 of the paper to the letter: :func:`ctld` with every choice as printed.

    The order of the step is symplectic Euler's. The energy on alpha is H = U + r.r/2 (Eq. 6), a force wall confines alpha
    (Eq. 11), alpha moves on the clock :math:`\eta = \sqrt{\text{learning\_rate} \cdot \text{temperature}}`, hills have the
    constant height w (Eq. 13), the bias force is the difference of adjacent bins (Eq. 14), and r ~ N(0, I).

    It is here for comparison. H grows with the number of parameters and throws alpha out of its window from some
    thousands of them on; train networks with :func:`ctld`.

    Three constants are ours, because the supplement that gives their formulae is not available: the friction
    gamma_alpha = 1/eta, so that r_alpha keeps no memory; C = delta_prime / eta^2, which carries alpha back from the wall to the
    middle in one step; K = 300. Two slips of the paper are mended: Eq. 11 lacks sign(alpha), and 1/g lies in [1, 1/(1-S)]. Two
    things it leaves open: beyond the outermost bins the bias exerts no force, and the paper's step moves theta before it
    takes the gradient, so `init` receives the paper's theta^(1) = theta^(0) + eta r^(0).

    Args:
      learning_rate: eta^2 / temperature > 0 (section 4.3). A number: eta is alpha's clock too.
      momentum: 1 - eta gamma, in [0, 1).
      temperature: k_B T_c > 0 in units of `value`; 1 if `value` is the negative log posterior itself.
      key: as in :func:`ctld`.
      tempering: delta, delta' and S of Eq. 7.
      height: w, in units of k_B T_c.
      width: sigma, in units of alpha.
      num_bins: K.
      noise: as in :func:`ctld`.
      momentum_dtype: as in :func:`ctld`.

    Raises:
      TypeError, ValueError: as :func:`ctld`; also for a schedule, and for temperature = 0.

    Example:
      >>> sampler = ctld_optax.algorithm1(learning_rate=0.01, momentum=0.9, key=0)
    """
    check_range("learning_rate", learning_rate, minimum=0.0, minimum_open=True)
    check_range("temperature", temperature, minimum=0.0, minimum_open=True)
    return ctld(
        learning_rate,
        temperature,
        momentum,
        key=key,
        tempering=tempering,
        bias=Metadynamics(height=height, width=width, num_bins=num_bins, bias_factor=None),
        coupling="hamiltonian",
        confinement="force",
        noise=noise,
        integrator="euler",
        alpha_step_size=(learning_rate * temperature) ** 0.5,
        alpha_momentum=0.0,
        initial_momentum="stationary",
        momentum_dtype=momentum_dtype,
    )
