"""Sharding on whatever version of JAX is here; the runs are made by `shards.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from .shards import SETTINGS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.compat.shards"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_way_gives_the_trajectory_of_one_device(found):
    # Sums over shards are in another order: measured 2e-7 of numbers about 1, after 60 steps.
    settings = {*(f"shard_map, {name}" for name in SETTINGS), "init in shard_map, FixedMetric"}
    assert set(found["errors"]) == {"auto", "shard_map", *(["explicit"] if hasattr(jax, "typeof") else []), *settings}
    assert max(map(max, found["errors"].values())) < 1e-5


def test_the_energy_did_act_on_alpha(found):
    assert found["range of alpha"] > 0.5
