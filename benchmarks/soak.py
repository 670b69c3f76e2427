"""A long run that is killed again and again: is it the run that was not, bit for bit, and does its memory stay flat?

    python -m benchmarks.soak                      10^7 steps
    python -m benchmarks.soak --hours 2            as many steps as two hours hold
    python -m benchmarks.soak --steps 200000 --kills 6

A small network learns from minibatches: first `ctld` samples, then SGD with momentum takes over. After every chunk of steps the
program appends its record to a CSV file, a Parquet table and TensorBoard events and saves a checkpoint. It runs twice: once
left alone, and once killed by SIGKILL at random steps, each time at a random moment of a chunk (while it computes, writes,
saves or, at times, starts) and started again. Then these are compared, and anything that differs is an error:

- the last checkpoint of both, bit for bit: parameters, optimizer state, keys, the recorder's rows;
- the three records of both, row for row, and with the rows of the recorder;
- what lies in the folders: the newest three checkpoints, and nothing that a killed writer left;
- resident memory and open files of the run left alone, early and late.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
from rich.console import Console
from tensorboardX import proto

import ctld_optax
from benchmarks.harness import files, provenance
from ctld_optax import checkpoint, diagnostics, writers
from ctld_optax.recorder import Recorder

CHUNK = 10_000  # steps between two checkpoints
EXAMPLES, BATCH, HIDDEN = 512, 32, 16
PAUSES = 1e-3, 1.0  # seconds between the report of a chunk and the kill: while the files are written, up to some chunks later
STARTS = 8.0  # seconds: the longest wait for a kill at the start
GROWTH = 16.0  # MiB of resident memory, between the second tenth of a run and its last, that count as flat


def optimizer(switch: int) -> Any:
    return ctld_optax.phase_switch(ctld_optax.ctld(0.01, 1e-3, key=1), optax.sgd(0.01, momentum=0.9), switch)


def fresh(switch: int) -> tuple[dict[str, Any], Recorder]:
    """The state at step 0, all of it, and what records it."""
    keys = jax.random.split(jax.random.key(0))
    params = {"in": jax.random.normal(keys[0], (2, HIDDEN)), "out": jax.random.normal(keys[1], (HIDDEN, 1)) / HIDDEN**0.5}
    opt_state = optimizer(switch).init(params)
    recorder = Recorder({"loss": 0.0, "sampler": diagnostics.snapshot(opt_state)}, capacity=1024)
    step = jnp.zeros((), jnp.int32)
    return {"params": params, "opt_state": opt_state, "log": recorder.init(), "step": step}, recorder


def compiled_chunk(switch: int, recorder: Recorder) -> Any:
    """CHUNK steps in one program; the minibatch of a step hangs on its number alone."""
    tx, data_key = optimizer(switch), jax.random.key(2)
    inputs = jax.random.normal(data_key, (EXAMPLES, 2))
    targets = jnp.sin(2.0 * inputs[:, :1]) * inputs[:, 1:]

    def loss_of(params: Any, batch: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(jnp.tanh(inputs[batch] @ params["in"]) @ params["out"] - targets[batch]))

    def one(state: dict[str, Any], _: None) -> tuple[dict[str, Any], None]:
        batch = jax.random.randint(jax.random.fold_in(data_key, state["step"]), (BATCH,), 0, EXAMPLES)
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"], value=loss)
        log = recorder.record(state["log"], {"loss": loss, "sampler": diagnostics.snapshot(opt_state)})
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "log": log, "step": state["step"] + 1}, None

    return jax.jit(lambda state: jax.lax.scan(one, state, None, length=CHUNK)[0])


def work(folder: pathlib.Path, steps: int, switch: int, seconds: float) -> None:
    """The program that may be killed: goes on from the newest checkpoint, up to `steps` or so many seconds."""
    warnings.simplefilter("error")  # a checkpoint that had to be passed over is a fault here
    deadline = time.monotonic() + seconds
    state, recorder = fresh(switch)
    found = checkpoint.restore_latest(folder / "checkpoints", like=state)
    state = found[1] if found else state
    chunk = compiled_chunk(switch, recorder)
    with contextlib.ExitStack() as stack:
        records = [stack.enter_context(writer) for writer in open_writers(folder)]
        while (step := int(state["step"])) < steps and time.monotonic() < deadline:
            state = jax.block_until_ready(chunk(state))
            say(step=step + CHUNK, mib=resident_mib(), files=sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir()))
            recording = recorder.read(state["log"])
            for record in records:
                record.append(recording)
            checkpoint.save(folder / "checkpoints", step + CHUNK, state)


def open_writers(folder: pathlib.Path) -> Iterator[Any]:
    yield writers.CSVWriter(folder / "run.csv")
    yield writers.ParquetWriter(folder / "parquet")
    yield writers.TensorBoardWriter(folder / "board")


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def resident_mib() -> float:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Worker:
    """One life of the program."""

    def __init__(self, folder: pathlib.Path, steps: int, switch: int, seconds: float = float("inf")) -> None:
        numbers = [str(steps), str(switch), str(seconds)]
        command = [sys.executable, "-m", "benchmarks.soak", "--work", str(folder), *numbers]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        self.output: Any = self.process.stdout

    def reports(self) -> Iterator[dict[str, Any]]:
        """What it says after each chunk, until it ends by itself. Raises if it ends in an error."""
        yield from map(json.loads, self.output)
        self.output.close()
        if self.process.wait():
            raise RuntimeError(f"the worker ended with exit status {self.process.returncode}; its error is printed above.")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()


def left_alone(folder: pathlib.Path, steps: int, switch: int, seconds: float) -> list[dict[str, Any]]:
    return list(Worker(folder, steps, switch, seconds).reports())


def killed(folder: pathlib.Path, steps: int, switch: int, kills: int, rng: random.Random) -> dict[str, int]:
    """Runs the program to its end, killed after `kills` random chunks and, each fourth time on average, at the start too."""
    done = {"killed in a chunk": 0, "killed at the start": 0}
    for chunk in sorted(rng.sample(range(1, steps // CHUNK), kills)):
        if rng.random() < 0.25:
            starting = Worker(folder, steps, switch)
            time.sleep(rng.uniform(0.0, STARTS))
            starting.kill()
            done["killed at the start"] += 1
        worker = Worker(folder, steps, switch)
        for report in worker.reports():
            if report["step"] >= chunk * CHUNK:
                time.sleep(math.exp(rng.uniform(*map(math.log, PAUSES))))
                break
        worker.kill()
        done["killed in a chunk"] += 1
    for _ in Worker(folder, steps, switch).reports():
        pass
    return done


def compare(one: pathlib.Path, other: pathlib.Path, steps: int, switch: int) -> dict[str, Any]:
    """What two runs left in their folders. Raises an AssertionError where they differ, or are not what they should be."""
    like, recorder = fresh(switch)
    found = [checkpoint.restore_latest(folder / "checkpoints", like=like) for folder in (one, other)]
    states = [state for step, state in filter(None, found) if step == steps]
    assert len(states) == 2, f"the newest checkpoints are not of step {steps}"
    first, second = map(checkpoint.state_to_arrays, states)
    assert first.keys() == second.keys()
    different = [name for name in first if not np.array_equal(first[name], second[name])]
    assert not different, f"the last checkpoints differ in {different}"
    assert np.array_equal(first[checkpoint.HEADER], second[checkpoint.HEADER])  # shapes, dtypes and checksums
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(states[0]["params"]))

    newest = [f"step_{step:08d}.npz" for step in range(steps - 2 * CHUNK, steps + 1, CHUNK)]
    for folder in (one, other):
        here = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert here == newest, f"{folder} holds the checkpoints {here}, not {newest}"
        assert not list(folder.rglob(".*")), f"a killed writer left {list(folder.rglob('.*'))}"

    texts = [(folder / "run.csv").read_bytes() for folder in (one, other)]
    assert texts[0] == texts[1], "the CSV files differ"
    tables = [pq.read_table(folder / "parquet") for folder in (one, other)]
    assert tables[0].equals(tables[1]), "the Parquet tables differ"
    events = [board(folder / "board") for folder in (one, other)]
    assert events[0] == events[1], "the TensorBoard events differ"

    held = writers.columns(recorder.read(states[0]["log"]))
    written = {name: column.to_numpy() for name, column in zip(tables[0].column_names, tables[0].columns, strict=True)}
    assert np.all(np.diff(written["step"]) > 0)
    where = np.searchsorted(written["step"], held["step"])
    assert all(np.array_equal(written[name][where], held[name]) for name in held), "the record is not the recorder's"
    lines = texts[0].decode().splitlines()
    assert len(lines) - 1 == len(written["step"]) == len(events[0])
    last = {name: str(column[-1]) for name, column in written.items()}
    assert lines[-1].split(",") == list(last.values())
    return {"arrays": len(first), "rows": len(events[0]), "steps sampled": int(min(steps, switch))}


def board(folder: pathlib.Path) -> dict[int, dict[str, float]]:
    """Steps and values of all events in a folder; a step that stands there twice is an error."""
    messages: Any = proto
    rows: dict[int, dict[str, float]] = {}
    for path in sorted(folder.iterdir()):
        for data in records(path.read_bytes()):
            event = messages.event_pb2.Event.FromString(data)
            if event.summary.value:
                assert event.step not in rows
                rows[event.step] = {value.tag: value.simple_value for value in event.summary.value}
    return rows


def records(data: bytes) -> Iterator[bytes]:
    """Those of an event file, up to where it was cut off; each has its length and two checksums about it."""
    start = 0
    while start + 12 <= len(data):
        end = start + 12 + struct.unpack_from("<Q", data, start)[0]
        if end + 4 <= len(data):
            yield data[start + 12 : end]
        start = end + 4


def memory(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Resident memory and open files in the second tenth of a run and in its last. Raises an AssertionError if they grow."""
    tenth = len(reports) // 10
    early, late = reports[tenth : 2 * tenth], reports[-tenth:]
    first, last = (statistics.median(report["mib"] for report in some) for some in (early, late))
    assert last - first < GROWTH, f"resident memory grew from {first:.1f} MiB to {last:.1f} MiB"
    assert max(report["files"] for report in late) <= max(report["files"] for report in early), "more files are open"
    return {"MiB in the second tenth": first, "MiB in the last tenth": last, "open files": late[-1]["files"]}


