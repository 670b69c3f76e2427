"""The record of a run: what is kept, where, and what the files hold, also after a kill."""

import csv
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ctld_optax
from ctld_optax import checkpoint, diagnostics
from ctld_optax.recorder import Recorder, Recording
from ctld_optax.writers import CSVWriter, ParquetWriter, TensorBoardWriter, columns
from tests import helpers

WRITERS = {"csv": CSVWriter, "parquet": ParquetWriter, "tensorboard": TensorBoardWriter}


def recorded(recorder, num_steps, first=1):
    """The state after steps that record their own number, and a float made of it."""

    def body(state, step):
        return recorder.record(state, {"step": step, "half": 0.5 * step}), None

    return jax.lax.scan(body, recorder.init(), jnp.arange(first, num_steps + 1))[0]


def counter(capacity):
    return Recorder({"step": 0, "half": 0.0}, capacity)


@pytest.mark.parametrize("capacity", [4, 8, 64, 1024])
def test_equally_spaced_steps_are_kept_whatever_the_length(capacity):
    recorder = counter(capacity)
    record = jax.jit(lambda state, step: recorder.record(state, {"step": step, "half": 0.5 * step}))
    state, stride = recorder.init(), 1
    for step in range(1, 40 * min(capacity, 32)):
        state = record(state, jnp.int32(step))
        stride *= 1 + (step == capacity * stride)
        recording = recorder.read(state)
        np.testing.assert_array_equal(recording.step, np.arange(stride, step + 1, stride))
        np.testing.assert_array_equal(recording.values["step"], recording.step)
        np.testing.assert_array_equal(recording.values["half"], 0.5 * recording.step)


@pytest.mark.parametrize("num_steps", [100_000, 99_999, 65_536, 65_535])
def test_long_runs_fill_at_least_half_of_the_buffer(num_steps):
    recording = counter(256).read(jax.jit(recorded, static_argnums=(0, 1))(counter(256), num_steps))
    assert 127 <= recording.step.size <= 255
    stride = recording.step[0]
    assert set(np.diff(recording.step)) == {stride}
    assert num_steps - stride < recording.step[-1] <= num_steps
    np.testing.assert_array_equal(recording.values["step"], recording.step)


