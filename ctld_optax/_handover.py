"""What each optimizer's state takes over from the sampler. It knows Optax's states and the sampler's momentum, not alpha."""

import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ctld_optax._checked import checked
from ctld_optax._dynamics.langevin import CTLDState, Langevin
from ctld_optax._dynamics.layers import each
from ctld_optax._dynamics.second_moment import SecondMoment
from ctld_optax._probe import (
    Averages,
    averages,
    by_path,
    filled,
    filled_averages,
    kept_parameters,
    learning_rates,
    steps_of_averages,
    sums_gradients,
    traces_in,
)
from ctld_optax._validate import check_arrays

ORDER = "The order is hand_over_momentum(optimizer_state, sampler_state, params)."
Handover = Callable[[Any, Any, Any], Any]


def check_handover(handover: Handover) -> None:
    """Raises unless it can be called with three arguments."""
    try:
        inspect.signature(handover).bind(None, None, None)
    except ValueError:
        return  # a callable that does not tell its signature
    except TypeError as error:
        raise TypeError(
            f"handover must take three arguments, got {handover!r}, for which that fails: {error}. Write handover=lambda "
            "optimizer_state, sampler_state, params: ..., also where the parameters are not used."
        ) from error


def begun_at(optimizer: Any, like: Any, optimizer_state: Any, params: Any) -> Any:
    """The state of an optimizer that begins here: what it keeps of the parameters it began with is made of these ones.

    The rest of its fresh state stays as it is, hyperparameters that were changed on the way among it.

    Args:
      optimizer: an extra-args transformation.
      like: parameters or gradients; only their structure and shapes matter.
      optimizer_state: of the optimizer, fresh.
      params: the parameters, or None, which is enough for an optimizer that keeps none.

    Raises:
      ValueError: if `params` is None and the optimizer keeps some.
    """
    kept = kept_parameters(optimizer.init, like)
    if not any(kept):
        return optimizer_state
    if params is None:
        raise ValueError(
            "phase_switch needs the parameters at every step, got None: this optimizer keeps those that it began with, and it "
            "begins at the switch. Write tx.update(grads, state, params, ...)."
        )
    old, structure = jax.tree.flatten(optimizer_state)
    new = jax.tree.leaves(optimizer.init(params))
    return jax.tree.unflatten(structure, [n.astype(o.dtype) if k else o for n, o, k in zip(new, old, kept, strict=True)])


@checked()
def hand_over_momentum(optimizer_state: Any, sampler_state: Any, params: Any = None) -> Any:
    """Fills every `trace` in the optimizer's state from the sampler's momentum, whatever that trace is a sum of.

    What no sampler has a momentum of keeps its fresh state, and so does an optimizer without a trace (Adam, or SGD without
    momentum).

    Args:
      optimizer_state: of the optimizer, fresh.
      sampler_state: of the sampler, or of several that have a share of the parameters each.
      params: not needed.

    Returns:
      The optimizer's state.

    Raises:
      TypeError: if there is anything but arrays in one of the three, or the two states have changed places.
      ValueError: if there is no momentum in the sampler's state, or two of one parameter, or it is in the coordinates of a
        preconditioner, which no optimizer has.

    Example:
      >>> sgd = optax.sgd(0.05, momentum=0.9)
      >>> sampler = ctld_optax.ctld(0.05, 1e-3, key=0)
      >>> params = jnp.ones(3)
      >>> state = sampler.init(params)
      >>> filled = ctld_optax.hand_over_momentum(sgd.init(params), state, params)
      >>> bool(jnp.all(optax.tree.get(filled, "trace") == state.momentum))
      True
    """
    for name, tree in (("optimizer_state", optimizer_state), ("sampler_state", sampler_state), ("params", params)):
        check_arrays(tree, f"the {name}'s leaf")
    if samplers_in(optimizer_state) and not samplers_in(sampler_state):
        raise TypeError(f"optimizer_state is a sampler's, and sampler_state is none. {ORDER}")
    if any(is_in_a_metric(sampler) for sampler in samplers_in(sampler_state)):
        raise ValueError(
            "sampler_state has its momentum in the coordinates of a preconditioner, where it is none of the parameters. Leave "
            "handover=None: phase_switch fills from it what it can."
        )
    return _fill(optimizer_state, sampler_state, itertools.repeat(True))


