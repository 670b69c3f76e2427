"""Save, lose, damage, resume: what comes back is what was saved, bit for bit, or an error that says why not."""

import concurrent.futures
import errno
import fcntl
import io
import json
import os
import random
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

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
from tests import versions

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


@pytest.mark.parametrize(
    "implementation", ["threefry2x32", "rbg", "unsafe_rbg", pytest.param("philox4x32", marks=versions.PHILOX)]
)
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


@versions.ORBAX
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
    with pytest.raises(
        CheckpointError, match=r"params.*was saved as .*\[3, 4\].* in `like`, what the program now has, .*\[4, 4\]"
    ):
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


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_only_sound_checkpoints_count_and_the_newest_of_them_stays(tmp_path):
    for step in (80, 90, 100):
        checkpoint.save(tmp_path, step, after(1))
    damaged = tmp_path / "step_00000100.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    checkpoint.save(tmp_path, 95, after(2), keep=1)
    assert names(tmp_path) == ["step_00000095.npz", "step_00000100.npz"]
    with pytest.warns(RuntimeWarning, match="passed over"):
        step, state = checkpoint.restore_latest(tmp_path, fresh())
    assert step == 95
    equal(state, after(2))
    # A damaged one among the older ones does not take the place of a sound one either; nor is it deleted.
    checkpoint.save(tmp_path, 110, after(3), keep=2)
    assert names(tmp_path) == ["step_00000095.npz", "step_00000100.npz", "step_00000110.npz"]
    checkpoint.save(tmp_path, 120, after(3), keep=2)
    assert names(tmp_path) == ["step_00000100.npz", "step_00000110.npz", "step_00000120.npz"]


def test_an_array_damaged_behind_a_sound_header_counts_for_nothing(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, after(step))
    with np.load(tmp_path / "step_00000002.npz") as file:
        arrays = dict(file)
    arrays["['step']"] = arrays["['step']"] + 1
    np.savez(tmp_path / "step_00000002.npz", **arrays)
    checkpoint.save(tmp_path, 3, after(3), keep=2)
    assert names(tmp_path) == ["step_00000001.npz", "step_00000002.npz", "step_00000003.npz"]


def test_checkpoints_of_other_runs_and_of_later_steps_are_left_alone(tmp_path):
    checkpoint.save(tmp_path, 1, {"other": jnp.ones(2)})
    checkpoint.save(tmp_path, 2, after(1), settings={"temperature": 0.5})
    (tmp_path / "step_00000003.npz").write_bytes(b"no checkpoint at all")
    checkpoint.save(tmp_path, 9, after(9))
    for step in (4, 5, 6):
        checkpoint.save(tmp_path, step, after(1), keep=1, settings={"temperature": 0.1})
    assert names(tmp_path) == [f"step_0000000{step}.npz" for step in (1, 2, 3, 6, 9)]


@pytest.mark.parametrize("content", ["other program", "other settings", "no npz", "foreign npz", "damaged", "folder"])
def test_what_stands_in_the_place_of_a_new_one_is_not_lost(content, tmp_path):
    path = tmp_path / "step_00000007.npz"
    if content == "folder":
        path.mkdir()
        (path / "notes").write_text("mine")
    elif content == "no npz":
        path.write_text("mine")
    elif content == "foreign npz":
        np.savez(path, mine=np.ones(3))
    else:
        state = {"mine": jnp.ones(3)} if content == "other program" else after(1)
        checkpoint.save(tmp_path, 7, state, settings={"temperature": 0.5} if content == "other settings" else None)
        if content == "damaged":
            path.write_bytes(path.read_bytes()[:-1000])
    before = (path / "notes").read_text() if content == "folder" else path.read_bytes()
    with pytest.warns(RuntimeWarning, match=r"step_00000007.npz was damaged or of another run.* it is now .*aside-1"):
        checkpoint.save(tmp_path, 7, after(2), settings={"temperature": 0.1})
    aside = tmp_path / "step_00000007.npz.aside-1"
    assert ((aside / "notes").read_text() if content == "folder" else aside.read_bytes()) == before
    equal(checkpoint.load(path, fresh(), settings={"temperature": 0.1}), after(2))
    # The run's own is replaced, as by a run that has gone back a few steps.
    checkpoint.save(tmp_path, 7, after(3), settings={"temperature": 0.1})
    assert names(tmp_path) == ["step_00000007.npz", "step_00000007.npz.aside-1"]


