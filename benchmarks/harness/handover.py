"""Other moments to hand over from a sampler to SGD-M than a fixed step, to find out whether the moment matters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class WaitingState(NamedTuple):
    sampler: Any  # CTLDState; its momentum serves both phases, its count stands still after the hand-over
    waiting: jax.Array  # shape (), bool: whether it still samples


def hand_over_when(
    sampler: Any, learning_rate: Any, momentum: float, sampling_steps: int, ready: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """Samples for `sampling_steps` and then on until `ready(alpha)`, a bool; then SGD-M with the sampler's momentum."""

    def init(params: Any) -> WaitingState:
        return WaitingState(sampler.init(params), jnp.ones((), bool))

    def update(grads: Any, state: WaitingState, params: Any = None, *, value: Any = None, **_: Any) -> tuple[Any, WaitingState]:
        def sample(sampler_state: Any) -> tuple[Any, Any]:
            return sampler.update(grads, sampler_state, params, value=value)

        def optimize(sampler_state: Any) -> tuple[Any, Any]:
            trace = jax.tree.map(lambda g, m: g + momentum * m, grads, sampler_state.momentum)
            return jax.tree.map(lambda m: -learning_rate * m, trace), sampler_state._replace(momentum=trace)

        updates, sampler_state = jax.lax.cond(state.waiting, sample, optimize, state.sampler)
        is_time = (sampler_state.count >= sampling_steps) & ready(sampler_state.alpha)
        return updates, WaitingState(sampler_state, state.waiting & ~is_time)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
