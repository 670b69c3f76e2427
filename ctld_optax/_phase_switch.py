"""Two phases, one transformation: sample first, then optimize, with the momentum handed over."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ctld_optax._arrays.dtypes import any_narrow
from ctld_optax._arrays.inplace import change_if, either
from ctld_optax._arrays.late import made_late
from ctld_optax._checked import checked
from ctld_optax._dynamics.langevin import MISSING_VALUE, CTLDState, Langevin, LangevinTransformation, check_state
from ctld_optax._dynamics.preconditioner import Unpreconditioned
from ctld_optax._handover import Handover, begun_at, check_handover, is_in_a_metric, samplers_in, take_over, thermal_share
from ctld_optax._probe import heavy_ball_decay, learning_rates, sums_gradients
from ctld_optax._validate import check_arrays, check_count, check_update

ORDER = "The order is phase_switch(sampler, optimizer, sampling_steps)."
STATE = "Write state = tx.init(params); the order is tx.update(grads, state, params, value=loss)."
LEFT_ALONE = (
    "phase_switch: a trace of this optimizer is no sum of raw gradients (it is behind something that scales them, say), so the "
    "sampler's momentum is left behind and it starts from zeros. If that is meant, or to fill it yourself, pass "
    "handover=lambda optimizer_state, sampler_state, params: optimizer_state, or what else is to be returned."
)

IN_A_METRIC = (
    "phase_switch: the sampler's momentum is in the coordinates of its preconditioner, where it is no sum of raw gradients, so "
    "that it is left behind and the optimizer's trace starts from zeros. If that is meant, pass "
    "handover=lambda optimizer_state, sampler_state, params: optimizer_state."
)
SWAPPED = f"optimizer is a sampler, and sampler is none: the run would end hot. {ORDER}"


class PhaseSwitchState(NamedTuple):
    """State of :func:`phase_switch`. Same structure, shapes and dtypes from `init` to every `update`.

    Onto heavy-ball SGD both phases share one momentum buffer: it is the optimizer's `trace`, and
    `sampler.momentum` is an empty `optax.MaskedNode`.

    Attributes:
      count: shape (), int32: number of updates made, in both phases.
      switched: shape (), bool: whether the optimizer has taken over.
      sampler: state of the sampler, which stands still after the switch.
      optimizer: state of the optimizer, which stands still (but for a shared trace) until the switch.

    Example:
      >>> sampler = ctld_optax.ctld(0.05, 1e-3, key=0)
      >>> tx = ctld_optax.phase_switch(sampler, optax.sgd(0.05, 0.9), 2_000)
      >>> state = tx.init(jnp.ones(3))
      >>> int(state.count), float(state.sampler.alpha)
      (0, 0.0)
    """

    count: Any
    switched: jax.Array
    sampler: Any
    optimizer: Any


@checked(sampler=ORDER, optimizer=ORDER, sampling_steps=ORDER)
def phase_switch(
    sampler: optax.GradientTransformation | optax.MultiSteps,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    sampling_steps: int,
    *,
    handover: Handover | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Samples for `sampling_steps` updates, then optimizes: the if and the else of Algorithm 1.

    Updates 1 ... sampling_steps are the sampler's; the next one is the optimizer's first, and it starts from the momentum that
    the sampler left. With `optax.sgd(learning_rate, momentum)` as optimizer that is exactly the paper's else-branch.

    Any other optimizer that takes the same gradients and arguments will do. It starts from its fresh state (Adam, say, with
    zero moments and its step count and learning-rate schedule at 0), in which every `trace` that is a sum of raw gradients is
    filled from the sampler's momentum: that of Nesterov's method, or one behind a clip or a weight decay. A trace of scaled
    gradients (`optax.lars`, `optax.rmsprop(..., momentum=...)`) starts from zeros, and so does any behind a sampler with a
    preconditioner, whose momentum is in other coordinates; `init` warns of both. `handover` replaces that rule.

    From a `ctld(..., preconditioner=SecondMoment())` Adam and its family go on where the sampler is: the running mean of
    gradients is filled from the momentum, that of squares and the count from the metric, where their decays differ such that
    both estimates stay. With learning rate (1 - b1) rate, momentum b1 and decay b2 before the switch, and `optax.adamw(rate,
    b1, b2)` after it, the first step continues the last. That is done for what is found, on small gradients, to remember just
    that: `adam`, `adamw`, `nadam`, `radam`, `lamb`, `lion`, `rmsprop` (its squares), `optax.contrib.muon`, behind a clip too.
    The rest (`amsgrad`, `adabelief`, a `trace`) starts fresh from such a sampler, as does everything from another metric, or
    from a sampler inside a chain or another wrapper.

    Some optimizers keep the parameters that they began with (`schedule_free`, `dog`, `prodigy` of `optax.contrib`). They begin
    at the switch: what they keep is made of the parameters there, so pass those at every step.

    What it costs: onto heavy-ball SGD (an optimizer whose first link is `optax.trace`, like `optax.sgd(..., momentum=...)`)
    there is one momentum buffer, the optimizer's own, in the sampler's `momentum_dtype`, and a step after the switch is
    SGD's; not so from a sampler with a `preconditioner` or a `prior`. Other pairs hold both states, of which each is changed in
    place in its own phase and none is copied. While it samples a step costs what the sampler's does, and after the switch the
    optimizer's, where the updates are arithmetic on the entries of the new state: those of a sampler, Adam, AdamW, NAdam,
    RMSprop, Nesterov's method. Those of Lion, LAMB or Muon, or of bfloat16 parameters, need a copy of the gradients as well,
    which can take longer than the step.

    Args:
      sampler: usually :func:`ctld_optax.ctld`.
      optimizer: usually `optax.sgd(learning_rate, momentum=...)`, with the sampler's own figures or smaller ones.
      sampling_steps: L_s >= 0, a Python integer. 0 never samples.
      handover: `handover(optimizer_state, sampler_state, params) -> optimizer_state`, called once, at the switch. None: the
        rule above.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`PhaseSwitchState`. Extra arguments go to both. A `value`
      that one of the two needs is needed at every step, since one compiled program holds both phases; with
      `ctld(..., coupling="kinetic")` and `optax.sgd` none is. After the switch a non-finite gradient meets the optimizer
      unguarded, as it would without us (`optax.apply_if_finite` guards it).

    Raises:
      TypeError, ValueError: if the arguments are in another order or of another kind, `sampling_steps` is < 0, `handover` does
        not take three arguments, or the sampler has no momentum to hand over.

    Example:
      >>> sampler = ctld_optax.ctld(0.05, 1e-3, momentum=0.9, key=0)
      >>> sgd = optax.sgd(0.05, momentum=0.9)
      >>> tx = ctld_optax.phase_switch(sampler, sgd, sampling_steps=2_000)
      >>> params = {"w": jnp.ones(3)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params, value=1.5)
    """
    if isinstance(optimizer, LangevinTransformation) and not isinstance(sampler, LangevinTransformation):
        raise TypeError(SWAPPED)
    check_count("sampling_steps", sampling_steps, 0)
    sampler, optimizer = map(_with_extra_args, (sampler, optimizer))
    if handover is not None:
        check_handover(handover)
    kernel = getattr(sampler, "kernel", None)
    is_plain = kernel is not None and isinstance(kernel.preconditioner, Unpreconditioned) and kernel.prior is None
    is_shareable = is_plain and handover is None
    decay = heavy_ball_decay(optimizer) if is_shareable else None
    if kernel is not None and decay is not None:
        return _with_shared_momentum(sampler, kernel, optimizer, decay, sampling_steps)
    return _with_two_states(sampler, kernel, optimizer, sampling_steps, handover)