def test_a_file_that_another_process_is_writing_is_left_to_it(tmp_path):
    program = """
import os, sys, time
from pathlib import Path
from ctld_optax import checkpoint
file, partial = checkpoint._open_partial(Path(sys.argv[1]) / "step_00000001.npz")
file.write(b"half of it")
file.flush()
print(partial, flush=True)
sys.stdin.readline()
"""
    writing = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    partial = Path(writing.stdout.readline().strip())
    checkpoint.save(tmp_path, 2, {"x": jnp.ones(2)})
    assert partial.read_bytes() == b"half of it"
    writing.kill()
    writing.communicate()
    checkpoint.save(tmp_path, 3, {"x": jnp.ones(2)})
    assert not partial.exists()


def test_where_files_cannot_be_locked_a_leftover_may_be_someones_and_stays(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    partial = tmp_path / ".step_00000001.npz.999999.partial"
    partial.write_bytes(b"half of it")
    checkpoint.save(tmp_path, 2, {"x": jnp.ones(2)})
    assert names(tmp_path) == [partial.name, "step_00000002.npz"]


def test_threads_that_save_side_by_side_do_not_meet(tmp_path):
    state = {"x": jnp.arange(50_000.0)}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: checkpoint.save(tmp_path, index % 4, state, keep=4), range(80)))
    assert names(tmp_path) == [f"step_0000000{step}.npz" for step in range(4)]
    for step in range(4):
        np.testing.assert_array_equal(checkpoint.load(tmp_path / f"step_0000000{step}.npz", state)["x"], state["x"])


