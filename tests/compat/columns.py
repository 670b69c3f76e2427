"""The columns of the gauntlet: ways in which a transformation is used. Each is a function of a row that raises if it fails.

None asks a row for its name. What a row or a wrapper cannot do is data (`Row.refuses`, `Row.needs_value`, `forwards_value`),
and then the error is checked instead.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import chex
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import ctld_optax
from ctld_optax._arrays import compat

from .rows import Refusal, Row

STEPS = 4  # the phase switches of the rows lie after step 2
MISSING = Refusal(TypeError, "ctld needs the loss at every step")


@dataclasses.dataclass(frozen=True)
class Column:
    name: str
    check: Callable[[Row], None]
    forwards_value: bool = True

    def refusal(self, row: Row) -> Refusal | None:
        if row.needs_value and not self.forwards_value:
            return MISSING
        return row.refuses.get(self.name)


COLUMNS: list[Column] = []


def column(name: str, *, forwards_value: bool = True) -> Callable[[Callable[[Row], None]], Callable[[Row], None]]:
    def add(check: Callable[[Row], None]) -> Callable[[Row], None]:
        COLUMNS.append(Column(name, check, forwards_value))
        return check

    return add


def parameters(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3).astype(dtype), "b": jnp.ones((3,), dtype)}


def loss_fn(params: Any) -> jax.Array:
    # In float32 at least: the loss itself is not what is tested.
    return 0.5 * sum(jnp.sum(jnp.square(p.astype(jnp.promote_types(p.dtype, jnp.float32)))) for p in jax.tree.leaves(params))


def value_and_grads(params: Any) -> tuple[jax.Array, Any]:
    """`jax.value_and_grad(loss_fn)` without autodiff, which is not what is tested either: the gradient of |p|^2 / 2 is p."""
    return loss_fn(params), params


def train(tx: Any, params: Any, steps: int = STEPS, state: Any = None, extra: Any = None) -> tuple[Any, Any]:
    """Params and state after some jitted steps."""
    extra = {} if extra is None else extra

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        value, grads = value_and_grads(params)
        updates, state = tx.update(grads, state, params, value=value, **extra)
        return optax.apply_updates(params, updates), state

    state = tx.init(params) if state is None else state
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@functools.cache
def plain_run(row: Row) -> tuple[Any, Any]:
    """What the unwrapped transformation does in `STEPS` steps. Remembered: compiling is what takes the time."""
    return train(row.make(), parameters())


@functools.cache
def plain_update(row: Row) -> tuple[Any, Any]:
    """Updates and state of its first step."""
    tx, params = row.make(), parameters()
    value, grads = value_and_grads(params)
    return jax.jit(tx.update)(grads, tx.init(params), params, value=value)


def raw(tree: Any) -> Any:
    """Typed keys as their data, so that trees can be compared."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)


def same(ours: Any, theirs: Any, rtol: float = 0.0) -> None:
    """Equal structure, dtypes and values: bit for bit, or to rtol (of each leaf's largest entry, hence no atol)."""
    ours, theirs = raw(ours), raw(theirs)
    chex.assert_trees_all_equal_structs(ours, theirs)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a64, b64 = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a64, b64, rtol=0.0, atol=rtol * np.abs(b64).max(initial=0.0))


# Two compiled programs for one formula may contract a * b + c differently: a last bit each step, amplified by
# the standardized coupling, which divides by a small standard deviation in its first steps.
ROUND_OFF = 1e-4


def differ(a: Any, b: Any) -> None:
    assert not np.allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-3, atol=0.0)


def moved(params: Any, start: Any) -> None:
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True):
        assert a.size == 0 or not np.array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))
        assert np.all(np.isfinite(np.asarray(a, np.float64)))


