"""The step, beside Algorithm 1 of the paper: the only room that sees trees and scalars together.

The walk from `grads` to `state` is `Langevin.update`, and through it each room once: `integrators` for the momentum,
`minibatch` for how much noise is due, `noise` for the variates, `alpha` for the temperature, `rounding` for the update. At its
two ends stands `preconditioner`, whose coordinates are those of the momentum.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ctld_optax._arrays import noise as sources
from ctld_optax._arrays import rounding, shards
from ctld_optax._arrays.dtypes import momentum_dtype_of, scalar_dtype_of
from ctld_optax._arrays.inplace import change_if
from ctld_optax._checked import checked
from ctld_optax._dynamics import integrators, layers
from ctld_optax._dynamics.alpha import AlphaHalf, AlphaState
from ctld_optax._dynamics.coupling import EnergyStatistics
from ctld_optax._dynamics.integrators import Integrator
from ctld_optax._dynamics.layers import Knob, each
from ctld_optax._dynamics.minibatch import GradientNoise, remaining
from ctld_optax._dynamics.preconditioner import Observed, Preconditioner
from ctld_optax._dynamics.prior import NO_PARAMS, Prior
from ctld_optax._validate import check_params, check_scalar_value, check_update

MISSING_VALUE = """ctld needs the loss at every step: the energy drives the temperature. Pass it as `value`:

    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params, value=loss)

