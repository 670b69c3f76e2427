"""What an optimizer does, found out by trying it on stand-ins: it is a pair of closures and tells nothing else of itself."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from ctld_optax._arrays import compat

SIZE = 1e-6  # of a gradient or a trace that is tried: so small that what clips does not clip it
LATE = 1_000_000  # a count at which no bias is left to correct
PARAMETER = 1e-2  # so large that what clips by the size of the parameters does not either, and float32 resolves a decay of them


def by_path(tree: Any) -> dict[str, Any]:
    """A tree's leaves by what leads to them. Trees of which other leaves are masked can be compared so."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def traces_in(state: Any) -> list[dict[str, Any]]:
    """The leaves of every `optax.TraceState` in a state, by path."""
    return [by_path(node.trace) for node in jax.tree.leaves(state, is_leaf=_is_trace) if _is_trace(node)]


def filled(state: Any, fill: Mapping[str, Any], which: Iterable[bool] = itertools.repeat(True)) -> Any:
    """The state with those of its traces filled that `which` names in turn, as far as `fill` has something for their leaves."""
    chosen = iter(which)

    def fill_node(node: Any) -> Any:
        return node if not _is_trace(node) or not next(chosen) else node._replace(trace=_filled_leaves(node.trace, fill))

    return jax.tree.map(fill_node, state, is_leaf=_is_trace)


def _filled_leaves(tree: Any, fill: Mapping[str, Any]) -> Any:
    """The tree with those leaves filled for which there is something of their shape."""

    def fill_leaf(path: Any, leaf: Any) -> Any:
        new = fill.get(jax.tree_util.keystr(path))
        return leaf if new is None or new.shape != leaf.shape else new.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill_leaf, tree)


def walk(optimizer: Any, params: Any, fill: Mapping[str, Any], grads: list[Any], **extra_args: Any) -> list[tuple[Any, Any]]:
    """The updates and the traces after each of some gradients, of an optimizer that is fresh but for what fills its traces."""
    return _walked(optimizer, params, filled(optimizer.init(params), fill), grads, traces_in, **extra_args)


def _walked(
    optimizer: Any, params: Any, state: Any, grads: Iterable[Any], read: Callable[[Any], Any], **extra_args: Any
) -> list[tuple[Any, Any]]:
    """The updates, and what is read off the state, after each of some gradients."""
    steps: list[tuple[Any, Any]] = []
    for grad in grads:
        updates, state = optimizer.update(grad, state, params, **extra_args)
        steps.append((by_path(updates), read(state)))
    return steps


def _of_either_sign(fill: Any) -> list[Any]:
    """Three gradients in turn, of other sizes than what fills a memory."""
    return [jax.tree.map(lambda f, factor=factor: np.asarray(factor * f, f.dtype), fill) for factor in (0.7, -0.02, 5.0)]


def kept_parameters(init: Callable[[Any], Any], params: Any) -> list[bool]:
    """Which leaves of the state that `init` makes hang on the values of the parameters, and not on their shapes alone."""
    program = jax.make_jaxpr(init)(params).jaxpr
    made_of = set(program.invars)

    def is_made_of(variable: Any) -> bool:
        return not isinstance(variable, Literal) and variable in made_of

    for equation in program.eqns:
        if any(map(is_made_of, equation.invars)):
            made_of.update(equation.outvars)
    return [is_made_of(variable) for variable in program.outvars]


def sums_gradients(optimizer: Any, like: Any) -> list[bool | None]:
    """Which of an optimizer's traces are sums of raw gradients, as a sampler's momentum is one.

    The *change* that small gradients make must be gradient + decay * trace, with 0 < decay <= 1, for gradients of either sign
    and of different sizes and in three steps in turn: what scales gradients by what it has seen of them is found out then. A
    decay of the weights, or a clip, may stand in front of such a trace.

    Args:
      optimizer: an extra-args transformation.
      like: parameters or gradients; only their structure and their number of dimensions matter.

    Returns:
      of each trace, in order; None where there is no memory to fill, or nothing of a trace's is a parameter's.
    """
    if not _has_traces(optimizer, like):
        return []
    sizes = [SIZE * (-1.7) ** (number % 5) for number in range(len(jax.tree.leaves(like)))]
    fill, params, zeros = _stand_ins(like, sizes), _stand_ins(like, PARAMETER), _stand_ins(like, 0.0)
    grads = _of_either_sign(fill)

    def traces_after(fill: Any, *grads: Any) -> list[Any]:
        return [traces for _, traces in walk(optimizer, params, by_path(fill), list(grads), value=jnp.ones(()))]

    try:
        at_rest = _tried(traces_after, zeros, *[zeros for _ in grads])
        moved = _tried(traces_after, fill, *grads)
        (remembered,) = _tried(traces_after, fill, zeros)
    except Exception:  # noqa: BLE001
        # An optimizer that cannot take the probe, for whatever reason, is not known to sum gradients.
        return [False] * len(traces_in(jax.eval_shape(optimizer.init, like)))
    return [
        _is_heavy_ball(
            by_path(fill),
            _difference(remembered[number], at_rest[0][number]),
            [by_path(grad) for grad in grads],
            [_difference(after[number], rest[number]) for after, rest in zip(moved, at_rest, strict=True)],
        )
        for number in range(len(remembered))
    ]