@column("jit, one trace")
def _(row: Row) -> None:
    tx, params, traces = row.make(), parameters(), []

    @jax.jit
    def step(params, state):
        traces.append(1)
        value, grads = value_and_grads(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    assert len(traces) == 1


@column("jit equals eager")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()
    state = tx.init(params)
    for _ in range(STEPS):
        value, grads = value_and_grads(params)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
    same((params, state), plain_run(row), rtol=ROUND_OFF)


@column("scan")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()

    def step(carry, _):
        params, state = carry
        value, grads = value_and_grads(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    scanned, _ = jax.lax.scan(step, (params, tx.init(params)), length=STEPS)
    same(scanned, plain_run(row), rtol=ROUND_OFF)


@column("cond: dtypes are a fixed point")
def _(row: Row) -> None:
    # The value comes in a foreign dtype; a state that took it on would not fit the other branch.
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        tx, params = row.make(), parameters(dtype)

        @jax.jit
        def step(flag, params, state, tx=tx):
            value, grads = value_and_grads(params)
            value = value.astype(jnp.float16)
            return jax.lax.cond(
                flag, lambda: tx.update(grads, state, params, value=value), lambda: (optax.tree.zeros_like(params), state)
            )

        _, new_state = step(True, params, tx.init(params))
        _, kept = step(False, params, new_state)
        same(kept, new_state)


@column("vmap over replicas")
def _(row: Row) -> None:
    params, keys = parameters(), jax.random.split(jax.random.key(7), 3)

    def run(key):
        tx = row.make(key=key)
        state, moving = tx.init(params), params
        for _ in range(STEPS):
            value, grads = value_and_grads(moving)
            updates, state = tx.update(grads, state, moving, value=value)
            moving = optax.apply_updates(moving, updates)
        return moving, state

    replicas = jax.jit(jax.vmap(run))(keys)
    same(jax.tree.map(lambda x: x[1], replicas), jax.jit(run)(keys[1]), rtol=ROUND_OFF)
    differ(replicas[0]["w"][0], replicas[0]["w"][1])


@column("vmap over one state")
def _(row: Row) -> None:
    # One transformation for all replicas, states from `init` under vmap: the recipe of the docs.
    params, keys = parameters(), jax.random.split(jax.random.key(7), 3)
    tx = row.make()
    states = jax.vmap(lambda key: row.make(key=key).init(params))(keys)
    value, grads = value_and_grads(params)
    update = jax.vmap(lambda state: tx.update(grads, state, params, value=value))
    updates, _ = jax.jit(update)(states)
    differ(updates["w"][0], updates["w"][1])


@column("chain, after another")
def _(row: Row) -> None:
    decayed = optax.chain(optax.add_decayed_weights(0.1), row.make())
    params = parameters()
    value, grads = value_and_grads(params)
    updates, _ = jax.jit(decayed.update)(grads, decayed.init(params), params, value=value)
    tx = row.make()
    by_hand = jax.tree.map(lambda g, p: g + 0.1 * p, grads, params)
    expected, _ = jax.jit(tx.update)(by_hand, tx.init(params), params, value=value)
    same(updates, expected, rtol=ROUND_OFF)


@column("chain, before another")
def _(row: Row) -> None:
    halved, params = optax.chain(row.make(), optax.scale(0.5)), parameters()
    value, grads = value_and_grads(params)
    updates, _ = jax.jit(halved.update)(grads, halved.init(params), params, value=value)
    same(updates, jax.tree.map(lambda u: 0.5 * u, plain_update(row)[0]), rtol=ROUND_OFF)


@column("masked")
def _(row: Row) -> None:
    params = parameters()
    value, grads = value_and_grads(params)
    masked = optax.masked(row.make(), {"w": True, "b": False})
    state = masked.init(params)
    tx = row.make()
    alone, alone_state = {"w": params["w"]}, tx.init({"w": params["w"]})
    update, update_alone = jax.jit(masked.update), jax.jit(tx.update)
    for _ in range(STEPS):
        updates, state = update(grads, state, params, value=value)
        expected, alone_state = update_alone({"w": grads["w"]}, alone_state, alone, value=value)
    same(updates, {"w": expected["w"], "b": grads["b"]}, rtol=ROUND_OFF)


@column("partition, two groups")
def _(row: Row) -> None:
    params = {"first": jnp.ones((4, 5)), "second": jnp.ones((4, 5))}
    value, grads = value_and_grads(params)
    labels = {"first": "a", "second": "b"}

    def updates_with(key_a, key_b):
        tx = optax.partition({"a": row.make(key=key_a), "b": row.make(key=key_b)}, labels)
        return jax.jit(tx.update)(grads, tx.init(params), params, value=value)[0]

    # A key for each group, as the docs say: equal gradients, different noise.
    updates = updates_with(*jax.random.split(jax.random.key(3)))
    differ(updates["first"], updates["second"])
    alone = row.make(key=jax.random.split(jax.random.key(3))[1])
    second = jax.jit(alone.update)(grads["second"], alone.init(params["second"]), params["second"], value=value)[0]
    same(updates["second"], second, rtol=ROUND_OFF)
    # One key for both draws the same noise twice: the docs warn of it, and this would tell if it were no longer so.
    updates = updates_with(3, 3)
    same(updates["first"], updates["second"], rtol=ROUND_OFF)


@column("MultiSteps: equal to one step if the value is")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()
    wrapped = optax.MultiSteps(tx, every_k_schedule=4)
    value, grads = value_and_grads(params)
    state = wrapped.init(params)
    update = jax.jit(wrapped.update)
    for micro_step in range(4):
        updates, state = update(grads, state, params, value=value)
        if micro_step < 3:
            same(updates, optax.tree.zeros_like(grads))
    same((updates, state.inner_opt_state), plain_update(row), rtol=ROUND_OFF)


@column("accumulate: mean value, one draw")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()
    wrapped = ctld_optax.accumulate(tx, 4)
    _, grads = value_and_grads(params)
    state = wrapped.init(params)
    update = jax.jit(wrapped.update)
    for scale, value in ((0.0, 1.0), (2.0, 2.0), (3.0, 3.0), (-1.0, 6.0)):
        micro = jax.tree.map(lambda g, scale=scale: scale * g, grads)
        updates, state = update(micro, state, params, value=jnp.float32(value))
    expected, expected_state = jax.jit(tx.update)(grads, tx.init(params), params, value=jnp.float32(3.0))
    # Bit for bit but for round-off: one key was used up, and the energy that alpha saw is the mean.
    same((updates, state.inner), (expected, expected_state), rtol=ROUND_OFF)
    assert int(state.num_updates) == 1
    assert int(state.micro_step) == 0


@column("apply_if_finite")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()
    guarded = optax.apply_if_finite(tx, max_consecutive_errors=3)
    value, grads = value_and_grads(params)
    state = guarded.init(params)
    update = jax.jit(guarded.update)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    updates, state = update(bad, state, params, value=value)
    same(updates, optax.tree.zeros_like(grads))
    updates, state = update(grads, state, params, value=value)
    same((updates, state.inner_state), plain_update(row), rtol=ROUND_OFF)


@column("value that is not finite")
def _(row: Row) -> None:
    # apply_if_finite looks at gradients only; a NaN loss with finite gradients must not spoil the state for good.
    tx, params = row.make(), parameters()
    value, grads = value_and_grads(params)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for bad in (jnp.nan, jnp.inf, 1.0):
        updates, state = update(grads, state, params, value=value * bad)
    for leaf in jax.tree.leaves(raw((updates, state))):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64)))


