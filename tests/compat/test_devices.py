"""Sharding: where the arrays lie changes nothing but where the work is done. The runs are made by `devices.py`."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import versions

ROOT = Path(__file__).parents[2]
SCALAR_SUMS = re.compile(r"all-reduce (f32\[\]|\(f32\[\](, f32\[\])*\))")  # one scalar, or some in one message

pytestmark = [pytest.mark.slow, versions.MESHES]


def start(*arguments):
    """`python -m tests.compat.devices` as a process of its own, which may set the number of its devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.compat.devices", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "report.json"
    finish(start("--out", path))
    return json.loads(path.read_text())


def test_trajectory_does_not_depend_on_the_number_of_shards(report):
    # 1, 2, 4, 8 devices, Auto and Explicit meshes and shard_map, against jit on one device. The sum over all parameters is
    # taken in another order: alpha and parameters differ by 1 unit in the last place of 1.0 (measured 6e-8 and 4e-8 after 60
    # steps).
    assert {(run["way"], run["count"]) for run in report["runs"]} >= {
        *(("auto", count) for count in (1, 2, 4, 8)),
        *(("shard_map", count) for count in (1, 2, 4, 8)),
        ("explicit", 8),
    }
    for run in report["runs"]:
        assert run["alpha error"] < 1e-6, run
        assert run["params error"] < 1e-6, run


def test_bit_for_bit_where_no_sum_feeds_back(report):
    runs = [run for run in report["runs"] if run["name"] == "sghmc"]
    assert len(runs) == 10
    assert all(run["params error"] == 0.0 for run in runs)


def test_the_energy_did_act_on_alpha(report):
    # Else the tests above would compare constants: within delta = 0.4 alpha does not feel the energy.
    assert all(run["alpha range"] > 0.5 for run in report["runs"] if run["name"] != "sghmc")


def test_the_only_collectives_are_sums_of_scalars(report):
    # The whole training program, loss and all: no parameter and no noise is gathered, no bits are sent.
    for run in report["runs"]:
        assert all(SCALAR_SUMS.fullmatch(kind) for kind in run["collectives"]), run
        assert run["collectives"] or run["count"] == 1, run


def test_the_reading_of_the_program_finds_other_collectives(report):
    assert not all(SCALAR_SUMS.fullmatch(kind) for kind in report["control"])


def test_state_is_cut_like_the_parameters(report):
    assert all(run["sharding kept"] for run in report["runs"])


def test_data_parallel(report):
    # The gradient is a mean over shards, in another order for each number of them; 60 steps amplify the last bit.
    for run in report["data parallel"]:
        assert run["error"] < 1e-4, run
        assert all(kind.startswith("all-reduce") for kind in run["collectives"]), run


def test_walkers_on_several_devices_share_one_bias(report):
    assert report["walkers"]["both axes"] < 1e-6
    assert report["walkers"]["vmapped axis only"] > 0.1  # then hills of height 0.2 are missing


def test_sharded_checkpoints(report):
    assert len(report["checkpoints"]) == 6
    assert all(report["checkpoints"].values()), report["checkpoints"]


def test_two_processes_are_as_one(report, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    paths = [tmp_path / f"{index}.json" for index in range(2)]
    for process in [start("--process", index, "--port", port, "--out", path) for index, path in enumerate(paths)]:
        finish(process)
    one = report["alone"]
    for path in paths:
        two = json.loads(path.read_text())
        assert two["devices"] == 4
        assert two["collectives"]
        assert all(SCALAR_SUMS.fullmatch(kind) for kind in two["collectives"])
        np.testing.assert_allclose(two["alpha"], one["alpha"], rtol=0.0, atol=1e-6)
        for name, leaf in one["params"].items():
            np.testing.assert_allclose(two["params"][name], leaf, rtol=0.0, atol=1e-6)