def take_over(optimizer: Any, like: Any, optimizer_state: Any, sampler_state: Any, kernel: Langevin | None = None) -> Any:
    """The default hand-over.

    Of the momentum, the share that stays thermal goes to the traces that are sums of raw gradients. In the coordinates of a
    `SecondMoment` it goes to the running means of gradients instead, and that metric to those of squares.

    Args:
      optimizer: an extra-args transformation.
      like: parameters or gradients; only their structure and their number of dimensions matter.
      optimizer_state: of the optimizer, fresh.
      sampler_state: of the sampler.
      kernel: of the sampler, if it has one.

    Returns:
      The optimizer's state.

    Raises:
      ValueError: as :func:`hand_over_momentum`, if there is a trace to be filled.
    """
    if kernel is not None and isinstance(kernel.preconditioner, SecondMoment):
        return _average_over(optimizer, like, optimizer_state, sampler_state, kernel, kernel.preconditioner)
    chosen = [bool(sums) for sums in sums_gradients(optimizer, like)]
    # In a preconditioner's coordinates the momentum is no sum of raw gradients.
    is_raw = not any(map(is_in_a_metric, samplers_in(sampler_state)))
    if not (any(chosen) and is_raw):
        return optimizer_state
    rates = learning_rates(optimizer, like, value=jnp.ones(()))

    def thermal(state: Any) -> Any:
        if not _is_sampler(state):
            return state

        def share(path: Any, momentum: jax.Array, last_rate: jax.Array, is_hot: jax.Array) -> jax.Array:
            rate = rates.get(jax.tree_util.keystr(path), 0.0)
            return thermal_share(rate, last_rate, is_hot).astype(momentum.dtype) * momentum

        own = (each(of_layer, state.momentum) for of_layer in (state.learning_rate, state.noise_variance > 0.0))
        return state._replace(momentum=jax.tree_util.tree_map_with_path(share, state.momentum, *own))

    return _fill(optimizer_state, jax.tree.map(thermal, sampler_state, is_leaf=_is_sampler), chosen)


def _average_over(
    optimizer: Any, like: Any, optimizer_state: Any, state: CTLDState, kernel: Langevin, metric: SecondMoment
) -> Any:
    """Fills the running means of raw gradients and of their squares, so that what they estimate is what the sampler has.

    Of the momentum m_z = s m, in the metric's coordinates, the sum m of raw gradients is m_z / s, and (1 - momentum) m their
    mean. A node of the optimizer's state is filled as a whole or not at all.
    """
    understood = averages(optimizer, like)
    if not any(understood):
        return optimizer_state
    dtype = state.alpha.dtype
    _, temperature = kernel.hyperparameters(state._replace(count=jnp.maximum(state.count - 1, 0)))
    nu, num_seen = state.coordinates
    scale, correction = metric.scale_of(num_seen, jnp.max(temperature)), metric.correction(num_seen, dtype)
    shares = _thermal_shares(optimizer, like, understood, kernel, state, scale, correction)
    is_begun = state.count > 0

    def estimate(leaf: jax.Array, factor: Any) -> jax.Array:
        """Times a number, which is 0/0 before the first step."""
        return jnp.where(is_begun, factor, 0.0).astype(leaf.dtype) * leaf

    def unbiased(decay: Any) -> jax.Array:
        """What a running mean of this decay has seen of its own estimate by now."""
        return 1.0 - jnp.asarray(decay, dtype) ** state.count.astype(dtype)

    def fill(node: Averages | None) -> dict[str, Any]:
        if node is None:
            return {}
        fills: dict[str, Any] = {"count": {"": state.count}}
        if node.first is not None:
            factor = (1.0 - kernel.decay) * unbiased(node.first) / unbiased(kernel.decay)
            means = jax.tree.map(lambda m, v: m / scale(v).astype(m.dtype), state.momentum, nu)
            fills["mu"] = {path: estimate(m, factor * shares.get(path, 1.0)) for path, m in by_path(means).items()}
        if node.second is not None:
            # A node without a count corrects for no bias.
            fills["nu"] = {path: estimate(v, correction * unbiased(node.second)) for path, v in by_path(nu).items()}
        return fills

    return filled_averages(optimizer_state, map(fill, understood))