def _with_two_states(
    sampler: Any, kernel: Langevin | None, optimizer: Any, sampling_steps: int, handover: Handover | None
) -> optax.GradientTransformationExtraArgs:
    """The general case: any sampler, any optimizer.

    Each changes its own state in its own phase, and neither state is copied.
    """

    def hand_over(like: Any, optimizer_state: Any, sampler_state: Any, params: Any) -> Any:
        optimizer_state = begun_at(optimizer, like, optimizer_state, params)
        if handover is not None:
            return handover(optimizer_state, sampler_state, params)
        return take_over(optimizer, like, optimizer_state, sampler_state, kernel)

    def init(params: optax.Params) -> PhaseSwitchState:
        state = PhaseSwitchState(jnp.zeros((), jnp.int32), jnp.zeros((), bool), sampler.init(params), optimizer.init(params))
        if _holds(CTLDState, state.optimizer) and not _holds(CTLDState, state.sampler):
            raise TypeError(SWAPPED)
        if handover is None:
            _check_traces(sums_gradients(optimizer, params), state.sampler)
        # What goes wrong at the hand-over is to be heard of now, not at the switch.
        jax.eval_shape(hand_over, params, state.optimizer, state.sampler, params)
        return state

    @checked(state=STATE)
    def update(
        updates: Any, state: PhaseSwitchState, params: Any = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, PhaseSwitchState]:
        check_arrays(updates, "updates, the gradient")
        _check_state(state, is_shared=False)
        # An optimizer that needs the loss says so itself where there is none.
        extra_args |= {} if value is None else {"value": value}

        def step(transformation: Any, grads: Any, own_state: Any) -> tuple[Any, Any]:
            new_updates, own_state = transformation.update(grads, own_state, params, **extra_args)
            return optax.tree.cast_like(new_updates, grads), own_state

        def begin(optimizer_state: Any) -> Any:
            return hand_over(updates, optimizer_state, sampler_state, params)

        sampling = _is_sampling(state, sampling_steps)
        sample, optimize = functools.partial(step, sampler), functools.partial(step, optimizer)
        sampled, updates, sampler_state = _step_if(sampling, sample, updates, state.sampler)
        begun = change_if(~sampling & ~state.switched, begin, state.optimizer)
        made, _, optimizer_state = _step_if(~sampling, optimize, updates, begun, sampled)
        return made(), PhaseSwitchState(optax.safe_increment(state.count), ~sampling, sampler_state, optimizer_state)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def _step_if(
    turn: jax.Array, step: Callable[..., Any], grads: Any, state: Any, before: Callable[[], Any] | None = None
) -> tuple[Callable[[], Any], Any, Any]:
    """A step of the sampler or of the optimizer, in its turn.

    Its updates are made late, if they can be: then the state alone changes in the loop. Otherwise they take the gradients'
    place in it, which are copied for that.

    Args:
      turn: whether it is its turn.
      step: `step(grads, state) -> (updates, state)`.
      grads: the gradients; out of its turn anything like them.
      state: its state.
      before: makes the updates of the other one, out of its turn; in its turn anything like them.

    Returns:
      what makes the updates, out of its turn those of the other one; the gradients, if it was not its turn; its state.
    """
    late = made_late(functools.partial(step, grads), state)
    if late is None:
        start = grads if before is None else either(turn, lambda: grads, before)
        made, state = change_if(turn, lambda carry: step(*carry), (start, state))
        return lambda: made, made, state
    new_state = change_if(turn, lambda state: step(grads, state)[1], state)
    make = functools.partial(late, state, new_state)
    return make if before is None else lambda: either(turn, make, before), grads, new_state