@column("skip_not_finite")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()
    wrapped = optax.MultiSteps(tx, 2, should_skip_update_fn=optax.skip_not_finite)
    value, grads = value_and_grads(params)
    bad = jax.tree.map(lambda g: g * jnp.inf, grads)
    state = wrapped.init(params)
    update = jax.jit(wrapped.update)
    for g in (grads, bad, grads):
        updates, state = update(g, state, params, value=value)
    same((updates, state.inner_opt_state), plain_update(row), rtol=ROUND_OFF)


def injected(row: Row) -> Any:
    # Integers that fix a branch or a shape must reach the factory as integers, also by default: `static_args`, as in the docs.
    bound = inspect.signature(row.factory).bind(**row.kwargs)
    bound.apply_defaults()
    integers = tuple(name for name, number in bound.arguments.items() if isinstance(number, int) and name != "key")
    return optax.inject_hyperparams(row.factory, static_args=integers)(**row.kwargs)


@column("inject_hyperparams: equal to plain")
def _(row: Row) -> None:
    params, state = train(injected(row), parameters())
    same((params, state.inner_state), plain_run(row), rtol=ROUND_OFF)


@column("inject_hyperparams: changed, no second trace")
def _(row: Row) -> None:
    tx, params, traces = injected(row), parameters(), []

    @jax.jit
    def step(state):
        traces.append(1)
        value, grads = value_and_grads(params)
        return tx.update(grads, state, params, value=value)

    state = tx.init(params)
    step(state)
    changed = {name: 2.0 * state.hyperparams[name] for name in ("learning_rate", "temperature") if name in state.hyperparams}
    updates, _ = step(state._replace(hyperparams=state.hyperparams | changed))
    plain = row.make(**{name: float(number) for name, number in changed.items()})
    value, grads = value_and_grads(params)
    # The first state was made with the old figures (a stationary momentum is drawn with them).
    expected, _ = jax.jit(plain.update)(grads, row.make().init(params), params, value=value)
    same(updates, expected, rtol=ROUND_OFF)
    assert len(traces) == 1


