"""Short trajectories on four devices in each way that this version of JAX has. A program: it needs devices of its own.

It prints, for each way and each of these settings, by how much alpha and the parameters differ from those of one device.
`devices.py` asks much more, of new versions.
"""

import json
import os

if __name__ == "__main__":  # before JAX starts its backend
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ctld_optax

SPECS = {"w": P("shards", None), "b": P()}
PARAMS = {"w": jnp.linspace(0.0, 1.0, 48).reshape(8, 6), "b": jnp.ones(3)}
METRIC = ctld_optax.FixedMetric({"w": 1.0 + jnp.arange(8.0)[:, None], "b": 2.0})  # of the whole array
SETTINGS = {
    "FixedMetric": {"preconditioner": METRIC},
    "SecondMoment": {"preconditioner": ctld_optax.SecondMoment(decay=0.9)},
    "LayerScale": {"preconditioner": ctld_optax.LayerScale(decay=0.9)},
    "PerLayer": {
        "learning_rate": ctld_optax.PerLayer({"w": 0.1, "b": 0.05}),
        "temperature": ctld_optax.PerLayer({"w": 0.01, "b": 0.03}),
    },
    "Prior": {"prior": ctld_optax.Prior(0.5)},
}


def sampler(specs=None, **settings):
    # Alpha moves fast enough to feel the energy.
    common = {"learning_rate": 0.05, "temperature": 0.01, "alpha_step_size": 0.1, "initial_momentum": "stationary"}
    return ctld_optax.ctld(**common | settings, key=3, param_specs=specs)


def run(tx, total):
    def steps(params, state):
        def step(carry, _):
            params, state = carry
            value = total(jax.tree.map(lambda p: 0.5 * jnp.sum(p * p), params))
            updates, state = tx.update(params, state, params, value=value)
            return (optax.apply_updates(params, updates), state), state.alpha

        (params, _), alphas = jax.lax.scan(step, (params, state), length=60)
        return params, alphas

    return steps


def in_shard_map(mesh, state, **settings):
    """The steps inside `jax.shard_map`, or the one of older JAX, which cannot check the types of a loop."""

    def spec(path, leaf):
        return SPECS["w"] if jax.tree_util.keystr(path).endswith("['w']") and leaf.ndim else P()

    specs = jax.tree_util.tree_map_with_path(spec, state)
    steps = run(sampler(SPECS, **settings), lambda sums: jax.lax.psum(sums["w"], "shards") + sums["b"])
    how = {"mesh": mesh, "in_specs": (SPECS, specs), "out_specs": (SPECS, P())}
    if hasattr(jax, "shard_map"):
        return jax.shard_map(steps, **how)
    from jax.experimental.shard_map import shard_map  # noqa: PLC0415

    return shard_map(steps, check_rep=False, **how)


def placed(mesh):
    return jax.tree.map(lambda p, spec: jax.device_put(p, NamedSharding(mesh, spec)), PARAMS, SPECS)


def begun_in_shard_map(mesh):
    """The scale that `init` makes of a block, put together again."""

    def scale(params):
        return sampler(SPECS, preconditioner=METRIC).init(params).coordinates.scale

    how = {"mesh": mesh, "in_specs": (SPECS,), "out_specs": SPECS}
    if hasattr(jax, "shard_map"):
        return jax.shard_map(scale, **how)
    from jax.experimental.shard_map import shard_map  # noqa: PLC0415

    return shard_map(scale, check_rep=False, **how)


def distance(one, other):
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def distances(ours, theirs):
    return jax.tree.leaves(jax.tree.map(distance, ours, theirs))


def main():
    whole = lambda sums: sums["w"] + sums["b"]
    mesh = Mesh(np.array(jax.devices()), ("shards",))
    alone = jax.jit(run(sampler(), whole))(PARAMS, sampler().init(PARAMS))
    found = {"auto": jax.jit(run(sampler(), whole))(placed(mesh), sampler().init(placed(mesh)))}
    found["shard_map"] = jax.jit(in_shard_map(mesh, sampler(SPECS).init(PARAMS)))(placed(mesh), sampler(SPECS).init(PARAMS))
    if hasattr(jax, "typeof"):
        mesh = jax.make_mesh((4,), ("shards",), axis_types=(jax.sharding.AxisType.Explicit,))
        with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):
            found["explicit"] = jax.jit(run(sampler(), whole))(placed(mesh), sampler().init(placed(mesh)))
        assert jax.typeof(found["explicit"][0]["w"]).sharding.spec == SPECS["w"]
    assert all(len(params["w"].sharding.device_set) == 4 for params, _ in found.values())
    errors = {way: distances(each, alone) for way, each in found.items()}
    mesh = Mesh(np.array(jax.devices()), ("shards",))
    for name, settings in SETTINGS.items():
        alone_in_it = jax.jit(run(sampler(**settings), whole))(PARAMS, sampler(**settings).init(PARAMS))
        state = sampler(SPECS, **settings).init(PARAMS)
        cut = jax.jit(in_shard_map(mesh, state, **settings))(placed(mesh), state)
        errors[f"shard_map, {name}"] = distances(cut, alone_in_it)
        assert max(distances(alone_in_it, alone)) > 1e-2  # it did something
    scales = jax.jit(begun_in_shard_map(mesh))(placed(mesh)), METRIC.init(PARAMS).scale
    errors["init in shard_map, FixedMetric"] = distances(*scales)
    print(json.dumps({"errors": errors, "range of alpha": float(np.ptp(alone[1]))}))


if __name__ == "__main__":
    main()