def _is_heavy_ball(fill: Any, remembered: Any, grads: list[Any], traces: list[Any]) -> bool | None:
    decays = {path: float(np.sum(left)) / float(np.sum(fill[path])) for path, left in remembered.items() if path in fill}
    if not any(decays.values()):
        return None
    before, good = fill, all(0.0 < decay < 1.0 + 1e-2 for decay in decays.values())
    for grad, trace in zip(grads, traces, strict=True):
        for path, decay in decays.items():
            terms = grad[path], decay * before[path]
            good &= bool(np.all(np.abs(trace[path] - sum(terms)) <= 2e-2 * sum(map(np.abs, terms))))  # a trace may be bfloat16
        before = trace
    return good


class Averages(NamedTuple):
    """What one node of an optimizer's state remembers as Adam's does.

    Attributes:
      first: the decay of its running mean of raw gradients, `mu`; None without one.
      second: the decay of its running mean of their squares, `nu`; None without one.
    """

    first: Any
    second: Any


def averages_in(state: Any) -> list[dict[str, dict[str, Any]]]:
    """The fields of every node of a state that has a `mu` or a `nu`, their leaves by path."""
    nodes = [node for node in jax.tree.leaves(state, is_leaf=_has_averages) if _has_averages(node)]
    return [{name: by_path(value) for name, value in node._asdict().items()} for node in nodes]


def filled_averages(state: Any, fills: Iterable[Mapping[str, Mapping[str, Any]]]) -> Any:
    """The state with the fields of these nodes filled, as far as each one's fill has something for their leaves."""
    rest = iter(fills)

    def fill_node(node: Any) -> Any:
        if not _has_averages(node):
            return node
        fill = next(rest)
        return node._replace(
            **{name: _filled_leaves(getattr(node, name), leaves) for name, leaves in fill.items() if name in node._fields}
        )

    return jax.tree.map(fill_node, state, is_leaf=_has_averages)


def averages(optimizer: Any, like: Any) -> list[Averages | None]:
    """Which nodes of an optimizer's state are running means of raw gradients and of their squares, and nothing else.

    With small gradients of either sign and of different sizes, in three steps in turn, `mu` must become
    decay * mu + (1 - decay) * gradient, `nu` likewise of the square, `count` one more, and whatever else the node has must stay
    as it is. Where there is a `mu` the optimizer must go against it: some measure a spread by it (`rmsprop(centered=True)`),
    and must not take thermal noise for one.

    Args:
      optimizer: an extra-args transformation.
      like: parameters or gradients; only their structure and their number of dimensions matter.

    Returns:
      of each node, in order; None for one that is anything else.
    """
    count = len(averages_in(jax.eval_shape(optimizer.init, like)))
    if not count:
        return []
    # About SIZE, but powers of two: what is left of them shows a decay to the last bit.
    sizes = [2.0**-20 * (-2.0) ** (number % 5) for number in range(len(jax.tree.leaves(like)))]
    fill, zeros = _stand_ins(like, sizes), _stand_ins(like, 0.0)
    first, second, nothing = by_path(fill), {path: leaf**2 for path, leaf in by_path(fill).items()}, by_path(zeros)
    grads = _of_either_sign(fill)

    def after(nu: Any, *grads: Any) -> list[Any]:
        fills = [{"mu": first, "nu": nu, "count": {"": np.asarray(LATE)}}] * count
        return walk_averages(optimizer, zeros, fills, grads, value=jnp.ones(()))

    try:
        # From a nu of 0: its decay may be so slow that no square would be seen beside it.
        moved = _tried(after, nothing, *grads)
        ((updates, decayed),) = _tried(after, second, zeros)
        ((_, kept),) = after(second, zeros)  # whose numbers may be traced
    except Exception:  # noqa: BLE001
        # An optimizer that cannot take the probe, for whatever reason, is not known to average gradients.
        return [None] * count

    def understood(number: int) -> Averages | None:
        start = {"mu": first, "nu": second}
        present = [name for name in start if decayed[number].get(name)]
        decays = {name: _decay(start[name], decayed[number][name]) for name in present}
        steps = [nodes[number] for _, nodes in moved]
        good = bool(present) and all(decays.values()) and _others_stand_still(steps)
        if not good:
            return None
        for name, power in (("mu", 1), ("nu", 2)):
            before = first if name == "mu" else nothing
            for grad, step in zip(map(by_path, grads), steps, strict=True):
                for path in step.get(name, {}):
                    terms = decays[name] * before[path], (1.0 - decays[name]) * grad[path] ** power
                    good &= bool(np.all(np.abs(step[name][path] - sum(terms)) <= 5e-2 * sum(map(np.abs, terms))))  # or bfloat16
                before = step.get(name, {})
        good &= all(bool(np.all(updates[path] * first[path] < 0.0)) for path in decayed[number].get("mu", {}))
        if not good:
            return None
        path = next(iter(decayed[number][present[0]]))
        # A scalar: the leaf that it is read off may have more dimensions than others have.
        return Averages(
            *((kept[number][name][path] / start[name][path]).reshape(()) if name in decays else None for name in start)
        )

    return [understood(number) for number in range(count)]