@column("learning-rate schedule")
def _(row: Row) -> None:
    constant = optax.constant_schedule(row.kwargs["learning_rate"])
    same(train(row.make(learning_rate=constant), parameters())[0], plain_run(row)[0], rtol=ROUND_OFF)
    decaying = optax.exponential_decay(row.kwargs["learning_rate"], 1, 0.5)
    differ(train(row.make(learning_rate=decaying), parameters())[0]["w"], plain_run(row)[0]["w"])


@column("lookahead", forwards_value=False)
def _(row: Row) -> None:
    # It hands no extra arguments on.
    tx = optax.lookahead(row.make(), sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(parameters())
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(params.fast, state, params)
        params = optax.apply_updates(params, updates)
    # After a period both are where the slow weights have gone: half the way of the plain run.
    inner = row.make()
    plain, plain_state = parameters(), inner.init(parameters())
    update = jax.jit(inner.update)
    for _ in range(2):
        updates, plain_state = update(plain, plain_state, plain)
        plain = optax.apply_updates(plain, updates)
    half = jax.tree.map(lambda a, b: 0.5 * (a + b), parameters(), plain)
    same(params.slow, half, rtol=ROUND_OFF)
    same(params.fast, half, rtol=ROUND_OFF)


@column("schedule_free")
def _(row: Row) -> None:
    # Right as an optimizer: its z-sequence moves by our updates. No sampler any more: the gradient is not that at z.
    wrapped, inner = contrib.schedule_free(row.make(), learning_rate=1e-2), row.make()
    params = z = parameters()
    state, inner_state = wrapped.init(params), inner.init(params)
    update, inner_update = jax.jit(wrapped.update), jax.jit(inner.update)
    for _ in range(STEPS):
        value, grads = value_and_grads(params)
        updates, inner_state = inner_update(grads, inner_state, params, value=value)
        z = optax.apply_updates(z, updates)
        updates, state = update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        same(state.z, z, rtol=ROUND_OFF)
    moved(contrib.schedule_free_eval_params(state, params), parameters())


@column("mechanize")
def _(row: Row) -> None:
    # By default its learnt scale starts at 1e-6 and has to grow before float32 parameters move, which hangs on the noise.
    params, state = train(contrib.mechanize(row.make(), s_init=1e-2), parameters(), steps=100)
    moved(params, parameters())
    assert jnp.all(jnp.isfinite(state.s))


@column("reduce_on_plateau")
def _(row: Row) -> None:
    params, _ = train(optax.chain(row.make(), contrib.reduce_on_plateau()), parameters())
    same(params, plain_run(row)[0], rtol=ROUND_OFF)  # it has seen no plateau


@column("sam (opaque)", forwards_value=False)
def _(row: Row) -> None:
    # It hands no extra arguments on.
    inner = row.make()
    tx = contrib.sam(inner, optax.sgd(1e-2), sync_period=2, opaque_mode=True)
    params = parameters()
    grad_fn = lambda params, _: value_and_grads(params)[1]
    updates, _ = tx.update(grad_fn(params, 0), tx.init(params), params, grad_fn=grad_fn)
    moved(optax.apply_updates(params, updates), params)


@column("split_real_and_imaginary", forwards_value=False)
def _(row: Row) -> None:
    # It hands no extra arguments on.
    params = jnp.asarray([1.0 + 2.0j, -3.0 + 0.5j])
    tx, inner = contrib.split_real_and_imaginary(row.make()), row.make()
    updates, _ = tx.update(params, tx.init(params), params)
    parts = contrib._complex_valued.SplitRealAndImaginaryArrays(params.real, params.imag)
    expected, _ = inner.update(parts, inner.init(parts), parts)
    same((updates.real, updates.imag), (expected.real, expected.imaginary), rtol=ROUND_OFF)


@column("unknown extra arguments")
def _(row: Row) -> None:
    unknown = {"something_no_one_expects": 1}
    same(train(row.make(), parameters(), extra=unknown), plain_run(row))


@column("abstract init")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()
    abstract = jax.eval_shape(tx.init, jax.eval_shape(lambda: params))
    concrete = tx.init(params)
    _, updated = train(tx, params)
    for state in (concrete, updated):
        chex.assert_trees_all_equal_structs(abstract, state)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(abstract))


