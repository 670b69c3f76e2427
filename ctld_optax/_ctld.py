"""Continuously tempered Langevin dynamics as an Optax gradient transformation: Algorithm 1 of the paper.

Ye, Zhu and Mantiuk, "Langevin Dynamics with Continuous Tempering for Training Deep Neural Networks", NIPS 2017.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ctld_optax import _noise, _rounding, _shards
from ctld_optax._adaptive_force import AdaptiveBiasingForce
from ctld_optax._coupling import COUPLINGS, EnergyStatistics, Hamiltonian, Standardized, update_statistics
from ctld_optax._gradient_noise import GradientNoise, as_gradient_noise, remaining
from ctld_optax._inplace import change_if
from ctld_optax._metadynamics import Metadynamics
from ctld_optax._tempering import Confinement, ForceWall, PolynomialTempering, ReflectingWall
from ctld_optax._validate import (
    ScalarOrSchedule,
    as_key,
    as_schedule,
    check_choice,
    check_dtype,
    check_params,
    check_range,
    check_scalar_value,
)

MISSING_VALUE = """ctld needs the loss at every step: the energy drives the temperature. Pass it as `value`:

    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params, value=loss)

With flax.training.train_state.TrainState, whose `apply_gradients` cannot forward it, write instead of apply_gradients:

    updates, opt_state = state.tx.update(grads, state.opt_state, state.params, value=loss)
    state = state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)

