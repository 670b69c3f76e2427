"""Continuously tempered Langevin dynamics as an Optax gradient transformation: its arguments, and what they mean.

Ye, Zhu and Mantiuk, "Langevin Dynamics with Continuous Tempering for Training Deep Neural Networks", NIPS 2017. The step
itself is :mod:`ctld_optax._dynamics.langevin`.
"""

from typing import Any, Literal, cast

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from ctld_optax._arrays import noise as sources
from ctld_optax._checked import checked
from ctld_optax._dynamics.alpha import AlphaHalf, Bias
from ctld_optax._dynamics.coupling import COUPLINGS, Coupling, CouplingName, Hamiltonian
from ctld_optax._dynamics.integrators import INTEGRATORS, IntegratorName
from ctld_optax._dynamics.langevin import Langevin, LangevinTransformation, transformation
from ctld_optax._dynamics.layers import Layers, PerLayer, as_knob
from ctld_optax._dynamics.metadynamics import Metadynamics
from ctld_optax._dynamics.minibatch import as_gradient_noise
from ctld_optax._dynamics.preconditioner import FixedMetric, Unpreconditioned
from ctld_optax._dynamics.prior import Prior
from ctld_optax._dynamics.second_moment import LayerScale, SecondMoment
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._dynamics.walls import ForceWall, ReflectingWall, Walls
from ctld_optax._validate import as_key, check_dtype, check_range, check_specs