With flax.nnx: `optimizer.update(model, grads, value=loss)`. Where the loss cannot be handed on, as with `apply_gradients` of
flax.training.train_state.TrainState, let the kinetic energy drive the temperature, which needs no value:

    ctld_optax.ctld(learning_rate, temperature, key=0, coupling="kinetic")"""


class CTLDState(NamedTuple):
    """State of :func:`ctld_optax.ctld`. Same structure, shapes and dtypes from `init` to every `update`.

    Scalars and the bias are float32 whatever the parameters' dtype, or float64 if a parameter is.

    Attributes:
      count: shape (), int32: number of updates made.
      momentum: like params: the trace of optax.sgd, m = -r sqrt(temperature / learning_rate); with a preconditioner in its
        coordinates.
      alpha: shape (): tempering variable.
      r_alpha: shape (): its momentum, N(0, 1) in equilibrium.
      beta: shape (): g(alpha), the inverse temperature scale of the next step's noise.
      key: shape (), typed PRNG key.
      bias: shape (2, num_bins + 1): of Metadynamics, V_b in units of k_B T_c as an unevaluated sum of two floats a node; of
        AdaptiveBiasingForce, visits and mean force.
      kinetic_energy: shape (): learning_rate |m|^2 / 2 of the last step, in units of value, the sum over all layers.
      energy_mean: shape (): running mean of the energy that is coupled to alpha, in units of value: value + kinetic energy, in
        the kinetic coupling the one and in that of the potential the other alone.
      energy_var: shape (): its running variance.
      skipped: shape (), int32: steps whose value or gradient was not finite.
      gradient_noise: what an estimator of the minibatch noise remembers; empty without one.
      learning_rate: shape (): at which the momentum is thermal, the last one that was not 0; of a `PerLayer` shape (leaves,).
      noise_variance: shape (), or (leaves,): of one variate of the last step, in units of the momentum squared.
      noise_words: shape (2,), uint32: the bits of which that noise is made, to make it again.
      alpha_rest: shape (): the share of the last step's noise that r_alpha has not taken in yet.
      coordinates: what the preconditioner remembers; empty without one.

    Example:
      >>> state = ctld_optax.ctld(0.01, 1e-3, key=0).init({"w": jnp.ones(3)})
      >>> float(state.alpha), float(state.beta)  # in the window, at the base temperature
      (0.0, 1.0)
    """

    count: Any
    momentum: optax.Updates
    alpha: jax.Array
    r_alpha: jax.Array
    beta: jax.Array
    key: jax.Array
    bias: jax.Array
    kinetic_energy: jax.Array
    energy_mean: jax.Array
    energy_var: jax.Array
    skipped: jax.Array
    gradient_noise: Any
    learning_rate: jax.Array
    noise_variance: jax.Array
    noise_words: jax.Array
    alpha_rest: jax.Array
    coordinates: Any


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: a key has no hash, and Equinox asks for one
class Langevin:
    """The settings of a sampler, and its step in three parts, which `phase_switch` shares.

    Attributes:
      learning_rate: schedule of l, or one a layer.
      temperature: schedule of T, or one a layer.
      decay: mu, the momentum.
      integrator: the order.
      source: of the noise.
      alpha: the alpha half.
      gradient_noise: what minibatches bring in noise, or None.
      preconditioner: in which coordinates.
      prior: what is added to value and gradient, or None.
      stationary_start: whether `init` draws the momentum.
      momentum_dtype: of the momentum, or None.
      param_specs: how the parameters are cut inside `jax.shard_map`, or None.
      key: of the first step.
    """

    learning_rate: Knob
    temperature: Knob
    decay: Any
    integrator: Integrator
    source: sources.Source
    alpha: AlphaHalf
    gradient_noise: GradientNoise | None
    preconditioner: Preconditioner
    prior: Prior | None
    stationary_start: bool
    momentum_dtype: Any
    param_specs: Any
    key: jax.Array

    @property
    def needs_value(self) -> bool:
        return self.alpha.tempering is not None and self.alpha.coupling.needs_value

    def init(self, params: optax.Params) -> CTLDState:
        check_params(params)
        if self.prior is not None:
            self.prior.check(params)
        dtype = scalar_dtype_of(params)
        # Split from a clone: the state never holds the caller's own key, which a donation would delete.
        key, theta_key, alpha_key = jax.random.split(jax.random.clone(self.key), 3)
        count = jnp.zeros((), jnp.int32)
        learning_rate, temperature = self._hyperparameters(count, params, dtype)
        momentum = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=momentum_dtype_of(p, self.momentum_dtype)), params)
        if self.stationary_start:
            scale = integrators.stationary_scale(learning_rate, temperature)
            noise = sources.draw(theta_key, momentum, sources.gaussian, shards.specs_in_scope(self.param_specs))
            kick = lambda m, e, s: m - s.astype(m.dtype) * e.astype(m.dtype)
            momentum = jax.tree.map(kick, momentum, noise, each(scale, momentum))
        alpha, coordinates = self.alpha.init(alpha_key, dtype), self.preconditioner.init(params, self.param_specs)
        # Every scalar is a buffer of its own: one buffer in two fields could not be donated.
        return CTLDState(
            count=count,
            momentum=momentum,
            alpha=alpha.alpha,
            r_alpha=alpha.r_alpha,
            beta=alpha.beta,
            key=key,
            bias=alpha.bias,
            kinetic_energy=jnp.zeros((), dtype),
            energy_mean=alpha.statistics.mean,
            energy_var=alpha.statistics.var,
            skipped=jnp.zeros((), jnp.int32),
            gradient_noise=() if self.gradient_noise is None else self.gradient_noise.init(params, dtype, coordinates),
            learning_rate=jnp.copy(learning_rate),  # under `inject_hyperparams` it may be an array of the caller's
            noise_variance=jnp.zeros(jnp.broadcast_shapes(learning_rate.shape, temperature.shape), dtype),
            noise_words=jnp.zeros((2,), jnp.uint32),
            alpha_rest=alpha.rest,
            coordinates=coordinates,
        )

    def update(
        self, grads: optax.Updates, state: CTLDState, params: optax.Params | None = None, *, value: Any = None
    ) -> tuple[optax.Updates, CTLDState]:
        """One step of Algorithm 1: the momentum, alpha, and what the parameters move by."""
        memory, coordinates, momentum = self._observed(state, grads)
        force, value = self._with_prior(grads, value, state, params)
        inward = coordinates.inward(force)
        momentum = self.accelerate(inward, momentum, self.kept(state))
        new_state = self.thermalize(state._replace(momentum=momentum, coordinates=memory), value, inward)
        velocity = coordinates.outward(new_state.momentum)
        drift = self.drift(state.beta, new_state.beta)
        return self.displacement(state.count, velocity, grads, params, state.key, drift), new_state

    def kept(self, state: CTLDState) -> jax.Array:
        """The share of the last momentum that a step keeps: mu, times what a change of the learning rate asks for."""
        return self.decay * self.thermal_factor(state)

    def thermal_factor(self, state: CTLDState) -> jax.Array:
        """What keeps the last momentum thermal at this step's learning rate and, if need be, at alpha's temperature."""
        learning_rate, temperature = self.hyperparameters(state)
        factor = integrators.thermal_factor(state.learning_rate, learning_rate, temperature)
        if self.alpha.coupling.heats_momenta:
            return factor
        variance = integrators.noise_variance(learning_rate, temperature, state.beta, self.decay)
        return integrators.ratio_of_noise(state.noise_variance, variance, otherwise=factor)

    def drift(self, beta: jax.Array, next_beta: jax.Array) -> Any:
        """By how much a step is longer than learning_rate * m, since alpha moves in the middle of it."""
        return 1.0 if self.alpha.coupling.heats_momenta else self.integrator.drift(beta, next_beta, self.decay)

    def accelerate(self, grads: optax.Updates, momentum: optax.Updates, kept: Any) -> optax.Updates:
        """The gradient's kick."""
        return jax.tree.map(integrators.kick, grads, momentum, each(kept, momentum))

    def thermalize(self, state: CTLDState, value: Any, grads: optax.Updates) -> CTLDState:
        """Adds the noise to `state.momentum`, which has taken in `grads`, in its coordinates; then the energy moves alpha."""
        learning_rate, temperature = self.hyperparameters(state)
        value = _scalar(value if self.alpha.coupling.needs_value else None, state.alpha.dtype)
        key, theta_key, alpha_key = jax.random.split(state.key, 3)

        words = sources.words_of(theta_key)
        due = self._noise_due(state, value, grads)
        momentum = self._refresh(state, due, words)
        squares, momentum = self._mended(momentum, learning_rate)
        kinetic_energy = integrators.kinetic_energy(learning_rate, squares)
        alpha = self.alpha.step(
            _alpha_of(state),
            self.alpha.coupling.energy(value, kinetic_energy),
            temperature,
            alpha_key,
            num_seen=state.count - state.skipped,
            value_variance=due.of_value,
        )

        good = jnp.isfinite(value) & jnp.all(jnp.isfinite(squares)) & alpha.is_finite
        return _with_alpha(state, alpha, good)._replace(
            count=optax.safe_increment(state.count),
            momentum=momentum,
            key=key,
            kinetic_energy=jnp.where(good, kinetic_energy, state.kinetic_energy),
            skipped=jnp.where(good, state.skipped, optax.safe_increment(state.skipped)),
            gradient_noise=due.estimate,
            learning_rate=jnp.where(learning_rate > 0.0, learning_rate, state.learning_rate),
            # A temperature that is not a number makes no noise, and leaves none for the next step to take in.
            noise_variance=jnp.where(jnp.isfinite(due.variance), due.variance, 0.0),
            noise_words=words,
        )

    def displacement(
        self,
        count: jax.Array,
        momentum: optax.Updates,
        like: optax.Updates,
        params: optax.Params | None = None,
        key: jax.Array | None = None,
        drift: Any = 1.0,
    ) -> optax.Updates:
        """The update -learning_rate * m * drift, in the dtype of the gradients.

        Its rounding to narrow `params`, if given, is unbiased. `key`, needed then, is only read, and may be one that a state
        holds.
        """
        step = -1 * layers.at(self.learning_rate, count, momentum) * drift
        updates = jax.tree.map(lambda m, s: s.astype(m.dtype) * m, momentum, each(step, momentum))
        return rounding.cast_updates(updates, like, params, key, self.param_specs)

    def hyperparameters(self, state: CTLDState) -> tuple[jax.Array, jax.Array]:
        """Learning rate and temperature of a step, the latter not below 0: of shape (), or a number for each leaf."""
        return self._hyperparameters(state.count, state.momentum, state.alpha.dtype)

    def _hyperparameters(self, count: jax.Array, like: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
        temperature = layers.at(self.temperature, count, like, dtype)
        return layers.at(self.learning_rate, count, like, dtype), jnp.maximum(temperature, 0.0)

    def _with_prior(self, grads: optax.Updates, value: Any, state: CTLDState, params: Any) -> tuple[optax.Updates, Any]:
        """Gradient and value of what is sampled; the value without a prior that tempering leaves alone."""
        if self.prior is None:
            return grads, value
        if params is None:
            raise ValueError(NO_PARAMS)
        energy, gradient = self.prior.energy_and_gradient(params, state.alpha.dtype, self.param_specs)
        if value is not None and not self.prior.cold:
            value = check_scalar_value(value, where="ctld").astype(energy.dtype) + energy
        return self.prior.added(grads, gradient, state.beta), value

    def _observed(self, state: CTLDState, grads: optax.Updates) -> Observed:
        """What the preconditioner makes of the gradient: the coordinates of this step, and the last momentum in them."""
        _, temperature = self.hyperparameters(state)
        hottest = jnp.max(temperature)
        return self.preconditioner.observe(state.coordinates, state.momentum, grads, hottest, self.param_specs)

    def _noise_due(self, state: CTLDState, value: jax.Array, grads: optax.Updates) -> "_Due":
        """What this step injects of a fresh variate and of the last one, beside what the minibatches have brought."""
        learning_rate, temperature = self.hyperparameters(state)
        variance = integrators.noise_variance(learning_rate, temperature, state.beta, self.decay)
        estimate, last, now, of_value = state.gradient_noise, 0.0, 0.0, None
        if self.gradient_noise is not None:
            last = self.gradient_noise.variances(estimate, state.coordinates).gradient
            estimate = self.gradient_noise.observe(estimate, grads, value, self.param_specs)
            now, of_value = self.gradient_noise.variances(estimate, state.coordinates)
            of_value = jnp.asarray(of_value, value.dtype)
        scales = [remaining(variance, now, state.momentum, self.integrator.now)]
        if self.integrator.later:
            # The rest belongs to the last momentum, and is scaled with it.
            share = self.integrator.later * self.thermal_factor(state)
            scales = [remaining(state.noise_variance, last, state.momentum, share), *scales]
        return _Due(variance, scales, estimate, of_value)

    def _refresh(self, state: CTLDState, due: "_Due", words: jax.Array) -> optax.Updates:
        """The noise: the rest of the last variate, which its bits make again, and a share of a fresh one."""
        drawn = jnp.stack([state.noise_words, words][-len(due.scales) :])
        noise = sources.draw(drawn, state.momentum, self.source, self.param_specs)

        def refresh(momentum: jax.Array, variates: jax.Array, *scales: jax.Array) -> jax.Array:
            for variate, scale in zip(variates, scales, strict=True):
                momentum = integrators.refresh(momentum, variate, scale)
            return momentum

        return jax.tree.map(refresh, state.momentum, noise, *due.scales)

    def _mended(self, momentum: optax.Updates, learning_rate: jax.Array) -> tuple[jax.Array, optax.Updates]:
        """|m|^2, and the momentum with zeros in the place of entries that are not finite; |m|^2 is then infinite.

        |m|^2 is of all leaves, or where each has a learning rate of its own, of each.
        """
        dtype, spec_of = learning_rate.dtype, shards.spec_leaves(self.param_specs, momentum)
        sums = [jnp.sum(jnp.square(m.astype(dtype))) for m in jax.tree.leaves(momentum)]
        if learning_rate.ndim:
            squares = jnp.asarray(shards.leaf_sums_over_shards(sums, spec_of), dtype)
        else:
            squares = shards.sum_over_shards(sums, spec_of, dtype)
        # The sum tells whether an entry is bad without another pass over memory. It goes through the change too, or XLA would
        # repeat the additions of all leaves in each of the scalar kernels that use it.
        return change_if(~jnp.all(jnp.isfinite(squares)), _mend, (squares, momentum))


class LangevinTransformation(optax.GradientTransformationExtraArgs):
    """What :func:`ctld_optax.ctld` returns: an Optax transformation that also shows its settings and its step.

    Example:
      >>> sampler = ctld_optax.ctld(0.01, 1e-3, key=0)
      >>> isinstance(sampler, ctld_optax.LangevinTransformation)
      True
      >>> optax.chain(optax.clip_by_global_norm(1.0), sampler)  # doctest: +ELLIPSIS
      GradientTransformationExtraArgs(...)
    """

    kernel: Langevin


def transformation(kernel: Langevin) -> LangevinTransformation:
    """The Optax transformation of a kernel."""

    @checked(state="Write state = tx.init(params); the order is tx.update(grads, state, params, value=loss).")
    def update(
        updates: Any, state: CTLDState, params: Any = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, CTLDState]:
        del extra_args
        if value is None and kernel.needs_value:
            raise TypeError(MISSING_VALUE)
        check_update(updates, params, state.momentum)
        check_state(kernel, state)
        return kernel.update(updates, state, params, value=value)

    made = LangevinTransformation(kernel.init, cast("Any", update))
    made.kernel = kernel
    return made


def check_state(kernel: Langevin, state: CTLDState) -> None:
    """Raises if a state is another sampler's. JAX would say so in other words, or make nonsense of it."""
    for name, ours, given in zip(CTLDState._fields, jax.eval_shape(kernel.init, state.momentum), state, strict=True):
        shapes, expected = jax.tree.map(jnp.shape, given), jax.tree.map(jnp.shape, ours)
        if name != "key" and shapes != expected:
            raise ValueError(
                f"state must be one of this sampler: its {name} has {shapes}, and that of this sampler {expected}. Build the "
                "sampler as it was, with the same bias, gradient_noise and preconditioner, or begin with tx.init(params)."
            )


class _Due(NamedTuple):
    """The noise of one step.

    Attributes:
      variance: of one variate.
      scales: trees like the momentum, of the last variate, if a step takes any of it in, and of the fresh one.
      estimate: what the estimator of the minibatch noise remembers now.
      of_value: what it says of the variance of `value`, or None.
    """

    variance: jax.Array
    scales: list[Any]
    estimate: Any
    of_value: jax.Array | None


def _scalar(value: Any, dtype: Any) -> jax.Array:
    """The value as a real scalar; 0 where none is needed."""
    return jnp.zeros((), dtype) if value is None else check_scalar_value(value, where="ctld").astype(dtype)


def _alpha_of(state: CTLDState) -> AlphaState:
    statistics = EnergyStatistics(state.energy_mean, state.energy_var)
    return AlphaState(state.alpha, state.r_alpha, state.beta, state.bias, statistics, state.alpha_rest)


def _with_alpha(state: CTLDState, new: AlphaState, good: jax.Array) -> CTLDState:
    """The state with alpha's half moved, if the step was good."""
    old = _alpha_of(state)
    # The bias has left out the hill of a bad step already, and must take in those of the other walkers.
    kept = jax.tree.map(lambda n, o: jnp.where(good, n, o), new._replace(bias=()), old._replace(bias=()))
    return state._replace(
        alpha=kept.alpha,
        r_alpha=kept.r_alpha,
        beta=kept.beta,
        bias=new.bias,
        energy_mean=kept.statistics.mean,
        energy_var=kept.statistics.var,
        alpha_rest=kept.rest,
    )


def _mend(carry: tuple[jax.Array, optax.Updates]) -> tuple[jax.Array, optax.Updates]:
    """Zeros in the place of entries that are not finite; their sum of squares counts as infinite."""
    squares, momentum = carry
    momentum = jax.tree.map(lambda m: jnp.where(jnp.isfinite(m), m, jnp.zeros_like(m)), momentum)
    return jnp.full_like(squares, jnp.inf), momentum
