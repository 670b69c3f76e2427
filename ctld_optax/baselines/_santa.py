"""Santa: an annealed thermostat with a preconditioner, then its limit at zero temperature."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from ctld_optax._arrays import noise as sources
from ctld_optax._arrays import rounding, shards
from ctld_optax._arrays.dtypes import momentum_dtype_of, scalar_dtype_of
from ctld_optax._checked import checked
from ctld_optax._validate import (
    as_key,
    as_schedule,
    check_count,
    check_dtype,
    check_params,
    check_range,
    check_specs,
    check_update,
)


class SantaState(NamedTuple):
    """State of :func:`santa`. Same structure, shapes and dtypes from `init` to every `update`.

    Attributes:
      count: shape (), int32: number of updates made.
      velocity: like params: u; the parameters move by g u.
      second_moment: like params: v, in units of the gradient squared.
      friction: like params: the thermostat; a step of refinement keeps exp(-friction) of the velocity.
      key: shape (), typed PRNG key.

    Example:
      >>> tx = ctld_optax.baselines.santa(1e-4, temperature=1e-3, exploration_steps=1_000, key=0)
      >>> int(tx.init(jnp.ones(3)).count)
      0
    """

    count: Any
    velocity: optax.Updates
    second_moment: optax.Updates
    friction: optax.Updates
    key: jax.Array


@checked()
def santa(
    learning_rate: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    momentum: ArrayLike = 0.9,
    *,
    key: int | jax.Array,
    exploration_steps: int,
    annealing: ArrayLike = 0.5,
    decay: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    noise: sources.SourceName = "irwin_hall",
    momentum_dtype: DTypeLike | None = None,
    param_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Santa, stochastic annealing thermostats with adaptive momentum: Algorithm 2 of the source (symmetric splitting).

    All operations are elementwise. With :math:`f = \nabla_\theta \text{value}(\theta_{t-1})`, T the temperature,
    :math:`\ell` the learning rate, :math:`\eta = \ell T` and :math:`\beta_t = t^\gamma`, t = 1 at the first update,

    .. math::
        v_t &= \sigma v_{t-1} + (1 - \sigma) f^2, \qquad g_t = (\lambda + \sqrt{v_t})^{-1/2} \\
        \text{exploration:}\quad
        a &= \alpha_{t-1} + (u_{t-1}^2 - \eta/\beta_t)/2 \\
        u_t &= e^{-a/2} \left[ e^{-a/2} u_{t-1} - \ell g_t f
               + \sqrt{2 \eta^{3/2} g_{t-1} / \beta_t}\; \zeta_t \right] \\
        \alpha_t &= a + (u_t^2 - \eta/\beta_t)/2 \\
        \text{refinement:}\quad
        u_t &= e^{-\alpha/2} \left[ e^{-\alpha/2} u_{t-1} - \ell g_t f \right] \\
        \text{both:}\quad
        \theta_t &= \theta_{t-1} + g_t (u_{t-1} + u_t)/2

    with :math:`\zeta_t` standard noise, u the `velocity`, v the `second_moment`, :math:`\alpha` the `friction` of the state,
    :math:`\sigma` the `decay`, :math:`\lambda` the `eps`, :math:`\gamma` the `annealing`. It starts from
    :math:`v_0 = 0`, :math:`u_0 \sim N(0, \eta)` and :math:`\alpha_0 = -\ln \mu`. A step of plain descent moves the parameters
    by :math:`\ell f / (\lambda + \sqrt{v})`, so the learning rate means what it means in `optax.rmsprop`.

    Stationary density, for :math:`\gamma = 0`, constant learning rate and temperature, and a preconditioner that stands
    still: :math:`\exp(-\text{value}/T - |u|^2/(2\eta) - |\alpha - \sqrt\eta g|^2/(2\eta))`, so that the parameters
    sample :math:`\exp(-\text{value}/T)`, up to an error of the discretisation that is first order in :math:`\sqrt\eta`. The
    thermostat holds u at its temperature whatever the friction; the noise of minibatches is taken up too. The velocity has to
    meet its friction many times over for this: about :math:`1/\sqrt\eta` steps. Santa's own purpose is
    :math:`\beta_t \to \infty`.

    In the variables of the source: its potential is the sum over N = 1/T examples, so that its gradient is f/T, its
    :math:`\eta` is :math:`\ell T`, and its C is :math:`-\ln(\mu)/\sqrt\eta`. Where this departs from it:

    - The term :math:`(\eta/\beta_t)(1 - g_{t-1}/g_t)/u_{t-1}` in :math:`u_t`, a difference in time for the divergence of the
      preconditioner, is left out, as in the authors' own code (MATLAB, Theano, and Caffe by default): at a velocity near
      zero it is unbounded, and in a minibatch it is noise.
    - The noise has the variance :math:`2 \eta^{3/2} g_{t-1}/\beta_t` of the stochastic differential equation that the
      source discretises with the step :math:`\sqrt\eta`, and of the authors' code; the algorithm as first printed (v1) has
      :math:`2 \eta g_{t-1}/\beta_t`. The stationary density is the same, the friction there :math:`\sqrt\eta` times as large.
    - The source gives a schedule :math:`\beta_t = A t^\gamma`; here A = 1, and :math:`\gamma` has been 0.5 to 2 in the authors'
      code. For any other annealing pass a `temperature` schedule; it scales :math:`\eta` too.
    - The first noise needs g_0, which has no gradient yet; it is taken as g_1.
    - Exploration lasts `exploration_steps`; in the source it is t < burnin, one step less than burnin.
    - An entry that has seen no gradient but 0 has no scale of its own yet: while :math:`v_t = 0`, its g is at most 1, with
      which it moves as without a preconditioner. :math:`\lambda^{-1/2}`, 10^4 by default, would throw it by
      :math:`10^4 \sqrt\eta` in the first step: rows of an embedding that a batch leaves out, weights of a pixel that is always
      black, a start at a saddle.
    - An entry whose gradient or new state is not finite does not move in that step: its velocity becomes 0,
      its second moment and friction stay.

    Args:
      learning_rate: > 0, or a schedule of the step count.
      temperature: T >= 0 in units of `value`, or a schedule, at :math:`\beta = 1`; 1/N in the source.
      momentum: mu in (0, 1], the share of the velocity that a step keeps at first.
      key: an int or one key, as in :func:`ctld_optax.ctld`.
      exploration_steps: >= 0, a Python integer; refinement follows.
      annealing: gamma >= 0. 0: constant temperature.
      decay: sigma in [0, 1]. 1: v stays 0, the preconditioner is 1/sqrt(eps) throughout.
      eps: lambda > 0, in units of the gradient (not of its square). The noise moves an entry whose gradients are of size f by
        about sqrt(eta / (lambda + f)) a step, however small f is: where gradients start tiny but not at 0, as near a
        saddle, make lambda as large as the gradients that matter. The authors' code explores with 1e-4 (MATLAB).
      noise: as in :func:`ctld_optax.ctld`.
      momentum_dtype: of velocity, second moment and friction. None: that of each parameter, but at least float32.
      param_specs: as in :func:`ctld_optax.ctld`, for `jax.shard_map`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`SantaState`. Extra arguments are not needed. Updates have
      the dtype of the gradients; to narrow parameters they are rounded without bias, as those of :func:`ctld_optax.ctld`.

    Raises:
      TypeError, ValueError: for an argument of the wrong kind or out of range (Python numbers only), or parameters that are
        not real.

    Source: Chen, Carlson, Gan, Li and Carin, "Bridging the Gap between Stochastic Gradient MCMC and Stochastic Optimization",
    AISTATS 2016; the authors' code, github.com/cchangyou/Santa.

    Example:
      >>> tx = ctld_optax.baselines.santa(1e-4, temperature=1e-3, exploration_steps=1_000, key=0)
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    check_range("momentum", momentum, minimum=0.0, maximum=1.0, minimum_open=True)
    check_count("exploration_steps", exploration_steps, 0)
    check_range("annealing", annealing, minimum=0.0)
    check_range("decay", decay, minimum=0.0, maximum=1.0)
    check_range("eps", eps, minimum=0.0, minimum_open=True)
    check_dtype("momentum_dtype", momentum_dtype)
    check_specs("param_specs", param_specs)
    source = sources.SOURCES[noise]
    rate_at = as_schedule("learning_rate", learning_rate, minimum_open=True)
    temperature_at = as_schedule("temperature", temperature)
    initial_key = as_key(key)

    def hyperparameters(count: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """The learning rate, and eta."""
        rate = jnp.asarray(rate_at(count), dtype)
        return rate, rate * jnp.maximum(jnp.asarray(temperature_at(count), dtype), 0.0)

    def init(params: optax.Params) -> SantaState:
        check_params(params)
        # Split from a clone: the state never holds the caller's own key, which a donation would delete.
        state_key, velocity_key = jax.random.split(jax.random.clone(initial_key))
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=momentum_dtype_of(p, momentum_dtype)), params)
        _, eta = hyperparameters(jnp.zeros((), jnp.int32), scalar_dtype_of(params))
        velocity = sources.draw(velocity_key, zeros, sources.gaussian, shards.specs_in_scope(param_specs))
        friction = -jnp.log(jnp.asarray(momentum, scalar_dtype_of(params)))
        return SantaState(
            count=jnp.zeros((), jnp.int32),
            velocity=jax.tree.map(lambda z, e: jnp.sqrt(eta).astype(z.dtype) * e.astype(z.dtype), zeros, velocity),
            second_moment=zeros,
            friction=jax.tree.map(lambda z: z + friction.astype(z.dtype), zeros),
            key=state_key,
        )

    @checked(state="Write state = tx.init(params); the order is tx.update(grads, state, params).")
    def update(updates: Any, state: SantaState, params: Any = None, **extra_args: Any) -> tuple[optax.Updates, SantaState]:
        del extra_args
        check_update(updates, params, state.velocity)
        rate, eta = hyperparameters(state.count, scalar_dtype_of(state.velocity))
        step = (state.count + 1).astype(eta.dtype)
        target = eta * step ** -jnp.asarray(annealing, eta.dtype)  # of u^2
        new_key, noise_key = jax.random.split(state.key)

        def preconditioner(v: jax.Array) -> jax.Array:
            g = jax.lax.rsqrt(jnp.asarray(eps, v.dtype) + jnp.sqrt(v))
            # With decay = 1 v is 0 for good, and lambda alone is meant to set the scale.
            unseen = (v == 0.0) & (jnp.asarray(decay, v.dtype) < 1.0)
            return jnp.where(unseen, jnp.minimum(g, jnp.ones_like(g)), g)

        def move(f: jax.Array, u: jax.Array, v: jax.Array, a: jax.Array, zeta: jax.Array | None) -> tuple[Any, ...]:
            """One leaf: (update, u, v, alpha). Exploration if there is noise."""
            dtype = u.dtype
            f, (ell, heat), root = f.astype(dtype), (rate.astype(dtype), target.astype(dtype)), jnp.sqrt(eta).astype(dtype)
            new_v = jnp.asarray(decay, dtype) * v + (1.0 - jnp.asarray(decay, dtype)) * f * f
            g = preconditioner(new_v)
            new_a, kick = a, -ell * g * f
            if zeta is not None:
                new_a = a + 0.5 * (u * u - heat)
                old_g = preconditioner(jnp.where(state.count > 0, v, new_v))
                kick = kick + jnp.sqrt(2.0 * root * heat * old_g) * zeta.astype(dtype)
            damping = jnp.exp(-0.5 * new_a)
            new_u = damping * (damping * u + kick)
            if zeta is not None:
                new_a = new_a + 0.5 * (new_u * new_u - heat)
            good = jnp.isfinite(new_u) & jnp.isfinite(new_v) & jnp.isfinite(new_a)
            zero = jnp.zeros_like(u)
            move_by = jnp.where(good, 0.5 * g * (u + new_u), zero)
            return move_by, jnp.where(good, new_u, zero), jnp.where(good, new_v, v), jnp.where(good, new_a, a)

        def explore(u: Any, v: Any, a: Any) -> Any:
            zeta = sources.draw(noise_key, u, source, param_specs)
            return jax.tree.map(move, updates, u, v, a, zeta)

        def refine(u: Any, v: Any, a: Any) -> Any:
            return jax.tree.map(lambda f, u, v, a: move(f, u, v, a, None), updates, u, v, a)

        # In branches, so that refinement does not pay for the noise.
        moved = jax.lax.cond(
            state.count < exploration_steps, explore, refine, state.velocity, state.second_moment, state.friction
        )
        displacement, velocity, second_moment, friction = jax.tree.transpose(
            jax.tree.structure(updates), jax.tree.structure((0, 0, 0, 0)), moved
        )
        new_state = SantaState(optax.safe_increment(state.count), velocity, second_moment, friction, new_key)
        return rounding.cast_updates(displacement, updates, params, state.key, param_specs), new_state

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))
