"""The soak: a short one as it is run, and that its comparison finds what it is there to find."""

import json
import random
import shutil

import numpy as np
import pytest

from benchmarks import soak
from ctld_optax import checkpoint

STEPS, SWITCH = 60, 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs of six short chunks, the second one cut in two."""
    parent = tmp_path_factory.mktemp("soak")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soak, "CHUNK", 10)
        soak.work(parent / "one", STEPS, SWITCH, 1e6)
        for steps in (20, STEPS):
            soak.work(parent / "other", steps, SWITCH, 1e6)
    return parent


@pytest.fixture
def runs(folders, tmp_path, monkeypatch):
    """Copies of them, to be harmed."""
    monkeypatch.setattr(soak, "CHUNK", 10)
    for name in ("one", "other"):
        shutil.copytree(folders / name, tmp_path / name)
    return tmp_path / "one", tmp_path / "other"


def test_equal_runs_compare_equal(runs):
    found = soak.compare(*runs, STEPS, SWITCH)
    assert found["rows"] == STEPS
    assert found["steps sampled"] == SWITCH


def another_bit(folder):
    """The least change of one number of the state, saved as if it were right."""
    step, state = checkpoint.restore_latest(folder / "checkpoints", like=soak.fresh(SWITCH)[0])
    weights = np.asarray(state["params"]["out"]).copy()
    weights[3] = np.nextafter(weights[3], np.float32(1.0))
    state["params"]["out"] = weights
    (folder / "checkpoints" / f"step_{step:08d}.npz").unlink()
    checkpoint.save(folder / "checkpoints", step, state)


def another_row(folder):
    text = (folder / "run.csv").read_text()
    (folder / "run.csv").write_text(text.replace("\n7,", "\n7,1"))


def a_row_less(folder):
    text = (folder / "run.csv").read_text()
    (folder / "run.csv").write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("31,")))


def a_table_less(folder):
    sorted((folder / "parquet").iterdir())[1].unlink()


def events_less(folder):
    path = max((folder / "board").iterdir())
    path.write_bytes(path.read_bytes()[:-30])


def events_twice(folder):
    path = max((folder / "board").iterdir())
    shutil.copy(path, folder / "board" / "once_more")


def a_checkpoint_more(folder):
    path = min((folder / "checkpoints").iterdir())
    shutil.copy(path, path.with_name("step_00000010.npz"))


def a_leftover(folder):
    (folder / "checkpoints" / ".step_00000040.npz.7.partial").touch()


@pytest.mark.parametrize(
    "harm",
    [another_bit, another_row, a_row_less, a_table_less, events_less, events_twice, a_checkpoint_more, a_leftover],
    ids=lambda harm: harm.__name__,
)
def test_what_differs_is_found(runs, harm):
    harm(runs[1])
    with pytest.raises(AssertionError):
        soak.compare(*runs, STEPS, SWITCH)


def test_a_leak_is_found():
    flat = [{"mib": 300.0 + (number % 3), "files": 9} for number in range(100)]
    assert soak.memory(flat)["open files"] == 9
    for leak in ({"mib": 0.3}, {"files": 1}):
        leaking = [{name: one[name] + number * leak.get(name, 0) for name in one} for number, one in enumerate(flat)]
        with pytest.raises(AssertionError, match=r"memory grew|more files"):
            soak.memory(leaking)


def test_a_worker_that_fails_ends_the_soak(tmp_path, capfd):
    (tmp_path / "run.csv").write_text("notes\n")
    with pytest.raises(RuntimeError, match="exit status 1"):
        soak.left_alone(tmp_path, STEPS, SWITCH, 1e6)
    assert "not a record of a run" in capfd.readouterr().err


@pytest.mark.slow
def test_a_short_soak(tmp_path, capsys):
    soak.main(["--steps", "200000", "--kills", "3", "--seed", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "soak.json").read_text())["found"]
    assert found == json.loads(capsys.readouterr().out)
    assert found["steps"] == 200_000
    assert found["killed in a chunk"] == 3
    assert found["rows"] > 1024  # more than the recorder holds at once


def test_kills_fall_where_they_were_drawn(tmp_path, monkeypatch):
    """The loop of kills, with workers that only count."""
    lives = []

    class Counting:
        def __init__(self, folder, steps, switch):
            self.first, self.last = (lives[-1].last if lives else 0), steps // soak.CHUNK
            lives.append(self)

        def reports(self):
            for chunk in range(self.first + 1, self.last + 1):
                self.last = chunk
                yield {"step": chunk * soak.CHUNK}

        def kill(self):
            self.last = max(self.first, self.last - 1) if self.last < 1000 else self.first  # it had not saved yet

    monkeypatch.setattr(soak, "Worker", Counting)
    monkeypatch.setattr(soak.time, "sleep", lambda _: None)
    done = soak.killed(tmp_path, 1000 * soak.CHUNK, SWITCH, 20, random.Random(0))
    assert done["killed in a chunk"] == 20
    assert len(lives) == 1 + sum(done.values())
    assert lives[-1].last == 1000
