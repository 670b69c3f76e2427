"""One trajectory on 1, 2, 4 and 8 devices, in each of JAX's ways to cut arrays. A program: it needs devices of its own.

`python -m tests.compat.devices` prints the comparison and, with `--out FILE`, saves it as JSON for test_devices.py. With
`--process I --port PORT` it is process I of two that run one trajectory together.
"""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

DEVICES_PER_PROCESS = {1: 8, 2: 2}
STEPS = 60


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--process", type=int)
    parser.add_argument("--port", type=int)
    return parser.parse_args()


if __name__ == "__main__":  # before JAX starts its backend
    ARGS = arguments()
    count = DEVICES_PER_PROCESS[1 if ARGS.process is None else 2]
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ctld_optax

# Fully sharded, in the first, the last and no dimension; `b` is replicated.
SPECS = {"w": P("shards", None), "v": P(None, "shards"), "b": P()}


def parameters() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"w": (16, 6), "v": (5, 24), "b": (7,)}
    return {name: jax.random.normal(key, shape) for (name, shape), key in zip(shapes.items(), keys, strict=True)}


def samplers(specs: Any = None) -> dict[str, optax.GradientTransformationExtraArgs]:
    # Alpha moves fast enough to leave the window in which the energy does not act on it.
    clock = {"alpha_step_size": 0.1, "initial_momentum": "stationary"}
    sampler = ctld_optax.ctld(0.05, 0.01, 0.9, key=3, param_specs=specs, **clock)
    return {
        "ctld": sampler,
        "sghmc": ctld_optax.ctld(0.05, 0.01, 0.9, key=3, tempering=None, param_specs=specs),
        "switch": ctld_optax.phase_switch(sampler, optax.sgd(0.05, momentum=0.9), STEPS // 2),
    }


def loss_and_grads(params: Any, total: Any) -> tuple[jax.Array, Any]:
    """A gradient without communication, so that every collective in the program is the update's or the loss's sum."""
    sums = jax.tree.map(lambda p: 0.5 * jnp.sum(p * p), params)
    return total(sums), params


def sum_whole(sums: Any) -> jax.Array:
    return sum(jax.tree.leaves(sums))


def sum_blocks(sums: Any) -> jax.Array:
    return jax.lax.psum(sums["w"] + sums["v"], "shards") + sums["b"]


def run_steps(tx: Any, total: Any) -> Any:
    def run(params: Any, state: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            value, grads = loss_and_grads(params, total)
            updates, state = tx.update(grads, state, params, value=value)
            alpha = optax.tree.get(state, "alpha")
            return (optax.apply_updates(params, updates), state), alpha

        (params, state), alphas = jax.lax.scan(step, (params, state), length=STEPS)
        return params, state, alphas

    return run


def mesh_of(count: int, axis_type: AxisType) -> Any:
    return jax.make_mesh((count,), ("shards",), axis_types=(axis_type,), devices=jax.devices()[:count])


def state_specs(state: Any) -> Any:
    """Specs of a state: like the parameters where it is like them, replicated elsewhere."""
    trees = {"momentum", "trace"}

    def spec(path: Any, _: Any) -> Any:
        names = [getattr(key, "name", getattr(key, "key", None)) for key in path]
        return SPECS[names[-1]] if trees & set(names) else P()

    return jax.tree_util.tree_map_with_path(spec, state)


def trajectory(name: str, way: str, count: int) -> dict[str, Any]:
    """Runs `STEPS` steps on `count` devices, cut in the given way."""
    mesh = mesh_of(count, AxisType.Explicit if way == "explicit" else AxisType.Auto)
    tx = samplers(SPECS if way == "shard_map" else None)[name]
    total = sum_blocks if way == "shard_map" else sum_whole
    run = run_steps(tx, total)
    with jax.set_mesh(mesh):
        place = lambda tree, specs: jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
        params = place(parameters(), SPECS)
        state = tx.init(params)
        kept = cut_alike(params, state)
        if way == "shard_map":
            specs = state_specs(state)
            run = jax.shard_map(run, in_specs=(SPECS, specs), out_specs=(SPECS, specs, P()))
        compiled = jax.jit(run).lower(params, state).compile()
        params, state, alphas = compiled(params, state)
        kept = kept and cut_alike(params, state)
    return {
        "alpha": np.asarray(alphas),
        "params": params,
        "collectives": collectives(compiled.as_text()),
        "sharding kept": kept,
    }


def cut_alike(params: Any, state: Any) -> bool:
    """Whether every leaf of the state that has the shape of a parameter is cut like it."""
    by_shape = {p.shape: p.sharding for p in jax.tree.leaves(params)}
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.shape in by_shape]
    return bool(leaves) and all(leaf.sharding.is_equivalent_to(by_shape[leaf.shape], leaf.ndim) for leaf in leaves)


def collectives(hlo: str) -> list[str]:
    """Kind and result of every collective operation in a compiled program, such as `all-reduce f32[]`."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter|ragged-all-to-all"
    found = re.findall(rf"= (\([^)]*\)|\S+) ({kinds})(?:-start)?\(", hlo)
    return sorted({f"{kind} {re.sub(r'{[^}]*}', '', shape)}" for shape, kind in found})


def compare() -> list[dict[str, Any]]:
    results = []
    for name in samplers():
        reference = trajectory(name, "auto", 1)
        for way in ("auto", "explicit", "shard_map"):
            for count in (1, 2, 4, 8) if way != "explicit" else (2, 8):
                ours = trajectory(name, way, count)
                errors = jax.tree.map(
                    lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), ours["params"], reference["params"]
                )
                results.append(
                    {
                        "name": name,
                        "way": way,
                        "count": count,
                        "alpha range": float(np.abs(ours["alpha"]).max()),
                        "alpha error": float(np.abs(ours["alpha"] - reference["alpha"]).max()),
                        "params error": max(errors.values()),
                        "collectives": ours["collectives"],
                        "sharding kept": ours["sharding kept"],
                    }
                )
                print(json.dumps(results[-1]), flush=True)
    return results


def data_parallel(count: int, *, manual: bool) -> Any:
    """The batch cut and the parameters replicated; under `shard_map` the user averages loss and gradients."""
    mesh = mesh_of(count, AxisType.Auto)
    tx = samplers()["ctld"]
    inputs = jax.random.normal(jax.random.key(1), (64, 4))
    targets = jnp.sin(inputs[:, :1])

    def run(params: Any, state: Any, inputs: Any, targets: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            # Each shard differentiates its own loss: the parameters must first be marked as differing between shards.
            local = jax.lax.pcast(params, "shards", to="varying") if manual else params
            value, grads = jax.value_and_grad(lambda p: jnp.mean(jnp.square(jnp.tanh(inputs @ p["w"]) @ p["v"] - targets)))(
                local
            )
            if manual:
                value, grads = jax.lax.pmean((value, grads), "shards")
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), state.alpha

        return jax.lax.scan(step, (params, state), length=STEPS)

    with jax.set_mesh(mesh):
        keys = jax.random.split(jax.random.key(2))
        params = {"w": jax.random.normal(keys[0], (4, 8)), "v": jax.random.normal(keys[1], (8, 1))}
        cut = NamedSharding(mesh, P("shards"))
        if manual:
            run = jax.shard_map(run, in_specs=(P(), P(), P("shards"), P("shards")), out_specs=P())
        batch = jax.device_put((inputs, targets), cut)
        compiled = jax.jit(run).lower(params, tx.init(params), *batch).compile()
        (params, _), alphas = compiled(*jax.device_put((params, tx.init(params)), NamedSharding(mesh, P())), *batch)
    return np.concatenate([np.asarray(params["w"]).ravel(), np.asarray(alphas)]), collectives(compiled.as_text())


def compare_data_parallel() -> list[dict[str, Any]]:
    reference, _ = data_parallel(1, manual=False)
    results = []
    for count, manual in ((2, False), (8, False), (8, True)):
        ours, found = data_parallel(count, manual=manual)
        results.append({"count": count, "manual": manual, "error": float(np.abs(ours - reference).max()), "collectives": found})
        print(json.dumps(results[-1]), flush=True)
    return results


def walkers_on_a_mesh() -> dict[str, float]:
    """Eight walkers with one bias, two on each of four devices, against `vmap` on one; and without the sum over devices."""
    from . import test_walkers as walkers  # noqa: PLC0415 - only here

    mesh = jax.make_mesh((4,), ("hosts",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    carry = jax.vmap(walkers.start)(jax.random.split(jax.random.key(3), 8))
    _, one = jax.jit(jax.vmap(walkers.step, axis_name="walkers"))(carry)
    error = {}
    for name, axes in (("both axes", ("walkers", "hosts")), ("vmapped axis only", "walkers")):
        _, state = walkers.step_on_mesh(mesh, carry, axes)
        error[name] = float(jnp.abs(state.bias - one.bias).max())
    return error


def equal(ours: Any, theirs: Any) -> bool:
    """Bit for bit, keys by their data."""

    def bits(tree: Any) -> list[np.ndarray]:
        is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]

    return all(np.array_equal(x, y) for x, y in zip(bits(ours), bits(theirs), strict=True))


def sharded_checkpoints() -> dict[str, bool]:
    """Whether a cut state comes back the same, cut the same, and goes on the same: through Orbax, and as plain arrays."""
    import tempfile  # noqa: PLC0415 - only here

    import orbax.checkpoint as ocp  # noqa: PLC0415

    mesh = mesh_of(8, AxisType.Auto)
    tx = samplers()["switch"]
    run = jax.jit(run_steps(tx, sum_whole))
    place = lambda tree: jax.device_put(tree, {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()})
    with jax.set_mesh(mesh):
        params = place(parameters())
        saved = run(params, tx.init(params))[:2]
        # A pattern with other numbers in it.
        fresh = jax.tree.map(lambda x: x, (place(optax.tree.zeros_like(params)), tx.init(params)))
        with tempfile.TemporaryDirectory() as directory, ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(Path(directory) / "orbax", saved)
            checkpointer.wait_until_finished()
            through_orbax = checkpointer.restore(Path(directory) / "orbax", fresh)
        arrays = ctld_optax.checkpoint.state_to_arrays(saved)
        through_arrays = ctld_optax.checkpoint.state_from_arrays(arrays, fresh)
        expected = run(*saved)
        results = {}
        for name, restored in (("Orbax", through_orbax), ("arrays", through_arrays)):
            results[f"{name}: equal"] = equal(restored, saved)
            results[f"{name}: cut alike"] = cut_alike(*restored) and len(restored[0]["w"].sharding.device_set) == 8
            results[f"{name}: goes on equally"] = equal(run(*restored), expected)
    return results


def control() -> list[str]:
    """Collectives of a program that must have some that are not scalar: each entry wants one of another device."""
    mesh = mesh_of(8, AxisType.Auto)
    sharding = NamedSharding(mesh, P("shards"))
    compiled = (
        jax.jit(lambda x: x[::-1] + 1.0, out_shardings=sharding).lower(jax.device_put(jnp.ones((16,)), sharding)).compile()
    )
    return collectives(compiled.as_text())


def together(process: int, port: int) -> dict[str, Any]:
    """One of two processes: the whole of alpha, and of the parameters as this process sees them after gathering."""
    from jax.experimental import multihost_utils  # noqa: PLC0415 - only here

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    ours = trajectory("ctld", "auto", jax.device_count())
    params = multihost_utils.process_allgather(ours["params"], tiled=True)
    return {
        "devices": jax.device_count(),
        "alpha": ours["alpha"].tolist(),
        "params": {name: np.asarray(leaf).tolist() for name, leaf in params.items()},
        "collectives": ours["collectives"],
    }


def alone(count: int) -> dict[str, Any]:
    """What :func:`together` gives, from this process only."""
    ours = trajectory("ctld", "auto", count)
    return {
        "alpha": ours["alpha"].tolist(),
        "params": {name: np.asarray(leaf).tolist() for name, leaf in ours["params"].items()},
    }


def main(args: argparse.Namespace) -> None:
    if args.process is None:
        report = {
            "data parallel": compare_data_parallel(),
            "walkers": walkers_on_a_mesh(),
            "checkpoints": sharded_checkpoints(),
            "runs": compare(),
            "control": control(),
            "alone": alone(4),
        }
    else:
        report = together(args.process, args.port)
    if args.out:
        args.out.write_text(json.dumps(report))


if __name__ == "__main__":
    main(ARGS)
