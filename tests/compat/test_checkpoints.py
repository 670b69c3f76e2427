"""Save, lose, damage, resume: what comes back is what was saved, bit for bit, or an error that says why not."""

import io
import os
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import ctld_optax
from ctld_optax import checkpoint
from ctld_optax.checkpoint import CheckpointError

from .columns import raw, same
from .preempted import STEPS, fresh, one_step

ROOT = Path(__file__).parents[2]


def after(steps, state=None):
    state = fresh() if state is None else state
    for _ in range(steps):
        state = one_step(state)
    return state


def through_npz(state):
    file = io.BytesIO()
    np.savez(file, **checkpoint.state_to_arrays(state))
    file.seek(0)
    with np.load(file) as arrays:
        return checkpoint.state_from_arrays(arrays, fresh())


def through_msgpack(state):
    payload = flax.serialization.msgpack_serialize(checkpoint.state_to_arrays(state))
    return checkpoint.state_from_arrays(flax.serialization.msgpack_restore(payload), fresh())


def equal(ours, theirs):
    same({**ours, "step": jnp.asarray(ours["step"])}, {**theirs, "step": jnp.asarray(theirs["step"])})


def test_steps_do_something():
    # Else the tests below would compare a state that stands still.
    assert not np.array_equal(after(3)["params"]["w"], after(4)["params"]["w"])