@column("donation")
def _(row: Row) -> None:
    key = jax.random.key(5)
    tx, params = row.make(key=key), jax.tree.map(jnp.copy, parameters())

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        value, grads = value_and_grads(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    leaves = jax.tree.leaves(raw(state))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]
    assert len(set(buffers)) == len(buffers)
    for _ in range(STEPS):
        params, state = step(params, state)
    same((params, state), train(row.make(key=key), parameters()), rtol=ROUND_OFF)
    jax.random.normal(key, ())  # the caller's key is still his


@column("optax.tree.get and set")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()
    _, state = train(tx, params)
    counts = optax.tree.get_all_with_path(state, "count")
    assert counts
    for name in ("alpha", "key"):
        if optax.tree.get_all_with_path(state, name):
            changed = optax.tree.set(state, **{name: optax.tree.get(state, name)})
            same(changed, state)
    changed = optax.tree.set(state, count=jnp.int32(100))
    assert int(optax.tree.get_all_with_path(changed, "count")[0][1]) == 100
    train(tx, params, state=changed)


@column("tree_map_params")
def _(row: Row) -> None:
    tx, params = row.make(), parameters()
    _, state = train(tx, params)
    same(optax.tree.map_params(tx, lambda x: x, state), state)
    # It finds the leaves that are like parameters (the momentum), and no others.
    marked = optax.tree.map_params(tx, lambda _: "params", state, transform_non_params=lambda _: "other")
    found = [mark for mark in jax.tree.leaves(marked) if mark == "params"]
    like_params = [leaf for leaf in jax.tree.leaves(state) if leaf.shape in {(2, 3), (3,)}]
    assert len(found) == len(like_params) > 0


@column("debug_key_reuse")
def _(row: Row) -> None:
    with jax.debug_key_reuse(True):
        train(row.make(key=jax.random.key(3)), parameters())
        train(row.make(key=jax.random.key(3)), parameters(jnp.bfloat16))


@column("debug_nans")
def _(row: Row) -> None:
    with jax.debug_nans(True), jax.debug_infs(True):
        train(row.make(), parameters())


@column("strict promotion")
def _(row: Row) -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        tx, params = row.make(), parameters(dtype)
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            jax.jit(tx.update)(params, tx.init(params), params, value=jnp.float32(1.0))


@column("x64")
def _(row: Row) -> None:
    narrow = plain_run(row)
    with compat.enable_x64(True):
        # float32 parameters keep a float32 state, and the same trajectory.
        wide = train(row.make(), parameters(jnp.float32))
        same(wide[0], narrow[0], rtol=ROUND_OFF)
        assert {leaf.dtype for leaf in jax.tree.leaves(wide[1])} == {leaf.dtype for leaf in jax.tree.leaves(narrow[1])}
        params, state = train(row.make(), parameters(jnp.float64))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}
        assert not any(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))
        moved(params, parameters())


