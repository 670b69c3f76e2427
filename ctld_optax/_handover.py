"""What each optimizer's state takes over from the sampler. It knows Optax's states and the sampler's momentum, not alpha."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from ctld_optax._dynamics.langevin import CTLDState

Handover = Callable[[Any, Any], Any]


def hand_over_momentum(optimizer_state: Any, sampler_state: Any) -> Any:
    """Fills every `trace` in the optimizer's state from the sampler's momentum.

    An optimizer without a trace (Adam, or SGD without momentum) keeps its fresh state.
    """
    if not _traces_in(optimizer_state):
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

    return jax.tree.map(lambda node: fill(node) if _is_trace(node) else node, optimizer_state, is_leaf=_is_trace)


def taking_over(optimizer: Any) -> Handover:
    """The default `handover`: :func:`hand_over_momentum`, with the share of the momentum that :func:`thermal_share` gives."""

    def handover(optimizer_state: Any, sampler_state: Any) -> Any:
        if not _traces_in(optimizer_state):
            return optimizer_state
        found = [node for node in jax.tree.leaves(sampler_state, is_leaf=_is_sampler) if _is_sampler(node)]
        if len(found) == 1:
            share = thermal_share(
                optimizer, found[0].momentum, found[0].learning_rate, found[0].noise_variance > 0.0, value=jnp.ones(())
            )
            momentum = jax.tree.map(lambda m: share.astype(m.dtype) * m, found[0].momentum)
            sampler_state = found[0]._replace(momentum=momentum)
        return hand_over_momentum(optimizer_state, sampler_state)

    return handover


def thermal_share(optimizer: Any, like: Any, last_rate: jax.Array, is_hot: jax.Array, **extra_args: Any) -> jax.Array:
    """The share of the sampler's momentum that an optimizer takes over: sqrt(l_sampler / l_optimizer), but at most all of it.

    With a larger learning rate the thermal part of an unscaled momentum would be heat, which no friction at a temperature takes
    out; with a smaller one it cools, as it should. The optimizer's learning rate is read off the update that its fresh state
    makes of a small trace. What has no trace takes over nothing anyway.

    Args:
      optimizer: an extra-args transformation.
      like: parameters or momenta; only their structure and their number of dimensions matter.
      last_rate: the sampler's learning rate.
      is_hot: whether the sampler's last step had noise; all is taken over if not.
      **extra_args: of the optimizer's update.

    Returns:
      shape (), in (0, 1]; 1 where the learning rate cannot be read.
    """
    size = 1e-6  # so that what clips does not clip it
    zeros = jax.tree.map(lambda m: jnp.zeros((1,) * m.ndim, m.dtype), like)

    def respond(trace: float) -> tuple[jax.Array, jax.Array]:
        """Sums of the update and of the new trace."""
        filled = jax.tree.map(
            lambda node: optax.TraceState(optax.tree.full_like(node.trace, trace)) if _is_trace(node) else node,
            optimizer.init(zeros),
            is_leaf=_is_trace,
        )
        update, state = optimizer.update(zeros, filled, zeros, **extra_args)
        traces = [node.trace for node in _traces_in(state)]
        return _total(update, last_rate.dtype), _total(traces, last_rate.dtype)

    try:
        (moved, kept), (moved_at_rest, kept_at_rest) = respond(size), respond(0.0)
    except Exception:  # noqa: BLE001
        # An optimizer that cannot take the probe, for whatever reason, takes over the momentum as it is.
        return jnp.ones_like(last_rate)
    kept = kept - kept_at_rest
    rate = -(moved - moved_at_rest) / jnp.where(kept > 0.0, kept, 1.0)
    rises = is_hot & (kept > 0.0) & (last_rate > 0.0) & (rate > last_rate) & jnp.isfinite(rate)
    return jnp.where(rises, jnp.sqrt(last_rate / jnp.where(rises, rate, 1.0)), 1.0)


def _total(tree: Any, dtype: Any) -> jax.Array:
    return sum((jnp.sum(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)), jnp.zeros((), dtype))


def _is_trace(node: Any) -> bool:
    return isinstance(node, optax.TraceState)


def _traces_in(state: Any) -> list[optax.TraceState]:
    return [node for node in jax.tree.leaves(state, is_leaf=_is_trace) if _is_trace(node)]


def _is_sampler(node: Any) -> bool:
    return isinstance(node, CTLDState)


def heavy_ball_decay(optimizer: Any) -> Any:
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