@checked()
def ctld(
    learning_rate: optax.ScalarOrSchedule | PerLayer,
    temperature: optax.ScalarOrSchedule | PerLayer,
    momentum: ArrayLike = 0.9,
    *,
    key: int | jax.Array,
    tempering: PolynomialTempering | None = PolynomialTempering(),
    bias: Bias | None = Metadynamics(),
    coupling: CouplingName | Coupling = "standardized",
    confinement: Literal["reflect", "force"] = "reflect",
    noise: sources.SourceName = "three_point",
    integrator: IntegratorName = "baoab",
    alpha_step_size: ArrayLike = 0.02,
    alpha_momentum: ArrayLike = 0.9,
    initial_momentum: Literal["zeros", "stationary"] = "zeros",
    momentum_dtype: DTypeLike | None = None,
    param_specs: Any = None,
    gradient_noise: Any = None,
    preconditioner: FixedMetric | SecondMoment | LayerScale | None = None,
    prior: Prior | None = None,
) -> LangevinTransformation:
    r"""Continuously tempered Langevin dynamics: `optax.sgd(learning_rate, momentum)` that samples.

    One update, with m the buffer that `optax.sgd` calls `trace`:

    .. math::
        m_t &= \mu m_{t-1} + \nabla_\theta \text{value}(\theta_t)
               - \sqrt{\frac{2 (1-\mu) T}{\ell\, \beta_{t-1}}}\, \epsilon_t,
               \qquad \theta_{t+1} = \theta_t - \ell\, m_t \\
        \alpha_t &= \alpha_{t-1} + h\, r_{\alpha, t-1},
               \qquad V_b \mathrel{+}= \text{hill}(\alpha_t) \\
        r_{\alpha, t} &= \mu_\alpha r_{\alpha, t-1}
               + h \left[-g'(\alpha_t) E_t - \phi'(\alpha_t) - V_b'(\alpha_t)\right]
               + \sqrt{2 (1-\mu_\alpha)}\, \epsilon_{\alpha, t}, \qquad \beta_t = g(\alpha_t)

    with :math:`\ell` the learning rate, T the temperature, :math:`\mu` the momentum, h and :math:`\mu_\alpha` alpha's own step
    size and momentum, E the coupled energy, and :math:`\epsilon_t = (\xi_t + \xi_{t-1})/2` the mean of two successive standard
    variates, which makes this BAOAB, exact in theta where `value` is harmonic (:doc:`why </api/noise>`).
    In the paper's variables :math:`\eta = \sqrt{\ell T}`, :math:`1 - \eta\gamma = \mu`, :math:`r = -m \sqrt{\ell/T}`,
    :math:`U = \text{value}/T`. Where :math:`\ell` changes, :math:`m_{t-1}` is scaled by
    :math:`\sqrt{\ell_{t-1}/\ell_t}`, so that r stays (not at T = 0).

    Stationary density, with `coupling="hamiltonian"`, the paper's, and a bias that stands still:
    :math:`\exp(-g(\alpha) (U + r \cdot r/2) - V_b(\alpha) - r_\alpha^2/2)` on :math:`|\alpha| \le \delta'`, so that the steps
    with :math:`|\alpha| \le \delta` sample :math:`\exp(-\text{value}/T)`, up to an error of second order in the step.
    For posteriors take :func:`ctld_optax.posterior_sampler`, which is this with the settings that sample exactly.

    Where it departs from the paper: the order of the step; alpha's clock (each half of the dynamics leaves the joint density
    invariant by itself, so its step size is free); a standardized energy (the paper's H throws alpha out of its window from
    some thousands of parameters on); reflecting walls; well-tempered hills; noise with a Gaussian's first five moments
    instead of all. :func:`ctld_optax.algorithm1` is the paper to the letter.

    Args:
      learning_rate: > 0, or a schedule of the step count, as in `optax.sgd`. Stable, like that, below 2 (1 + mu) / U'' with U''
        the largest curvature of `value`. A :class:`~ctld_optax.PerLayer` gives each layer its own; what is sampled stays.
      temperature: k_B T_c >= 0 in units of `value`, or a schedule. The posterior of N independent examples from a
        *mean* loss has 1/N; networks with far more parameters than examples need it colder, because the noise adds
        about (number of parameters) * temperature / 2 to the loss. A schedule is looked at when the sampler is made, at the
        steps 0, 10, 100, ... 10^6, and must not be negative or NaN there; elsewhere, and where a number is traced, less than
        0 counts as 0, and a NaN as a step that was not finite. At 0 this is `optax.sgd`, bit for bit; the
        hamiltonian coupling has no meaning there, so alpha stands still. A :class:`~ctld_optax.PerLayer` is a choice of how
        much noise each layer gets, beside the couplings "standardized" and "kinetic" only.
      momentum: mu in [0, 1), the paper's 1 - eta gamma.
      key: an int or one key (`jax.random.key`, or a legacy one). Copied: the caller may use it again. For replicas, a key
        each: `jax.vmap(lambda key, p: ctld(..., key=key).init(p))(keys, members)`. `jax.vmap(tx.init)(members)`, or a
        transformation built twice from one key, draws the same noise twice, and `diagnostics.report` says so.
      tempering: g(alpha). None keeps the temperature constant, which makes this SGHMC; `value` is then not needed.
      bias: what makes alpha's distribution flat. :class:`~ctld_optax.Metadynamics` (default) or, for posteriors,
        :class:`~ctld_optax.AdaptiveBiasingForce`. None leaves alpha unbiased.
      coupling: "standardized" (default) for exploring large networks, "kinetic", the same where a trainer cannot hand on
        `value`, "potential" for exact sampling in up to some hundreds of dimensions, "hamiltonian" the same by the paper's H;
        or a :class:`~ctld_optax.Standardized`, :class:`~ctld_optax.Kinetic`, :class:`~ctld_optax.Potential` or
        :class:`~ctld_optax.Hamiltonian`.
      confinement: "reflect" (walls at +-delta_prime) or "force" (Eq. 11, with the force
        C = delta_prime (1 - alpha_momentum) / alpha_step_size^2, which carries alpha back by delta_prime).
      noise: "three_point" (default: moments Gaussian up to the fifth, of the same order in the step as BAOAB), "irwin_hall" (up
        to the seventh, for a third more a step), "gaussian" (inversion, twice as much) or "rademacher" (up to the third: cheap,
        and biased); costs and biases are in :doc:`the reference </api/noise>`.
      integrator: "baoab" (default), or "euler", the paper's order (:math:`\epsilon_t = \xi_t`), whose variances are too large
        by 1 / (1 - l U'' / (2 (1 + mu))).
      alpha_step_size: h > 0, step of alpha in units of its thermal velocity. Smaller follows the exact dynamics better.
      alpha_momentum: mu_alpha in [0, 1).
      initial_momentum: "zeros" (thermal after 1/(1 - momentum) steps) or "stationary" (the paper's r ~ N(0, I)).
      momentum_dtype: dtype of the momentum. None: that of each parameter, but at least float32, since in bfloat16 a sum
        of small gradients stands still.
      param_specs: needed inside `jax.shard_map` if that cuts the parameters, and there only: the `PartitionSpec` of each
        parameter, as a pytree prefix, the same as in `in_specs`. It makes the noise that of the whole array and sums the
        kinetic energy over the named axes. `grads` are then the caller's blocks, `value` the loss of the whole, equal on
        all shards. Under plain `jit` JAX does all this by itself.
      gradient_noise: what minibatches bring in noise by themselves, which is then injected that much less (Eq. 8-10).
        None: nothing, as the paper does in practice. Or the variance of the entries of the minibatch gradient, a number or a
        pytree like params; :class:`~ctld_optax.KnownNoise` for the variance of the loss too;
        :class:`~ctld_optax.RunningNoise` to estimate both on the way. Where a minibatch brings more than there is to inject,
        that parameter runs hot: lower the learning rate or take larger minibatches.
      preconditioner: the mass of the parameters, where their scales differ or they are correlated. For networks a
        :class:`~ctld_optax.SecondMoment`, whose learning rate reads like Adam's, or a :class:`~ctld_optax.LayerScale`; for
        posteriors a :class:`~ctld_optax.FixedMetric`, of which :func:`~ctld_optax.metric_from_hessian` makes one. None: unit
        mass. Beside `param_specs` not a matrix.
      prior: a :class:`~ctld_optax.Prior`, where `value` and the gradients are those of the loss alone: what weight decay means
        in this phase. None: none.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`CTLDState`. `update(grads, state, params, value=loss)` needs
      the loss whose gradient is passed, a scalar (a minibatch mean will do); with `coupling="kinetic"` it needs none, and does
      not look at it. A step in which `value` or a gradient entry is not finite leaves alpha, r_alpha, the bias and the energy
      statistics as they were and is counted in `skipped`; momentum entries that are not finite are set to zero. Updates have
      the dtype of the gradients. For parameters narrower than float32 they are rounded at random such that params + update is
      right on average, if `params` are passed and nothing after this changes the update.

    Raises:
      TypeError: if `value` is missing or not real, or a parameter is not of a real floating-point dtype.
      ValueError: for a number out of range (Python numbers only; traced hyperparameters are not checked), an unknown
        option, a `value` that is not a scalar, no `params` beside a `prior`, or a temperature per layer beside a coupling that
        samples exactly.

    Source: Ye, Zhu and Mantiuk, NIPS 2017, Eq. 4-14 and Algorithm 1; Leimkuhler and Matthews, AMRX 2013, for BAOAB.

    Example:
      >>> loss_fn = lambda params: 0.5 * jnp.sum(params["w"] ** 2)
      >>> params = {"w": jnp.ones(3)}
      >>> tx = ctld_optax.ctld(learning_rate=0.01, temperature=1e-3, momentum=0.9, key=0)
      >>> state = tx.init(params)
      >>> loss, grads = jax.value_and_grad(loss_fn)(params)
      >>> updates, state = tx.update(grads, state, params, value=loss)
      >>> params = optax.apply_updates(params, updates)
    """
    check_range("momentum", momentum, minimum=0.0, maximum=1.0, maximum_open=True)
    check_range("alpha_step_size", alpha_step_size, minimum=0.0, minimum_open=True)
    check_range("alpha_momentum", alpha_momentum, minimum=0.0, maximum=1.0, maximum_open=True)
    check_dtype("momentum_dtype", momentum_dtype)
    check_specs("param_specs", param_specs)
    if prior is not None and callable(prior.weight_decay) and param_specs is not None:
        raise ValueError(
            "prior must have a number as weight_decay beside param_specs: a function would see one shard. Or add its value and "
            "its gradient to those of the loss."
        )

    walls: Walls | None = None
    if tempering is not None:
        limit = tempering.delta_prime
        force: Any = limit * (1.0 - cast("Any", alpha_momentum)) / cast("Any", alpha_step_size) ** 2
        walls = ReflectingWall(limit) if confinement == "reflect" else ForceWall(limit, force)
    order = INTEGRATORS[integrator]
    chosen = COUPLINGS[coupling] if isinstance(coupling, str) else coupling
    heat = as_knob("temperature", temperature)
    if isinstance(heat, Layers) and tempering is not None and isinstance(chosen, Hamiltonian):
        raise ValueError(
            f"temperature must be one for all layers beside the coupling {type(chosen).__name__}, which is driven by value / "
            'temperature. For a temperature per layer take coupling="standardized" or "kinetic".'
        )
    return transformation(
        Langevin(
            learning_rate=as_knob("learning_rate", learning_rate, minimum_open=True),
            temperature=heat,
            decay=momentum,
            integrator=order,
            source=sources.SOURCES[noise],
            alpha=AlphaHalf(
                tempering=tempering,
                bias=bias if tempering is not None else None,
                coupling=chosen,
                walls=walls,
                step_size=alpha_step_size,
                decay=alpha_momentum,
                integrator=order,
            ),
            gradient_noise=as_gradient_noise(gradient_noise),
            preconditioner=preconditioner or Unpreconditioned(),
            prior=prior,
            stationary_start=initial_momentum == "stationary",
            momentum_dtype=momentum_dtype,
            param_specs=param_specs,
            key=as_key(key),
        )
    )