def _thermal_shares(
    optimizer: Any, like: Any, understood: Any, kernel: Langevin, state: CTLDState, scale: Any, correction: jax.Array
) -> dict[str, jax.Array]:
    """The share of each leaf's momentum to take over; the rates are how far each goes for the same mean gradient."""
    dtype = state.alpha.dtype
    second = {path: jnp.mean(v, dtype=dtype) for path, v in by_path(state.coordinates.nu).items()}
    second = {path: jnp.where(v > 0.0, v, 1.0) for path, v in second.items()}
    squares = {path: correction * v for path, v in second.items()}
    steps = steps_of_averages(optimizer, like, understood, squares, value=jnp.ones(()))
    rates, hot = (by_path(each(numbers, state.momentum)) for numbers in (state.learning_rate, state.noise_variance > 0.0))

    def share(path: str, step: jax.Array) -> jax.Array:
        ours = rates[path] * scale(second[path]) ** 2 * jnp.sqrt(correction * second[path]) / (1.0 - kernel.decay)
        return thermal_share(rates[path] * step / ours, rates[path], hot[path])

    return {path: share(path, step) for path, step in steps.items()}


def samplers_in(state: Any) -> list[CTLDState]:
    """The state of every sampler in a larger one."""
    return [node for node in jax.tree.leaves(state, is_leaf=_is_sampler) if _is_sampler(node)]


def thermal_share(rate: Any, last_rate: jax.Array, is_hot: jax.Array) -> jax.Array:
    """The share of the sampler's momentum that an optimizer takes over: sqrt(l_sampler / l_optimizer), but at most all of it.

    With a larger learning rate the thermal part of an unscaled momentum would be heat, which no friction at a temperature takes
    out; with a smaller one it cools, as it should.

    Args:
      rate: l_optimizer, what it multiplies its trace by; 0 if that is not known.
      last_rate: the sampler's learning rate, shape (); or of each leaf, shape (leaves,).
      is_hot: whether the sampler's last step had noise, likewise; all is taken over if not.

    Returns:
      In (0, 1], of the shape of `last_rate`.
    """
    rate = jnp.asarray(rate, last_rate.dtype)
    rises = is_hot & (last_rate > 0.0) & (rate > last_rate) & jnp.isfinite(rate)
    return jnp.where(rises, jnp.sqrt(last_rate / jnp.where(rises, rate, 1.0)), 1.0)


def _fill(optimizer_state: Any, sampler_state: Any, chosen: Iterable[bool]) -> Any:
    """Fills the chosen traces."""
    return filled(optimizer_state, _momentum_in(sampler_state), chosen) if traces_in(optimizer_state) else optimizer_state


def _momentum_in(sampler_state: Any) -> dict[str, Any]:
    """The momentum of each parameter, by its path."""
    # Fields of states only: a parameter or an injected hyperparameter may be called `momentum` too.
    found = optax.tree.get_all_with_path(
        sampler_state, "momentum", filtering=lambda path, _: isinstance(path[-1], optax.tree_utils.NamedTupleKey)
    )
    momenta = [by_path(momentum) for _, momentum in found if not isinstance(momentum, optax.MaskedNode)]
    together = {path: leaf for momentum in momenta for path, leaf in momentum.items()}
    if not momenta or len(together) < sum(map(len, momenta)):
        raise ValueError(
            f"the hand-over looks for one `momentum` of a parameter in sampler_state and found {len(momenta)} in a "
            f"{type(sampler_state).__name__}. Pass handover=lambda optimizer_state, sampler_state, params: ... to say what "
            "to keep."
        )
    return together


def is_in_a_metric(state: CTLDState) -> bool:
    """Whether its momentum is in the coordinates of a preconditioner."""
    return bool(jax.tree.leaves(state.coordinates))


def _is_sampler(node: Any) -> bool:
    return isinstance(node, CTLDState)