def test_ten_million_steps_in_constant_memory():
    recorder = counter(1024)
    run = jax.jit(lambda state, start: jax.lax.fori_loop(0, 10_000_000, body, (state, start))[0])

    def body(_, carry):
        state, step = carry
        return recorder.record(state, {"step": step, "half": 0.5 * step}), step + 1

    compiled = run.lower(recorder.init(), jnp.int32(1)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 32 * 1024  # the buffer itself has 8
    state = compiled(recorder.init(), jnp.int32(1))
    assert helpers.signature(state) == helpers.signature(recorder.init())
    recording = recorder.read(state)
    np.testing.assert_array_equal(recording.step, np.arange(2**14, 10**7 + 1, 2**14))
    np.testing.assert_array_equal(recording.values["step"], recording.step)
    assert int(state.count) == 10**7


def test_the_buffer_is_written_in_place():
    recorder = Recorder({"x": 0.0}, 65_536)
    step = jax.jit(lambda state, x: recorder.record(state, {"x": x}), donate_argnums=0)
    memory = step.lower(recorder.init(), jnp.float32(0)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1024  # a copy of the buffer would be 256 kB
    assert memory.alias_size_in_bytes >= 65_536 * 4


def test_every_dtype_comes_back(x64):
    values = {
        "double": jnp.float64(1 / 3),
        "single": jnp.float32(-1e-30),
        "half": jnp.bfloat16(1.5),
        "long": jnp.int64(-(2**40)),
        "int": jnp.int32(-7),
        "byte": jnp.uint8(200),
        "unsigned": jnp.uint32(2**32 - 1),
        "flag": jnp.bool(True),
        "nan": jnp.float32(np.nan),
        "python": 0.1,
    }
    recorder = Recorder(values, 8)
    kept = recorder.read(recorder.record(recorder.init(), values)).values
    for name, value in values.items():
        np.testing.assert_array_equal(kept[name], [np.asarray(value, kept[name].dtype)], err_msg=name)
    assert kept["double"].dtype == np.float64
    assert kept["half"].dtype == np.float32
    assert kept["byte"].dtype == np.int32


def train(recorder, params, opt_state, log, num_steps, sampler):
    """A scan of real steps; with a recorder, recorded."""

    def step(carry, _):
        params, opt_state, log = carry
        loss, grads = jax.value_and_grad(lambda x: jnp.sum(x**4))(params)
        updates, opt_state = sampler.update(grads, opt_state, params, value=loss)
        if recorder is not None:
            log = recorder.record(log, {"loss": loss, "sampler": diagnostics.snapshot(opt_state)})
        return (optax.apply_updates(params, updates), opt_state, log), diagnostics.snapshot(opt_state)

    return jax.lax.scan(step, (params, opt_state, log), None, length=num_steps)


@pytest.fixture
def setting():
    """A recorder, parameters, a sampler and its state."""
    sampler, params = ctld_optax.ctld(0.01, 0.1, key=0), jnp.ones(3)
    opt_state = sampler.init(params)
    return Recorder({"loss": 0.0, "sampler": diagnostics.snapshot(opt_state)}, 16), params, opt_state, sampler


def test_a_recorded_run_is_the_same_run(setting):
    recorder, params, opt_state, sampler = setting
    (params_without, state_without, _), whole = train(None, params, opt_state, None, 100, sampler)
    (params_with, state_with, log), _ = train(recorder, params, opt_state, recorder.init(), 100, sampler)
    helpers.assert_identical((params_with, state_with), (params_without, state_without))
    recording = recorder.read(log)
    np.testing.assert_array_equal(recording.values["sampler"].count, recording.step)
    for name, kept in recording.values["sampler"]._asdict().items():
        np.testing.assert_array_equal(kept, getattr(whole, name)[recording.step - 1])
    assert diagnostics.fraction_in_window(recording.values["sampler"].alpha) >= 0.0


def test_a_record_goes_through_a_checkpoint(setting, tmp_path):
    recorder, params, opt_state, sampler = setting
    carry, _ = train(recorder, params, opt_state, recorder.init(), 50, sampler)
    checkpoint.save(tmp_path, 50, carry)
    _, restored = checkpoint.restore_latest(tmp_path, carry)
    helpers.assert_identical(train(recorder, *restored, 70, sampler), train(recorder, *carry, 70, sampler))


def test_replicas_are_read_together():
    recorder = counter(8)

    def replica(offset):
        def body(state, step):
            return recorder.record(state, {"step": step + offset, "half": 0.0}), None

        return jax.lax.scan(body, recorder.init(), jnp.arange(1, 21))[0]

    states = jax.vmap(replica)(100 * jnp.arange(3))
    recording = recorder.read(states)
    np.testing.assert_array_equal(recording.step, [4, 8, 12, 16, 20])
    np.testing.assert_array_equal(recording.values["step"], recording.step + 100 * np.arange(3)[:, None])
    with pytest.raises(ValueError, match=r"half has shape \(3, 5\) for 5 steps"):
        columns(recording)
    uneven = states._replace(count=states.count.at[1].set(7))
    with pytest.raises(ValueError, match="recorded 7 to 20 steps"):
        recorder.read(uneven)


@pytest.mark.parametrize("capacity", [0, 3, 6, 2**17])
def test_capacity_is_a_power_of_two(capacity):
    with pytest.raises(ValueError, match="capacity must be"):
        Recorder({"x": 0.0}, capacity)


def test_what_cannot_be_recorded_is_refused():
    with pytest.raises(ValueError, match=r"\['x'\] has shape \(2,\)"):
        Recorder({"x": jnp.zeros(2)})
    with pytest.raises(ValueError, match="at least one scalar"):
        Recorder({})
    with pytest.raises(TypeError, match=r"like\['x'\] is 1j, of type complex"):
        Recorder({"x": 1j})
    recorder = Recorder({"x": 0.0})
    with pytest.raises(ValueError, match="must be like what the recorder was made for"):
        recorder.record(recorder.init(), {"y": 0.0})
    with pytest.raises(ValueError, match=r"\['x'\] has shape \(3,\)"):
        recorder.record(recorder.init(), {"x": jnp.zeros(3)})


def read_back(kind, path):
    """Name -> column, by a reader that is not ours."""
    if kind == "csv":
        header, *rows = csv.reader(path.read_text().splitlines())
        return {name: np.asarray(column, np.float64) for name, column in zip(header, zip(*rows, strict=True), strict=True)}
    if kind == "parquet":
        table = parquet.read_table(path)
        return {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}
    board = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    table = {tag: np.asarray([event.value for event in board.Scalars(tag)]) for tag in board.Tags()["scalars"]}
    return {"step": np.asarray([event.step for event in board.Scalars(next(iter(table)))]), **table}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_grow_and_a_resumed_run_repeats_nothing(kind, tmp_path):
    recorder = Recorder({"loss": 0.0, "sampler": {"alpha": 0.0, "count": 0}}, 16)
    path, state, seen = tmp_path / "deep" / kind, recorder.init(), {}

    def run_on(num_steps):
        nonlocal state
        for _ in range(num_steps):
            state = record(state)
        recording = recorder.read(state)
        for step, *row in zip(*columns(recording).values(), strict=True):
            seen.setdefault(int(step), row)
        return recording

    @jax.jit
    def record(state):
        number = state.count + 1
        return recorder.record(state, {"loss": 1.0 / number, "sampler": {"alpha": jnp.sin(number), "count": number}})

    with WRITERS[kind](path) as writer:
        for number, expected in ((10, 10), (30, 8), (3, 0), (1, 1)):  # strides 1, then 4
            recording = run_on(number)
            assert writer.append(recording) == expected
            assert writer.append(recording) == 0
            assert read_back(kind, path)["step"][-1] == recording.step[-1]  # while the writer is open
    with WRITERS[kind](path) as writer:  # a resumed run, which has its last steps in its buffer
        assert writer.last_step == 44
        assert writer.append(recording) == 0
        assert writer.append(run_on(40)) == 5  # 48, 56, ... 80
    found = read_back(kind, path)
    np.testing.assert_array_equal(found["step"], sorted(seen))
    names = list(columns(recording))[1:]
    assert {"loss", "sampler/alpha", "sampler/count"} <= set(names)
    for index, name in enumerate(names):
        wanted = [seen[step][index] for step in sorted(seen)]
        np.testing.assert_array_equal(np.asarray(found[name], np.float32), np.asarray(wanted, np.float32), err_msg=name)


def rows(*steps):
    return Recording(np.asarray(steps), {"x": np.asarray(steps, np.float64) / 3.0})


def test_csv_keeps_every_bit_and_drops_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "run.csv"
    with CSVWriter(path) as writer:
        writer.append(rows(1, 2, 3))
    np.testing.assert_array_equal(read_back("csv", path)["x"], np.asarray([1, 2, 3]) / 3.0)
    path.write_text(path.read_text() + "4,1.3")
    with CSVWriter(path) as writer:
        assert writer.last_step == 3
        writer.append(rows(3, 4, 5))
    assert path.read_text().splitlines()[-2:] == ["4,1.3333333333333333", "5,1.6666666666666667"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_tensorboard_drops_an_event_that_was_cut_off(tmp_path, cut):
    with TensorBoardWriter(tmp_path) as writer:
        writer.append(rows(1, 2, 3))
    (log,) = tmp_path.iterdir()
    log.write_bytes(log.read_bytes()[:-cut])
    with TensorBoardWriter(tmp_path) as writer:
        assert writer.last_step == 2
        writer.append(rows(2, 3, 4))
    found = read_back("tensorboard", tmp_path)
    np.testing.assert_array_equal(found["step"], [1, 2, 3, 4])


def test_an_unfinished_parquet_file_does_not_count(tmp_path):
    with ParquetWriter(tmp_path) as writer:
        writer.append(rows(1, 2))
    (tmp_path / ".steps-000000000003-000000000009.parquet.unfinished").write_bytes(b"PAR1")
    with ParquetWriter(tmp_path) as writer:
        assert writer.last_step == 2
        writer.append(rows(2, 3))
    np.testing.assert_array_equal(read_back("parquet", tmp_path)["step"], [1, 2, 3])


def test_a_csv_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match="first column is 'epoch'"):
        CSVWriter(path)
    with CSVWriter(tmp_path / "other.csv") as writer:
        writer.append(rows(1))
        with pytest.raises(ValueError, match=r"has the columns \['step', 'x'\]"):
            writer.append(Recording(np.asarray([2]), {"y": np.asarray([1.0])}))


KILLED = """
import os, signal, sys
import numpy as np
from ctld_optax.recorder import Recording
from ctld_optax.writers import CSVWriter, ParquetWriter, TensorBoardWriter
writer = {"csv": CSVWriter, "parquet": ParquetWriter, "tensorboard": TensorBoardWriter}[sys.argv[1]](sys.argv[2])
for first in range(1, 500, 100):
    steps = np.arange(first, first + 100)
    writer.append(Recording(steps, {"x": steps / 3.0}))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", WRITERS)
def test_a_killed_program_loses_nothing(kind, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(tmp_path / kind)], check=False)
    assert done.returncode == -signal.SIGKILL
    np.testing.assert_array_equal(read_back(kind, tmp_path / kind)["step"], np.arange(1, 501))
    with WRITERS[kind](tmp_path / kind) as writer:
        assert writer.append(rows(499, 500, 501)) == 1
    np.testing.assert_array_equal(read_back(kind, tmp_path / kind)["step"], np.arange(1, 502))


@pytest.mark.parametrize(("kind", "module"), [("parquet", "pyarrow"), ("tensorboard", "tensorboardX")])
def test_a_missing_library_is_named(kind, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}, .*ctld-optax\[record\]"):
        WRITERS[kind](tmp_path)