def steps_of_averages(
    optimizer: Any, like: Any, understood: list[Averages | None], squares: Mapping[str, Any], **extra_args: Any
) -> dict[str, jax.Array]:
    """How far an optimizer's first update goes down where the mean gradient is the root of its mean square.

    Args:
      optimizer: an extra-args transformation.
      like: parameters or gradients; only their structure and their number of dimensions matter.
      understood: what `averages` says of it.
      squares: one mean square a leaf, by path.
      **extra_args: of the optimizer's update.

    Returns:
      one number a leaf, by path: 0 where the step does not grow with the mean (of a sign, say), nothing where it is not known.
    """
    zeros = _stand_ins(like, 0.0)
    whole = {path: squares[path].reshape((1,) * leaf.ndim) for path, leaf in by_path(zeros).items()}

    def step(size: float) -> dict[str, Any]:
        def fill(node: Averages | None) -> dict[str, Any]:
            if node is None:
                return {}
            # A gradient of 0 lets both decay once.
            mu = {} if node.first is None else {path: size * jnp.sqrt(v) / node.first for path, v in whole.items()}
            nu = {} if node.second is None else {path: v / node.second for path, v in whole.items()}
            return {"mu": mu, "nu": nu, "count": {"": np.asarray(LATE)}}

        ((updates, _),) = walk_averages(optimizer, zeros, [fill(node) for node in understood], [zeros], **extra_args)
        return {path: -jnp.sum(update) for path, update in updates.items()}

    once, twice = step(1.0), step(2.0)
    return {
        path: jnp.where(jnp.abs(twice[path] - 2.0 * once[path]) <= 1e-2 * jnp.abs(once[path]), once[path], 0.0) for path in once
    }


def walk_averages(optimizer: Any, params: Any, fills: Any, grads: Iterable[Any], **extra_args: Any) -> list[tuple[Any, Any]]:
    """As `walk`, of what is filled by `filled_averages`."""
    return _walked(optimizer, params, filled_averages(optimizer.init(params), fills), grads, averages_in, **extra_args)


def _decay(start: Mapping[str, Any], left: Mapping[str, Any]) -> float:
    """The one share that is left of each leaf; 0 if there is no such number in (0, 1)."""
    if not left or any(path not in start or leaf.shape != start[path].shape for path, leaf in left.items()):
        return 0.0
    shares = np.asarray([np.sum(leaf, dtype=float) / np.sum(start[path]) for path, leaf in left.items()])
    return float(shares[0]) if np.all((shares > 0.0) & (shares < 1.0)) and np.ptp(shares) <= 1e-2 else 0.0


def _others_stand_still(steps: list[Mapping[str, Mapping[str, Any]]]) -> bool:
    """Whether of a node `mu` and `nu` change, its count goes up by one a step, and nothing else moves."""
    for number, step in enumerate(steps):
        for name in step.keys() - {"mu", "nu"}:
            for path, leaf in step[name].items():
                expected = LATE + 1 + number if name == "count" else steps[0][name][path]
                if not np.array_equal(leaf, expected):
                    return False
    return True


def learning_rates(optimizer: Any, like: Any, **extra_args: Any) -> dict[str, jax.Array]:
    """What an optimizer's first update multiplies its trace by, of each parameter; nothing where that cannot be read.

    Args:
      optimizer: an extra-args transformation.
      like: parameters or gradients; only their structure and their number of dimensions matter.
      **extra_args: of the optimizer's update.
    """
    zeros = _stand_ins(like, 0.0)  # parameters too: a decay of them would drown the update in rounding
    try:
        ((moved, filled_traces),) = walk(optimizer, zeros, by_path(_stand_ins(like, SIZE)), [zeros], **extra_args)
        ((moved_at_rest, empty_traces),) = walk(optimizer, zeros, {}, [zeros], **extra_args)
    except Exception:  # noqa: BLE001
        # An optimizer that cannot take the probe, for whatever reason, has no rate that could be read.
        return {}
    wide = jnp.result_type(float)
    kept: dict[str, Any] = {}
    for trace in map(_difference, filled_traces, empty_traces):
        kept |= {path: jnp.sum(left, dtype=wide) + kept.get(path, 0.0) for path, left in trace.items()}
    moved = _difference(moved, moved_at_rest)
    return {
        path: jnp.where(left > 0.0, -jnp.sum(moved[path], dtype=wide) / jnp.where(left > 0.0, left, 1.0), 0.0)
        for path, left in kept.items()
        if path in moved
    }