@pytest.mark.parametrize("way", [through_npz, through_msgpack])
@pytest.mark.parametrize("saved_at", [0, 5, STEPS // 2 - 1, STEPS // 2, STEPS // 2 + 1, STEPS - 5])
def test_resumed_run_is_bit_identical(way, saved_at):
    # While sampling, just before, at and just after the switch, while optimizing.
    state = after(saved_at)
    equal(way(state), state)
    rest = 8
    equal(after(rest, way(state)), after(rest, state))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg", "philox4x32"])
def test_keys_of_every_implementation(implementation):
    key = jax.random.key(3, impl=implementation)
    back = checkpoint.state_from_arrays(
        checkpoint.state_to_arrays({"key": key}), {"key": jax.random.key(0, impl=implementation)}
    )
    assert jax.random.key_impl(back["key"]) == jax.random.key_impl(key)
    assert jnp.all(jax.random.key_data(back["key"]) == jax.random.key_data(key))
    other = "threefry2x32" if implementation != "threefry2x32" else "rbg"
    with pytest.raises(CheckpointError, match="was saved as"):
        checkpoint.state_from_arrays(checkpoint.state_to_arrays({"key": key}), {"key": jax.random.key(0, impl=other)})


def test_abstract_state_serves_as_pattern():
    state = after(2)
    restored = checkpoint.state_from_arrays(
        checkpoint.state_to_arrays(state["opt_state"]), jax.eval_shape(lambda: fresh()["opt_state"])
    )
    same(restored, state["opt_state"])


def test_orbax_restores_the_train_state(tmp_path):
    state = after(5)
    tree = {"params": state["params"], "opt_state": state["opt_state"]}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", tree)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "orbax", jax.tree.map(lambda x: x, jax.eval_shape(lambda: tree)))
    same(restored, tree)
    equal(after(8, {**restored, "step": 5}), after(8, state))


def test_wrong_states_are_refused_with_a_reason():
    arrays = checkpoint.state_to_arrays(after(1))
    pattern = fresh()
    other = {**pattern, "opt_state": optax.adam(1e-3).init(pattern["params"])}
    with pytest.raises(CheckpointError, match="that of another program"):
        checkpoint.state_from_arrays(arrays, other)
    larger = {**pattern, "params": {**pattern["params"], "w": jnp.ones((4, 4))}}
    with pytest.raises(CheckpointError, match=r"params.*was saved as .*\[3, 4\].* now has .*\[4, 4\]"):
        checkpoint.state_from_arrays(arrays, larger)
    with pytest.raises(CheckpointError, match="no '__header__'"):
        checkpoint.state_from_arrays({"foreign": np.ones(3)}, pattern)
    with pytest.raises(CheckpointError, match="disagree"):
        checkpoint.state_from_arrays({**arrays, "stowaway": np.ones(3)}, pattern)
    with pytest.raises(TypeError, match="must be an array or a number"):
        checkpoint.state_to_arrays({"name": "ctld"})


def test_another_version_or_format_is_refused(monkeypatch):
    for name, foreign, words in (("VERSION", 2, "version is 2"), ("FORMAT", "other", "format is 'other'")):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, foreign)
            arrays = checkpoint.state_to_arrays(fresh())
        with pytest.raises(CheckpointError, match=words):
            checkpoint.state_from_arrays(arrays, fresh())


def mutate(data, rng):
    """One way in which a file goes wrong: cut, bits turned, a run overwritten, arrays swapped, one put in from another save."""
    kind = rng.choice(["cut", "flip", "flip", "overwrite", "swap", "other step", "rename", "append"])
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    if kind == "append":
        return data + rng.randbytes(rng.randrange(1, 100))
    if kind in {"flip", "overwrite"}:
        changed = bytearray(data)
        length = 1 if kind == "flip" else rng.randrange(2, 200)
        for place in range(at := rng.randrange(len(changed)), min(at + length, len(changed))):
            changed[place] ^= 1 << rng.randrange(8)
        return bytes(changed)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    first, second = rng.sample(sorted(members), 2)
    if kind == "swap":
        members[first], members[second] = members[second], members[first]
    elif kind == "rename":
        members["opt_state.gone.npy"] = members.pop(first)
    else:
        members[first] = OTHER[first]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


def saved_bytes(state):
    file = io.BytesIO()
    np.savez(file, **checkpoint.state_to_arrays(state))
    return file.getvalue()


OTHER = {}


def test_500_mutations_are_never_loaded_wrongly(tmp_path):
    state, pattern = after(3), fresh()
    data = saved_bytes(state)
    with zipfile.ZipFile(io.BytesIO(saved_bytes(after(4)))) as archive:
        OTHER.update({name: archive.read(name) for name in archive.namelist()})
    rng = random.Random(0)
    refused = 0
    for index in range(500):
        path = tmp_path / "state.npz"
        path.write_bytes(mutate(data, rng))
        try:
            restored = checkpoint.load(path, pattern)
        except CheckpointError as error:
            assert len(str(error)) > 40, index  # noqa: PT017 - some are loaded, and rightly
            refused += 1
            continue
        equal(restored, state)  # a change that touches no content: a date in the zip file, two equal arrays swapped
    assert 400 <= refused < 500  # measured 431; else the mutations would be too mild


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_message(tmp_path):
    checkpoint.save(tmp_path, 4, after(4))
    newest = checkpoint.save(tmp_path, 5, after(5))
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(
        RuntimeWarning, match=r"passed over a checkpoint for that of step 4: .*step_00000005.npz is no whole npz"
    ):
        step, state = checkpoint.restore_latest(tmp_path, fresh())
    assert step == 4
    equal(state, after(4))
    (tmp_path / "step_00000004.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is sound"):
        checkpoint.restore_latest(tmp_path, fresh())
    assert checkpoint.restore_latest(tmp_path / "nowhere", fresh()) is None


def test_save_keeps_the_newest_and_leaves_no_litter(tmp_path):
    (tmp_path / ".step_00000001.npz.999999.partial").write_bytes(b"left by a kill")
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, {"x": jnp.ones(2)}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000004.npz", "step_00000005.npz"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The final state of a run without a kill, and how to start such a program, its compiled parts kept from run to run."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    environment = {**os.environ, **cache, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def start(directory):
        command = [sys.executable, "-m", "tests.compat.preempted", str(directory)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    directory = tmp_path_factory.mktemp("unbroken")
    process = start(directory)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return final(directory), start


def final(directory):
    return checkpoint.load(directory / "final" / f"step_{STEPS:08d}.npz", fresh())


@pytest.mark.slow
def test_20_kills_lose_nothing(unbroken, tmp_path):
    expected, start = unbroken
    rng = random.Random(1)
    kills, starts, damaged = 0, [], False
    while not (tmp_path / "final").exists():
        process = start(tmp_path)
        starts.append(process.stdout.readline())
        if kills < 20:
            # Some steps on, at a random moment of a step: in the update, while it writes, between.
            for _ in range(rng.randrange(4)):
                process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.03))
            process.kill()
            kills += 1
        _, errors = process.communicate(timeout=300)
        assert process.returncode in {0, -9}, errors
        assert not damaged or "passed over a checkpoint for that of step" in errors, errors
        damaged = kills == 10
        if damaged:  # the disk fails too
            newest = max(tmp_path.glob("step_*.npz"))
            newest.write_bytes(newest.read_bytes()[:200])
    assert kills == 20
    assert len(set(starts)) > 10  # the kills fell in different steps
    equal(final(tmp_path), expected)


def test_raw_sees_keys():
    # `same` compares keys by their data: two states that differ in the key only must not pass.
    state = ctld_optax.ctld(0.1, 0.1, key=0).init({"w": jnp.ones(2)})
    with pytest.raises(AssertionError):
        same(state, state._replace(key=jax.random.key(99)))
    assert raw(state).key.dtype == jnp.uint32