def soak(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both runs and what was found. Raises where something is not as it should be."""
    switch, began = options.steps // 2, time.monotonic()
    one, other = folder / "left_alone", folder / "killed"
    limited = options.hours is not None
    reports = left_alone(one, 2**31 if limited else options.steps, switch, 1800.0 * options.hours if limited else math.inf)
    steps, alone = reports[-1]["step"], time.monotonic() - began
    kills = killed(other, steps, switch, options.kills, random.Random(options.seed))  # noqa: S311 - no secret
    found = {"steps": steps, "seconds left alone": alone, "seconds killed": time.monotonic() - began - alone}
    return found | kills | memory(reports) | compare(one, other, steps, switch)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=10_000_000, help="of each of the two runs (default %(default)s)")
    parser.add_argument("--hours", type=float, help="instead: as many steps as so many hours hold, for both runs together")
    parser.add_argument("--kills", type=int, default=50, help="how often the second run is killed (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of when it is killed (default %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for soak.json")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(pathlib.Path(options.work[0]), int(options.work[1]), int(options.work[2]), float(options.work[3]))
        return
    if options.steps % CHUNK or options.steps < 20 * CHUNK:
        parser.error(f"--steps must be a multiple of {CHUNK} and at least {20 * CHUNK}, got {options.steps}")
    if not 0 <= options.kills < options.steps // CHUNK:
        parser.error(f"--kills must lie in [0, {options.steps // CHUNK}), got {options.kills}")
    with tempfile.TemporaryDirectory() as folder:
        found = soak(pathlib.Path(folder), options)
    files.put(
        options.out / "soak.json", (json.dumps({"found": found, "provenance": provenance.nested()}, indent=1) + "\n").encode()
    )
    Console().print_json(data=found)


if __name__ == "__main__":
    main()