def heavy_ball_decay(optimizer: Any) -> Any:
    """The decay of an optimizer that begins with a heavy-ball `optax.trace` on the raw gradient, None for any other.

    Its state must be that of a chain whose first link is a `TraceState` and whose others hold scalars at most, none of which is
    made of the parameters, and on probes of sizes from 1e-12 to 1e12 its trace must be gradient + decay * trace, and its update
    a function of the new trace alone (Nesterov's is not).

    Hyperparameters that are traced, as `optax.inject_hyperparams` makes them, have no value to look at: some number is put in
    the place of each, so that the answer is the same inside and outside `jit`. The decay is then traced as well.
    """
    # In float64, so that the decay is the optimizer's own number and not its float32 rounding; of NumPy, so that it has a value
    # also under jit.
    size = np.asarray([1e-12, 1e-6, 1.0, 1e6, 1e12])
    probe = {"matrix": -0.7 * np.ones((2, 5)) * size, "vector": size}
    zeros, ones = jax.tree.map(np.zeros_like, probe), jax.tree.map(np.ones_like, probe)

    def step(grads: Any, trace: Any) -> tuple[Any, Any]:
        ((updates, (trace,)),) = walk(optimizer, probe, by_path(trace), [grads], value=jnp.ones(()))
        return tuple(updates.values()), tuple(trace.values())

    try:
        with compat.enable_x64(True):
            first, *rest = jax.eval_shape(optimizer.init, probe)
            if not isinstance(first, optax.TraceState) or any(leaf.ndim > 0 for leaf in jax.tree.leaves(rest)):
                return None
            if any(kept_parameters(optimizer.init, probe)):
                return None
            decay = _tried(step, zeros, ones)[1][1][2]
            grads = jax.tree.map(lambda p: 0.3 * p[..., ::-1], probe)
            updates, trace = _tried(step, grads, probe)
            expected = tuple(jax.tree.leaves(jax.tree.map(lambda g, t: g + decay * t, grads, probe)))
            alone = jax.tree.unflatten(jax.tree.structure(probe), trace)
            same_trace = _alike(trace, expected)
            same_updates = _alike(updates, _tried(step, alone, zeros)[0])
            if not (same_trace and same_updates):
                return None
            traced = any(isinstance(const, Tracer) for const in jax.make_jaxpr(step)(zeros, ones).consts)
        return step(zeros, ones)[1][1][2] if traced else float(decay)
    except Exception:  # noqa: BLE001
        # An optimizer that cannot take the probe, for whatever reason, is served by the general case.
        return None


def _alike(ours: Iterable[Any], theirs: Iterable[Any]) -> bool:
    """In NumPy, which has an answer under `jit` too."""
    return all(np.allclose(one, other, rtol=1e-6, atol=0.0) for one, other in zip(ours, theirs, strict=True))


def _tried(function: Callable[..., Any], *args: Any) -> Any:
    """What `function` returns, in NumPy and at once also under `jit`, with some number for each traced value that it has."""
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    with jax.ensure_compile_time_eval():
        evaluate = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, [_stand_in(const) for const in program.consts]))
        return jax.tree.unflatten(jax.tree.structure(shapes), [np.asarray(x) for x in evaluate(*jax.tree.leaves(args))])


def _stand_in(const: Any) -> Any:
    """A number in the place of one that is not known yet."""
    return jnp.full(const.shape, 0.37).astype(const.dtype) if isinstance(const, Tracer) else const


def _stand_ins(like: Any, sizes: Any) -> Any:
    """One number in the place of each leaf, with as many dimensions, in the widest float there is."""
    leaves, structure = jax.tree.flatten(like)
    sizes = np.broadcast_to(np.asarray(sizes, jnp.result_type(float)), len(leaves))
    return jax.tree.unflatten(structure, [np.full((1,) * x.ndim, size) for x, size in zip(leaves, sizes, strict=True)])


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    return {path: first[path] - second[path] for path in first}


def _has_traces(optimizer: Any, like: Any) -> bool:
    return bool(traces_in(jax.eval_shape(optimizer.init, like)))


def _has_averages(node: Any) -> bool:
    return isinstance(node, tuple) and bool({"mu", "nu"} & set(getattr(node, "_fields", ())))


def _is_trace(node: Any) -> bool:
    return isinstance(node, optax.TraceState)
