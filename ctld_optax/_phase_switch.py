"""Two phases, one transformation: sample first, then optimize, with the momentum handed over."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from ctld_optax._ctld import MISSING_VALUE, LangevinKernel
from ctld_optax._inplace import change_if
from ctld_optax._rounding import any_narrow
from ctld_optax._validate import check_count

Handover = Callable[[Any, Any], Any]


class PhaseSwitchState(NamedTuple):
    """State of :func:`phase_switch`. Same structure, shapes and dtypes from `init` to every `update`.

    Onto heavy-ball SGD both phases share one momentum buffer: it is the optimizer's `trace`, and
    `sampler.momentum` is an empty `optax.MaskedNode`.
    """

    count: Any  # shape (), int32: number of updates made, in both phases
    sampler: Any  # state of the sampler, which stands still after the switch
    optimizer: Any  # state of the optimizer, which stands still (but for a shared trace) until the switch


def hand_over_momentum(optimizer_state: Any, sampler_state: Any) -> Any:
    """Fills every `trace` in the optimizer's state from the sampler's momentum; the default `handover`.

    An optimizer without a trace (Adam, or SGD without momentum) keeps its fresh state.
    """

    def is_trace(node: Any) -> bool:
        return isinstance(node, optax.TraceState)

    traces = [node for node in jax.tree.leaves(optimizer_state, is_leaf=is_trace) if is_trace(node)]
    if not traces:
        return optimizer_state
    # Fields of states only: a parameter or an injected hyperparameter may be called `momentum` too.
    found = optax.tree.get_all_with_path(
        sampler_state, "momentum", filtering=lambda path, _: isinstance(path[-1], optax.tree_utils.NamedTupleKey)
    )
    if len(found) != 1:
        raise ValueError(
            f"the hand-over looks for one `momentum` in the sampler's state and found {len(found)} in a "
            f"{type(sampler_state).__name__}. Pass handover=lambda optimizer_state, sampler_state: ... to say what to keep."
        )
    momentum = found[0][1]

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def fill(trace: Any) -> optax.TraceState:
        return optax.TraceState(
            jax.tree.map(lambda t, m: t if is_masked(t) else m.astype(t.dtype), trace.trace, momentum, is_leaf=is_masked)
        )

    return jax.tree.map(lambda node: fill(node) if is_trace(node) else node, optimizer_state, is_leaf=is_trace)


def phase_switch(
    sampler: optax.GradientTransformation,
    optimizer: optax.GradientTransformation,
    sampling_steps: int,
    *,
    handover: Handover | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Samples for `sampling_steps` updates, then optimizes: the if and the else of Algorithm 1.

    Updates 1 ... sampling_steps are the sampler's; the next one is the optimizer's first, and it starts from the momentum that
    the sampler left. With `optax.sgd(learning_rate, momentum)` as optimizer that is exactly the paper's else-branch.

    Any other optimizer will do. It starts from its fresh state (Adam, say, with zero moments and its step count and
    learning-rate schedule at 0), in which every heavy-ball `trace` is filled from the sampler's momentum; `handover` replaces
    that rule.

    What it costs: onto heavy-ball SGD (an optimizer whose first link is `optax.trace`, like `optax.sgd(..., momentum=...)`)
    there is one momentum buffer, the optimizer's own, in the sampler's `momentum_dtype`, and a step after the switch is
    SGD's. Other pairs hold both states, and XLA copies what a branch hands through: two to five times
    the time of SGD.

    Args:
      sampler: usually :func:`ctld_optax.ctld`.
      optimizer: usually `optax.sgd(learning_rate, momentum=...)`, with the sampler's own figures or smaller ones.
      sampling_steps: L_s >= 0, a Python integer. 0 never samples.
      handover: `handover(optimizer_state, sampler_state) -> optimizer_state`, called once, at the switch. None: the
        rule above.

    Returns:
      An `optax.GradientTransformationExtraArgs` with state :class:`PhaseSwitchState`. Extra arguments go to both. `value` is
      needed at every step, since one compiled program holds both phases. After the switch a non-finite gradient meets the
      optimizer unguarded, as it would without us (`optax.apply_if_finite` guards it).

    Raises:
      TypeError, ValueError: if `sampling_steps` is no Python integer >= 0, or the sampler has no momentum to hand over.
    """
    check_count("sampling_steps", sampling_steps, 0)
    sampler = optax.with_extra_args_support(sampler)
    optimizer = optax.with_extra_args_support(optimizer)
    kernel = getattr(sampler, "kernel", None)
    decay = None if kernel is None or handover is not None else _heavy_ball_decay(optimizer)
    if kernel is not None and decay is not None:
        return _with_shared_momentum(sampler, kernel, optimizer, decay, sampling_steps)
    return _with_two_states(sampler, optimizer, sampling_steps, handover or hand_over_momentum)