With flax.nnx: `optimizer.update(model, grads, value=loss)`."""


class CTLDState(NamedTuple):
    """State of :func:`ctld`. Same structure, shapes and dtypes from `init` to every `update`.

    Scalars and the bias are float32 whatever the parameters' dtype, or float64 if a parameter is.
    """

    count: Any  # shape (), int32: number of updates made
    momentum: optax.Updates  # like params: the trace of optax.sgd, m = -r sqrt(temperature / learning_rate)
    alpha: jax.Array  # shape (): tempering variable
    r_alpha: jax.Array  # shape (): its momentum, N(0, 1) in equilibrium
    beta: jax.Array  # shape (): g(alpha), the inverse temperature scale of the next step's noise
    key: jax.Array  # shape (), typed PRNG key
    bias: jax.Array  # shape (2, num_bins + 1): V_b in units of k_B T_c, an unevaluated sum of two floats a node
    kinetic_energy: jax.Array  # shape (): learning_rate |m|^2 / 2 of the last step, in units of value
    energy_mean: jax.Array  # shape (): running mean of value + kinetic energy, in units of value
    energy_var: jax.Array  # shape (): its running variance
    skipped: jax.Array  # shape (), int32: steps whose value or gradient was not finite
    gradient_noise: Any = ()  # what an estimator of the minibatch noise remembers; empty without one


@dataclasses.dataclass(frozen=True)
class LangevinKernel:
    """What one step does to a momentum that has already taken in the gradient: Algorithm 1 without its first half.

    `phase_switch` shares these parts, so that one momentum buffer serves both phases.
    """

    learning_rate: optax.Schedule
    temperature: optax.Schedule
    momentum: Any
    source: _noise.Source
    tempering: PolynomialTempering | None
    bias: Metadynamics | AdaptiveBiasingForce | None
    coupling: Hamiltonian | Standardized
    confinement: Confinement | None
    alpha_step_size: float
    alpha_momentum: float
    stationary_start: bool
    momentum_dtype: Any
    param_specs: Any
    key: Any
    gradient_noise: GradientNoise | None = None

    @property
    def needs_value(self) -> bool:
        return self.tempering is not None

    def init(self, params: optax.Params) -> CTLDState:
        check_params(params)
        dtype = scalar_dtype_of(params)
        # Split from a clone: the state never holds the caller's own key, which a donation would delete.
        key, theta_key, alpha_key = jax.random.split(jax.random.clone(self.key), 3)
        momentum = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=momentum_dtype_of(p, self.momentum_dtype)), params)
        if self.stationary_start:
            learning_rate, temperature = self._hyperparameters(jnp.zeros((), jnp.int32), dtype)
            # As in `thermalize`: a warm-up from learning_rate = 0 starts at rest, not at infinity.
            moves = learning_rate > 0.0
            scale = jnp.where(moves, jnp.sqrt(temperature / jnp.where(moves, learning_rate, 1.0)), 0.0)
            noise = _noise.draw(theta_key, momentum, _noise.gaussian, _shards.specs_in_scope(self.param_specs))
            momentum = jax.tree.map(lambda m, e: m - scale.astype(m.dtype) * e.astype(m.dtype), momentum, noise)
        bias = jnp.zeros((2, 0), dtype) if self.bias is None else self.bias.init(dtype)
        # Every scalar is a buffer of its own: one buffer in two fields could not be donated.
        return CTLDState(
            count=jnp.zeros((), jnp.int32),
            momentum=momentum,
            alpha=jnp.zeros((), dtype),
            r_alpha=jax.random.normal(alpha_key, (), dtype),
            beta=jnp.ones((), dtype),
            key=key,
            bias=bias,
            kinetic_energy=jnp.zeros((), dtype),
            energy_mean=jnp.zeros((), dtype),
            energy_var=jnp.zeros((), dtype),
            skipped=jnp.zeros((), jnp.int32),
            gradient_noise=() if self.gradient_noise is None else self.gradient_noise.init(params, dtype),
        )

    def accelerate(self, grads: optax.Updates, momentum: optax.Updates, decay: Any) -> optax.Updates:
        """The heavy-ball step m = decay * m + grad, in the arithmetic of `optax.trace`."""
        return jax.tree.map(lambda g, m: g.astype(m.dtype) + jnp.asarray(decay, m.dtype) * m, grads, momentum)

    def thermalize(self, state: CTLDState, value: Any, grads: optax.Updates) -> CTLDState:
        """Adds the noise to `state.momentum`, which has taken in `grads`, then moves alpha."""
        dtype = state.alpha.dtype
        learning_rate, temperature = self._hyperparameters(state.count, dtype)
        key, theta_key, alpha_key = jax.random.split(state.key, 3)

        value = jnp.zeros((), dtype) if value is None else check_scalar_value(value, where="ctld").astype(dtype)

        variance = 2.0 * (1.0 - self.momentum) * temperature / (learning_rate * state.beta)
        # A warm-up that starts at learning_rate = 0 moves nothing, so it needs no noise, let alone an infinite one.
        variance = jnp.where(learning_rate > 0.0, variance, 0.0)
        value_variance = jnp.zeros((), dtype)
        if self.gradient_noise is None:
            scale = jnp.sqrt(variance)
            scales = jax.tree.map(lambda _: scale, state.momentum)
        else:
            remembered, brought = self.gradient_noise.observe(state.gradient_noise, grads, value)
            state = state._replace(gradient_noise=remembered)
            scales = remaining(variance, brought.gradient, state.momentum)
            value_variance = jnp.asarray(brought.value, dtype)
        noise = _noise.draw(theta_key, state.momentum, self.source, self.param_specs)
        # The noise first: in this order XLA finds the loops of equal leaves equal, and compiles them once.
        momentum = jax.tree.map(
            lambda m, e, scale: -scale.astype(m.dtype) * e.astype(m.dtype) + m, state.momentum, noise, scales
        )
        sums = [jnp.sum(jnp.square(m.astype(dtype))) for m in jax.tree.leaves(momentum)]
        squares = _shards.sum_over_shards(sums, _shards.spec_leaves(self.param_specs, momentum), dtype)
        # The sum tells whether an entry is bad without another pass over memory. It goes through the change too, or XLA would
        # repeat the additions of all leaves in each of the scalar kernels that use it.
        squares, momentum = change_if(jnp.logical_not(jnp.isfinite(squares)), _mend, (squares, momentum))
        kinetic_energy = 0.5 * learning_rate * squares

        energy = value + kinetic_energy
        moved = self._move_alpha(state, energy, kinetic_energy, temperature, alpha_key, value_variance=value_variance)
        good = jnp.isfinite(value) & jnp.isfinite(squares) & jnp.isfinite(moved.r_alpha) & jnp.isfinite(moved.energy_var)
        # The bias has left out the hill of a bad step already, and must take in those of the other walkers.
        others = {"key": (), "momentum": (), "bias": (), "gradient_noise": ()}
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved._replace(**others), state._replace(**others))
        return kept._replace(
            bias=moved.bias,
            count=optax.safe_increment(state.count),
            momentum=momentum,
            key=key,
            gradient_noise=state.gradient_noise,
            skipped=jnp.where(good, state.skipped, optax.safe_increment(state.skipped)),
        )

    def displacement(
        self,
        count: jax.Array,
        momentum: optax.Updates,
        like: optax.Updates,
        params: optax.Params | None = None,
        key: jax.Array | None = None,
    ) -> optax.Updates:
        """The update -learning_rate * m, in the dtype of the gradients; its rounding to narrow `params`, if given, is unbiased.

        `key`, needed then, is only read, and may be one that a state holds.
        """
        step = -1 * jnp.asarray(self.learning_rate(count))
        updates = jax.tree.map(lambda m: step.astype(m.dtype) * m, momentum)
        return _rounding.cast_updates(updates, like, params, key, self.param_specs)

    def _hyperparameters(self, count: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
        temperature = jnp.asarray(self.temperature(count), dtype)
        return jnp.asarray(self.learning_rate(count), dtype), jnp.maximum(temperature, 0.0)

    def _move_alpha(
        self,
        state: CTLDState,
        energy: jax.Array,
        kinetic_energy: jax.Array,
        temperature: jax.Array,
        key: jax.Array,
        *,
        value_variance: jax.Array,
    ) -> CTLDState:
        """The alpha half of Algorithm 1, on the clock h = alpha_step_size."""
        statistics = EnergyStatistics(state.energy_mean, state.energy_var)
        statistics = update_statistics(statistics, energy, state.count - state.skipped)
        state = state._replace(kinetic_energy=kinetic_energy, energy_mean=statistics.mean, energy_var=statistics.var)
        if self.tempering is None or self.confinement is None:
            return state
        alpha, r_alpha = self.confinement.advance(state.alpha, state.r_alpha, self.alpha_step_size)
        coupled_energy = self.coupling(energy, temperature, statistics)
        force = -self.tempering.beta_gradient(alpha) * coupled_energy
        bias = state.bias
        if self.bias is not None:
            limit = self.tempering.delta_prime
            good = jnp.isfinite(energy) & jnp.isfinite(force) & jnp.isfinite(statistics.var)
            mirrored = self.confinement.mirrors_hills
            bias = self.bias.deposit(bias, alpha, limit, force=force, mirrored=mirrored, weight=good)
            force = force - self.bias.gradient(bias, alpha, limit)
        force = force + self.confinement.force(alpha)
        variance = 2.0 * (1.0 - jnp.asarray(self.alpha_momentum, alpha.dtype))
        if self.gradient_noise is not None:
            lever = self.tempering.beta_gradient(alpha) * self.coupling.sensitivity(temperature, statistics)
            variance = jnp.maximum(variance - jnp.square(self.alpha_step_size * lever) * value_variance, 0.0)
        r_alpha = self.alpha_momentum * r_alpha + self.alpha_step_size * force
        r_alpha = r_alpha + jnp.sqrt(variance) * _noise.standard_normal(key, alpha.dtype)
        return state._replace(alpha=alpha, r_alpha=r_alpha, beta=self.tempering.beta(alpha), bias=bias)


class LangevinTransformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation that also shows its parts to `phase_switch`."""

    kernel: LangevinKernel