@column("bfloat16 and mixed trees")
def _(row: Row) -> None:
    mixed = {"w": parameters()["w"], "b": parameters(jnp.bfloat16)["b"], "h": jnp.ones((4,), jnp.float16)}
    for start in (parameters(jnp.bfloat16), mixed):
        tx = row.make()
        value, grads = value_and_grads(start)
        updates, _ = jax.jit(tx.update)(grads, tx.init(start), start, value=value)
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, start)
        moved(train(tx, start, steps=20)[0], start)


@column("scalar and zero-size leaves")
def _(row: Row) -> None:
    start = {"scalar": jnp.float32(1.0), "empty": jnp.zeros((0, 3)), "w": jnp.ones((3,))}
    params, _ = train(row.make(), start)
    moved(params, start)
    assert params["empty"].shape == (0, 3)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["scale", "shift"], meta_fields=["name"])
@dataclasses.dataclass
class Layer:
    scale: jax.Array
    shift: jax.Array
    name: str = "layer"


@column("nested containers")
def _(row: Row) -> None:
    frozen = flax.core.FrozenDict({"kernel": jnp.ones((2, 2))})
    start = {"list": [jnp.ones((2,)), (jnp.ones(()),)], "layer": Layer(jnp.ones((3,)), jnp.ones((3,))), "frozen": frozen}
    params, _ = train(row.make(), start)
    chex.assert_trees_all_equal_structs(params, start)
    moved(params, start)
    # The containers are only containers: the same leaves in a list have the same trajectory.
    flat, _ = train(row.make(), jax.tree.leaves(start))
    same(jax.tree.leaves(params), flat, rtol=ROUND_OFF)


@column("None leaves")
def _(row: Row) -> None:
    params, _ = train(row.make(), {"w": jnp.ones((3,)), "bias": None})
    assert params["bias"] is None
    same(params["w"], train(row.make(), {"w": jnp.ones((3,))})[0]["w"], rtol=ROUND_OFF)


@column("gradients of another dtype")
def _(row: Row) -> None:
    # Mixed precision: float32 parameters, bfloat16 gradients. Updates have the gradients' dtype, the state does not take it on.
    tx, params = row.make(), parameters()
    value, grads = value_and_grads(params)
    state = tx.init(params)
    updates, new_state = jax.jit(tx.update)(optax.tree.cast(grads, jnp.bfloat16), state, params, value=value)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_equal_shapes_and_dtypes(raw(new_state), raw(state))


@column("optimizes when cold")
def _(row: Row) -> None:
    # Four targets as in Optax's contrib suite; a sampler without noise is an optimizer. 3e-2 is Optax's own tolerance.
    def rosenbrock(p):
        return jnp.square(1.0 - p[0]) + 100.0 * jnp.square(p[1] - jnp.square(p[0]))

    def distance(end):
        return lambda p: sum(jnp.sum(jnp.square(a - b)) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(end), strict=True))

    ends = (jnp.asarray([1.0, -1.0, 1.0]), jnp.asarray([[3.0, -2.0], [1.0, 4.0]]), (jnp.ones((3,)), -jnp.ones((2, 2))))
    problems = [(distance(end), optax.tree.zeros_like(end), end) for end in ends]
    problems.append((rosenbrock, jnp.zeros((2,)), jnp.ones((2,))))
    for loss, start, end in problems:
        tx = row.make(learning_rate=1e-3, **row.cold)

        def step(carry, _, tx=tx, loss=loss):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=20_000)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-2, atol=3e-2), params, end)


@column("checkpoint through msgpack")
def _(row: Row) -> None:
    tx = row.make()
    params, state = train(tx, parameters(), steps=2)
    payload = flax.serialization.msgpack_serialize(ctld_optax.checkpoint.state_to_arrays((params, state)))
    fresh = (parameters(), row.make(key=99).init(parameters()))
    restored = ctld_optax.checkpoint.state_from_arrays(flax.serialization.msgpack_restore(payload), fresh)
    same(train(tx, restored[0], state=restored[1]), train(tx, params, state=state))