def _with_shared_momentum(
    sampler: Any, kernel: Langevin, optimizer: Any, decay: float, sampling_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Onto heavy-ball SGD: sampling *is* SGD-M with a noised momentum, so the heavy-ball step belongs to both phases.

    Only the noise and alpha's half stand in a branch. Its other side hands the fresh momentum through, which XLA does
    in place; a branch around more than that makes it copy whole buffers.
    """

    def init(params: optax.Params) -> PhaseSwitchState:
        state = sampler.init(params)
        trace, *rest = optimizer.init(params)
        return PhaseSwitchState(
            count=jnp.zeros((), jnp.int32),
            switched=jnp.zeros((), bool),
            sampler=state._replace(momentum=optax.MaskedNode()),
            optimizer=(trace._replace(trace=state.momentum), *rest),
        )

    @checked(state=STATE)
    def update(
        updates: Any, state: PhaseSwitchState, params: Any = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, PhaseSwitchState]:
        if value is None and kernel.needs_value:
            raise TypeError(MISSING_VALUE)
        _check_state(state, is_shared=True)
        # An optimizer that needs the loss says so itself where there is none.
        extra_args |= {} if value is None else {"value": value}
        trace, *rest = state.optimizer
        check_update(updates, params, trace.trace)
        before = state.sampler._replace(momentum=trace.trace)
        check_state(kernel, before)
        sampling = _is_sampling(state, sampling_steps)

        # This kind treats every leaf alike: one is enough, and compiles fast.
        rates = learning_rates(optimizer, jnp.zeros(()), **extra_args)
        share = thermal_share(rates.get("", 0.0), before.learning_rate, before.noise_variance > 0.0)
        kept = jnp.where(sampling, kernel.kept(before), jnp.where(state.switched, decay, decay * share))
        momentum = kernel.accelerate(updates, trace.trace, kept)
        thermalize = functools.partial(kernel.thermalize, value=value, grads=updates)
        sampler_state = jax.lax.cond(sampling, thermalize, lambda s: s, before._replace(momentum=momentum))
        momentum = sampler_state.momentum

        # From a trace of zeros the optimizer's own heavy-ball step changes nothing: what is left is what follows it.
        at_rest = trace._replace(trace=optax.tree.zeros_like(momentum))
        optimized, (_, *new_rest) = optimizer.update(momentum, (at_rest, *rest), params, **extra_args)
        drift = kernel.drift(state.sampler.beta, sampler_state.beta)
        displace = functools.partial(kernel.displacement, state.sampler.count, momentum, updates, drift=drift)
        sampled = displace(None)
        if params is not None and any_narrow(params):
            # In a branch, so that SGD does not pay for the random bits.
            sampled = jax.lax.cond(sampling, lambda: displace(params, state.sampler.key), lambda: sampled)
        new_updates, new_rest = optax.tree.where(
            sampling, (sampled, rest), (optax.tree.cast_like(optimized, updates), new_rest)
        )
        return new_updates, PhaseSwitchState(
            count=optax.safe_increment(state.count),
            switched=~sampling,
            sampler=sampler_state._replace(momentum=optax.MaskedNode()),
            optimizer=(trace._replace(trace=momentum), *new_rest),
        )

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def _with_extra_args(given: optax.GradientTransformation | optax.MultiSteps) -> optax.GradientTransformationExtraArgs:
    if isinstance(given, optax.MultiSteps):  # its own `gradient_transformation()` would lose them
        return optax.GradientTransformationExtraArgs(given.init, cast("Any", given.update))
    return optax.with_extra_args_support(given)


def _check_state(state: PhaseSwitchState, *, is_shared: bool) -> None:
    """Raises if it is the state of a switch of the other kind: one momentum buffer for both phases, or two states."""
    if is_shared is not (isinstance(state.sampler, CTLDState) and isinstance(state.sampler.momentum, optax.MaskedNode)):
        raise ValueError(f"state is of a phase_switch with another sampler or onto another optimizer. {STATE}")


def _check_traces(sums: list[bool | None], sampler_state: Any) -> None:
    """Raises, or warns, where a trace cannot be filled: `sums` tells of each whether it is a sum of raw gradients."""
    if True in sums and _holds(PhaseSwitchState, sampler_state):
        raise ValueError(
            "the sampler is itself a phase_switch, whose momentum is its sampler's before its switch and its optimizer's after "
            "it: there is no one place to take it from. Pass handover=lambda optimizer_state, sampler_state, params: ... to "
            "say what to fill the optimizer's trace with; optimizer_state as it comes begins it from zeros."
        )
    if False in sums:
        warnings.warn(LEFT_ALONE, stacklevel=3)
    if True in sums and any(map(is_in_a_metric, samplers_in(sampler_state))):
        warnings.warn(IN_A_METRIC, stacklevel=3)


def _holds(kind: type, state: Any) -> bool:
    return any(isinstance(node, kind) for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind)))


def _is_sampling(state: PhaseSwitchState, sampling_steps: int) -> jax.Array:
    """Until `sampling_steps`; and never again once the optimizer has taken over, whatever a resumed run asks for."""
    return (state.count < sampling_steps) & ~state.switched