def ctld(
    learning_rate: ScalarOrSchedule,
    temperature: ScalarOrSchedule,
    momentum: Any = 0.9,
    *,
    key: int | jax.Array,
    tempering: PolynomialTempering | None = PolynomialTempering(),
    bias: Metadynamics | AdaptiveBiasingForce | None = Metadynamics(),
    coupling: str = "standardized",
    confinement: str = "reflect",
    noise: str = "irwin_hall",
    alpha_step_size: Any = 0.02,
    alpha_momentum: Any = 0.9,
    initial_momentum: str = "zeros",
    momentum_dtype: Any = None,
    param_specs: Any = None,
    gradient_noise: Any = None,
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
               + \sqrt{2 (1-\mu_\alpha)}\, \xi_t, \qquad \beta_t = g(\alpha_t)

    with :math:`\ell` the learning rate, T the temperature, :math:`\mu` the momentum, h and :math:`\mu_\alpha` alpha's own step
    size and momentum, and E the coupled energy. In the paper's variables :math:`\eta = \sqrt{\ell T}`,
    :math:`1 - \eta\gamma = \mu`, :math:`r = -m \sqrt{\ell/T}`, :math:`U = \text{value}/T`.

    Stationary density, with `coupling="hamiltonian"` and a bias that stands still:
    :math:`\exp(-g(\alpha) (U + r \cdot r/2) - V_b(\alpha) - r_\alpha^2/2)` on :math:`|\alpha| \le \delta'`, so that the steps
    with :math:`|\alpha| \le \delta` sample :math:`\exp(-\text{value}/T)`, up to the error of the discretisation,
    which is first order in :math:`1-\mu` for the momentum and second order in :math:`\eta` for the parameters.

    Recommended for posteriors, when samples are wanted rather than an optimum:
    `coupling="hamiltonian", bias=AdaptiveBiasingForce(), alpha_step_size=0.05`, with a learning rate l small enough that
    l U''/(2 (1+mu)), the relative error of the variances with U'' the largest curvature of `value`, is small, and
    `tempering`'s strength such that at the hottest, T/(1 - strength), the barriers are one or two temperatures high. A larger
    alpha_step_size makes more round trips, up to 0.1 in a few dimensions; it must fall with their number, as 0.2/sqrt(d).
    :mod:`ctld_optax.posterior` picks, weights and stores the samples.

    Where it departs from the paper: alpha has a clock of its own (each half of the dynamics leaves the joint density
    invariant by itself, so its step size is free); its energy is standardized by default (the paper's H throws alpha
    out of its window from some thousands of parameters on); the walls reflect; the hills are well-tempered; the noise has
    a Gaussian's first seven moments instead of all.
    `algorithm1` is the paper to the letter.

    Args:
      learning_rate: > 0, or a schedule of the step count, as in `optax.sgd`.
      temperature: k_B T_c >= 0 in units of `value`, or a schedule. The posterior of N independent examples from a
        *mean* loss has 1/N; networks with far more parameters than examples need it colder, because the noise adds
        about (number of parameters) * temperature / 2 to the loss. At 0 this is `optax.sgd`, bit for bit; the
        hamiltonian coupling has no meaning there, so alpha stands still.
      momentum: mu in [0, 1), the paper's 1 - eta gamma.
      key: an int or one key (`jax.random.key`, or a legacy one). Copied: the caller may use it again. To run replicas, `vmap`
        `init` over keys; a transformation built twice from one key draws the same noise twice.
      tempering: g(alpha). None keeps the temperature constant, which makes this SGHMC; `value` is then not needed.
      bias: what makes alpha's distribution flat. :class:`~ctld_optax.Metadynamics` (default) or, for posteriors,
        :class:`~ctld_optax.AdaptiveBiasingForce`. None leaves alpha unbiased.
      coupling: "standardized" (default; see :class:`~ctld_optax._coupling.Standardized`) for exploring large networks,
        "hamiltonian" (the paper's H) for exact sampling in up to some hundreds of dimensions.
      confinement: "reflect" (walls at +-delta_prime) or "force" (Eq. 11, with the force
        C = delta_prime (1 - alpha_momentum) / alpha_step_size^2, which carries alpha back by delta_prime).
      noise: "irwin_hall" (default: moments Gaussian up to the seventh), "gaussian" (inversion, half as much again a step),
        "three_point" (up to the fifth) or "rademacher" (up to the third: cheap, and biased); costs and biases are in
        :mod:`ctld_optax._noise`.
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

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`CTLDState`. `update(grads, state, params, value=loss)` needs
      the loss whose gradient is passed, a scalar (a minibatch mean will do). A step in which `value` or a gradient entry is
      not finite leaves alpha, r_alpha, the bias and the energy statistics as they were and is counted in `skipped`;
      momentum entries that are not finite are set to zero. Updates have the dtype of the gradients. For parameters narrower
      than float32 they are rounded at random such that params + update is right on average, if `params` are passed and
      nothing after this changes the update.

    Raises:
      TypeError: if `value` is missing or not real, or a parameter is not of a real floating-point dtype.
      ValueError: for a number out of range (Python numbers only; traced hyperparameters are not checked), an unknown
        option, or a `value` that is not a scalar.

    Source: Ye, Zhu and Mantiuk, NIPS 2017, Eq. 4-14 and Algorithm 1.
    """
    check_range("learning_rate", learning_rate, minimum=0.0, minimum_open=True)
    check_range("temperature", temperature, minimum=0.0)
    check_range("momentum", momentum, minimum=0.0, maximum=1.0, maximum_open=True)
    check_range("alpha_step_size", alpha_step_size, minimum=0.0, minimum_open=True)
    check_range("alpha_momentum", alpha_momentum, minimum=0.0, maximum=1.0, maximum_open=True)
    check_choice("coupling", coupling, COUPLINGS)
    check_choice("confinement", confinement, ("reflect", "force"))
    check_choice("initial_momentum", initial_momentum, ("zeros", "stationary"))
    check_dtype("momentum_dtype", momentum_dtype)

    walls: Confinement | None = None
    if tempering is not None:
        limit = tempering.delta_prime
        force = limit * (1.0 - alpha_momentum) / alpha_step_size**2
        walls = ReflectingWall(limit) if confinement == "reflect" else ForceWall(limit, force)
    kernel = LangevinKernel(
        learning_rate=as_schedule(learning_rate),
        temperature=as_schedule(temperature),
        momentum=momentum,
        source=_noise.check_source(noise),
        tempering=tempering,
        bias=bias if tempering is not None else None,
        coupling=COUPLINGS[coupling],
        confinement=walls,
        alpha_step_size=alpha_step_size,
        alpha_momentum=alpha_momentum,
        stationary_start=initial_momentum == "stationary",
        momentum_dtype=momentum_dtype,
        param_specs=param_specs,
        key=as_key(key),
        gradient_noise=as_gradient_noise(gradient_noise),
    )

    def update(
        updates: optax.Updates, state: CTLDState, params: optax.Params | None = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, CTLDState]:
        del extra_args
        if value is None and kernel.needs_value:
            raise TypeError(MISSING_VALUE)
        accelerated = kernel.accelerate(updates, state.momentum, kernel.momentum)
        new_state = kernel.thermalize(state._replace(momentum=accelerated), value, updates)
        return kernel.displacement(state.count, new_state.momentum, updates, params, state.key), new_state

    transformation = LangevinTransformation(kernel.init, cast("Any", update))
    transformation.kernel = kernel
    return transformation


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
    noise: str = "gaussian",
    momentum_dtype: Any = None,
) -> LangevinTransformation:
    r"""Algorithm 1 of the paper to the letter: :func:`ctld` with every choice as printed.

    The energy on alpha is H = U + r.r/2 (Eq. 6), a force wall confines alpha (Eq. 11), alpha moves on the clock
    :math:`\eta = \sqrt{\text{learning\_rate} \cdot \text{temperature}}`, hills have the constant height w (Eq. 13), the bias
    force is the difference of adjacent bins (Eq. 14), and r ~ N(0, I).

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
    """
    for name, number in (("learning_rate", learning_rate), ("temperature", temperature)):
        if callable(number):
            raise TypeError(f"algorithm1 needs {name} as a number, got a schedule: it sets alpha's clock. Use ctld.")
        check_range(name, number, minimum=0.0, minimum_open=True)
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
        alpha_step_size=(learning_rate * temperature) ** 0.5,
        alpha_momentum=0.0,
        initial_momentum="stationary",
        momentum_dtype=momentum_dtype,
    )


def _mend(carry: tuple[jax.Array, optax.Updates]) -> tuple[jax.Array, optax.Updates]:
    """Zeros in the place of entries that are not finite; their sum of squares counts as infinite."""
    squares, momentum = carry
    momentum = jax.tree.map(lambda m: jnp.where(jnp.isfinite(m), m, jnp.zeros_like(m)), momentum)
    return jnp.full_like(squares, jnp.inf), momentum


def momentum_dtype_of(param: Any, momentum_dtype: Any) -> Any:
    # Canonical: a NumPy float64 array counts as float32 unless x64 is enabled.
    dtype = jax.dtypes.canonicalize_dtype(param.dtype)
    return _rounding.at_least_float32(dtype) if momentum_dtype is None else jnp.dtype(momentum_dtype)


def scalar_dtype_of(params: optax.Params) -> Any:
    """float32, or float64 if any parameter is."""
    wide = any(jax.dtypes.canonicalize_dtype(leaf.dtype) == jnp.float64 for leaf in jax.tree.leaves(params))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)