def test_a_full_disk_leaves_what_was_there_and_no_litter(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": jnp.ones(2)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"step_00000002.npz could not be written: File too large. .* Make room"):
            checkpoint.save(tmp_path, 2, {"x": jnp.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step_00000001.npz"]
    with pytest.raises(NotADirectoryError, match=r"step_00000001.npz is a file, and .*deeper was to be a folder"):
        checkpoint.save(tmp_path / "step_00000001.npz" / "deeper", 1, {"x": jnp.ones(2)})


class Named(NamedTuple):
    file: jax.Array  # the name of np.savez's first parameter
    allow_pickle: jax.Array


def test_any_field_name_can_be_saved_and_no_name_twice(tmp_path):
    state = Named(jnp.ones(2), jnp.zeros(3))
    same(checkpoint.load(checkpoint.save(tmp_path, 1, state), state), state)

    @jax.tree_util.register_pytree_with_keys_class
    class Twins:
        def tree_flatten_with_keys(self):
            key = jax.tree_util.GetAttrKey("x")
            return ((key, jnp.ones(1)), (key, jnp.zeros(1))), None

        @classmethod
        def tree_unflatten(cls, aux, children):
            return cls()

    with pytest.raises(ValueError, match="two leaves have the name x"):
        checkpoint.state_to_arrays(Twins())


def sampler(**changes):
    return ctld_optax.ctld(**({"learning_rate": 0.05, "temperature": 0.01, "key": 1} | changes))


SETTINGS = {
    "delta_prime": (
        {"tempering": ctld_optax.PolynomialTempering(delta_prime=1.2)},
        r"tempering\.delta_prime was 1\.5 and .* 1\.2",
    ),
    "strength": ({"tempering": ctld_optax.PolynomialTempering(strength=0.5)}, r"tempering\.strength was 0\.85 and is now 0\.5"),
    "bias class": (
        {"bias": ctld_optax.AdaptiveBiasingForce(num_bins=375)},
        "bias was 'Metadynamics' and is now 'AdaptiveBiasingForce'",
    ),
    "bias_factor": ({"bias": ctld_optax.Metadynamics(bias_factor=None)}, r"bias\.bias_factor was 5\.0 and is now None"),
    "coupling": ({"coupling": "hamiltonian"}, "coupling was 'Standardized' and is now 'Hamiltonian'"),
    "confinement": ({"confinement": "force"}, "confinement was 'ReflectingWall' and is now 'ForceWall'"),
    "temperature": ({"temperature": 0.02}, r"temperature\(0\) was 0\.0\d+ and is now 0\.0"),
    "schedule": (
        {"learning_rate": optax.linear_schedule(0.05, 0.0, 1000)},
        r"learning_rate\(10\) was 0\.05.* and is now 0\.049",
    ),
    "momentum": ({"momentum": 0.8}, r"momentum was 0\.9 and is now 0\.8"),
    "noise": ({"noise": "gaussian"}, "noise was 'three_point' and is now 'gaussian'"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_another_setting_is_named_with_both_values(setting, tmp_path):
    changes, words = SETTINGS[setting]
    params = {"w": jnp.ones(2)}
    state = sampler().init(params)
    checkpoint.save(tmp_path, 1, state, settings=sampler())
    other = sampler(**changes)
    # What makes it worth a check: nothing but the settings tells the two apart.
    assert jax.tree.map(jnp.shape, other.init(params)) == jax.tree.map(jnp.shape, state)
    with pytest.raises(CheckpointError, match=words + ".*Build the sampler as it was, or"):
        checkpoint.restore_latest(tmp_path, other.init(params), settings=other)
    same(checkpoint.restore_latest(tmp_path, state, settings=sampler(key=99, param_specs=None))[1], state)
    with pytest.warns(RuntimeWarning, match="restored without settings, but saved with some"):
        same(checkpoint.restore_latest(tmp_path, other.init(params))[1], state)


def test_settings_may_be_a_dict_and_what_only_one_side_has_is_not_compared():
    state = {"x": jnp.ones(2)}
    written = {"weights": sampler(), "decay": np.float32(0.5), "sizes": [3, 4], "dtype": jnp.bfloat16, "mask": np.arange(5)}
    arrays = checkpoint.state_to_arrays(state, settings=written)
    same(checkpoint.state_from_arrays(arrays, state, settings=written), state)
    same(checkpoint.state_from_arrays(arrays, state, settings={"decay": 0.5, "new": None}), state)
    for name, value, words in (
        ("weights", sampler(momentum=0.5), r"weights\.momentum was 0\.9 and is now 0\.5"),
        ("sizes", [3, 5], r"sizes\.1 was 4 and is now 5"),
        ("dtype", jnp.float32, "dtype was 'bfloat16' and is now 'float32'"),
        ("mask", np.arange(5) + 1, r"mask was 'array \(5,\)"),
    ):
        with pytest.raises(CheckpointError, match=words):
            checkpoint.state_from_arrays(arrays, state, settings={name: value})
    with pytest.raises(CheckpointError, match=r"the settings saved are \['decay'.* those given \['other'\]. Name them alike"):
        checkpoint.state_from_arrays(arrays, state, settings={"other": 1})
    switch = ctld_optax.phase_switch(sampler(), optax.sgd(0.05), 10)
    for wrong in (switch, {"tx": switch}, jax.random.key(0), lambda: None):
        with pytest.raises(TypeError, match=r"must be what ctld gave|is a function that is no schedule"):
            checkpoint.state_to_arrays(state, settings=wrong)


def test_files_of_before_there_were_settings_are_read(tmp_path):
    # Without settings a file is what it was, to the byte of its header.
    state = {"x": np.ones(2, np.float32)}
    header = json.loads(checkpoint.state_to_arrays(state)["__header__"].tobytes())
    assert header["body"] == (
        '{"format": "ctld_optax.state", "leaves": {"[\'x\']": {"dtype": "float32", "sha256": '
        '"09deb7811229b50e97dab13bfb7fe37f067d26d8871aeaec6eab631c00bb7a29", "shape": [2]}}, "version": 1}'
    )
    checkpoint.save(tmp_path, 1, state)
    with pytest.warns(RuntimeWarning, match="saved without any"):
        same(checkpoint.restore_latest(tmp_path, state, settings=sampler())[1], state)


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