def _with_two_states(
    sampler: Any, optimizer: Any, sampling_steps: int, handover: Handover
) -> optax.GradientTransformationExtraArgs:
    """The general case: any sampler, any optimizer.

    Each changes its own state in its own phase, and neither state is copied.
    """

    def init(params: optax.Params) -> PhaseSwitchState:
        state = PhaseSwitchState(jnp.zeros((), jnp.int32), sampler.init(params), optimizer.init(params))
        jax.eval_shape(handover, state.optimizer, state.sampler)  # a wrong hand-over is to be heard of now, not at the switch
        return state

    def update(
        updates: optax.Updates, state: PhaseSwitchState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, PhaseSwitchState]:
        def step(transformation: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            grads, own_state = carry
            new_updates, own_state = transformation.update(grads, own_state, params, **extra_args)
            return optax.tree.cast_like(new_updates, grads), own_state

        sampling = state.count < sampling_steps
        # Exactly one of the two takes the gradients and makes updates of them.
        updates, sampler_state = change_if(sampling, functools.partial(step, sampler), (updates, state.sampler))
        optimizer_state = change_if(state.count == sampling_steps, lambda own: handover(own, sampler_state), state.optimizer)
        updates, optimizer_state = change_if(~sampling, functools.partial(step, optimizer), (updates, optimizer_state))
        return updates, PhaseSwitchState(optax.safe_increment(state.count), sampler_state, optimizer_state)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def _with_shared_momentum(
    sampler: Any, kernel: LangevinKernel, optimizer: Any, decay: float, sampling_steps: int
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
            sampler=state._replace(momentum=optax.MaskedNode()),
            optimizer=(trace._replace(trace=state.momentum), *rest),
        )

    def update(
        updates: optax.Updates,
        state: PhaseSwitchState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PhaseSwitchState]:
        if value is None and kernel.needs_value:
            raise TypeError(MISSING_VALUE)
        trace, *rest = state.optimizer
        sampling = state.count < sampling_steps

        momentum = kernel.accelerate(updates, trace.trace, jnp.where(sampling, kernel.momentum, decay))
        thermalize = functools.partial(kernel.thermalize, value=value, grads=updates)
        sampler_state = jax.lax.cond(sampling, thermalize, lambda s: s, state.sampler._replace(momentum=momentum))
        momentum = sampler_state.momentum

        # From a trace of zeros the optimizer's own heavy-ball step changes nothing: what is left is what follows it.
        at_rest = trace._replace(trace=optax.tree.zeros_like(momentum))
        optimized, (_, *new_rest) = optimizer.update(momentum, (at_rest, *rest), params, value=value, **extra_args)
        displace = functools.partial(kernel.displacement, state.sampler.count, momentum, updates)
        sampled = displace(None)
        if params is not None and any_narrow(params):
            # In a branch, so that SGD does not pay for the random bits.
            sampled = jax.lax.cond(sampling, lambda: displace(params, state.sampler.key), lambda: sampled)
        new_updates, new_rest = optax.tree.where(
            sampling, (sampled, rest), (optax.tree.cast_like(optimized, updates), new_rest)
        )
        return new_updates, PhaseSwitchState(
            count=optax.safe_increment(state.count),
            sampler=sampler_state._replace(momentum=optax.MaskedNode()),
            optimizer=(trace._replace(trace=momentum), *new_rest),
        )

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def _heavy_ball_decay(optimizer: Any) -> Any:
    """The decay of an optimizer that begins with a heavy-ball `optax.trace` on the raw gradient, None for any other.

    An optimizer is a pair of closures, so this looks at what it does: its state must be that of a chain whose first
    link is a `TraceState` and whose others hold scalars at most, and on probes of sizes from 1e-12 to 1e12 its trace must
    be gradient + decay * trace, and its update a function of the new trace alone (Nesterov's is not).

    Hyperparameters that are traced, as `optax.inject_hyperparams` makes them, have no value to look at: some number is put in
    the place of each, so that the answer is the same inside and outside `jit`. The decay is then traced as well.
    """
    # In float64, so that the decay is the optimizer's own number and not its float32 rounding; of NumPy, so that it has a value
    # also under jit.
    size = np.asarray([1e-12, 1e-6, 1.0, 1e6, 1e12])
    probe = {"vector": size, "matrix": -0.7 * np.ones((2, 5)) * size}
    zeros, ones = jax.tree.map(np.zeros_like, probe), jax.tree.map(np.ones_like, probe)

    def step(grads: Any, trace: Any) -> tuple[Any, Any]:
        _, *rest = optimizer.init(probe)
        new_updates, state = optimizer.update(grads, (optax.TraceState(trace), *rest), probe, value=jnp.ones(()))
        return new_updates, state[0].trace

    try:
        with jax.enable_x64(True):
            first, *rest = jax.eval_shape(optimizer.init, probe)
            if not isinstance(first, optax.TraceState) or any(leaf.ndim > 0 for leaf in jax.tree.leaves(rest)):
                return None
            program, (_, trace_shapes) = jax.make_jaxpr(step, return_shape=True)(probe, probe)
            traced = any(isinstance(const, Tracer) for const in program.consts)
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            stand_ins = [_stand_in(const) for const in program.consts]
            evaluate = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, stand_ins))

            def step_alike(grads: Any, trace: Any) -> tuple[Any, Any]:
                return jax.tree.unflatten(jax.tree.structure((probe, trace_shapes)), evaluate(*jax.tree.leaves((grads, trace))))

            decay = float(step_alike(zeros, ones)[1]["vector"][2])
            grads = jax.tree.map(lambda p: 0.3 * p[..., ::-1], probe)
            new_updates, trace = step_alike(grads, probe)
            expected = jax.tree.map(lambda g, t: g + decay * t, grads, probe)
            same_trace = optax.tree.allclose(trace, expected, rtol=1e-6, atol=0.0)
            same_updates = optax.tree.allclose(new_updates, step_alike(trace, zeros)[0], rtol=1e-6, atol=0.0)
            if not (same_trace and same_updates):
                return None
        return step(zeros, ones)[1]["vector"][2] if traced else decay
    except Exception:  # noqa: BLE001
        # An optimizer that cannot take the probe, for whatever reason, is served by the general case.
        return None


def _stand_in(const: Any) -> Any:
    """A number in the place of one that is not known yet."""
    return jnp.full(const.shape, 0.37).astype(const.dtype) if isinstance(const, Tracer) else const
