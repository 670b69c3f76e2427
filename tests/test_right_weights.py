"""How many gradients until every seed is right: budgets in turn, none measured twice, a wrong seed ends one."""

import json
import math

import numpy as np
import pytest

from benchmarks import multimodal, right_weights
from benchmarks.harness import crossers, multimodal_run, separated, standing, table
from benchmarks.harness.right_weights_run import KEY, Row, compared, least, needed
from tests.test_multimodal import pair, toy_found, toy_truth

pytestmark = pytest.mark.usefixtures("x64")


def row(budget, seed, worst=0.01, found=2, method="CTLD"):
    return Row("galaxies", method, "{}", budget, seed, budget, 2, found, worst, worst, 1.0, "ctld-optax 1")


def test_a_run_is_right_with_all_modes_and_all_weights():
    assert row(100, 0, 0.05).is_right
    assert not row(100, 0, 0.0501).is_right
    assert not row(100, 0, found=1).is_right


def test_the_budget_is_the_first_at_which_every_seed_is_right():
    rows = [row(100, 0), row(100, 1, 0.2), row(200, 0), row(200, 1), row(400, 0), row(400, 1)]
    assert least(rows, "galaxies", "CTLD", 2) == 200
    assert needed(rows, "galaxies", "CTLD", 2) == "200"
    assert needed(rows, "galaxies", "CTLD", 3) == "not finished"  # of three seeds one has not run
    assert needed([*rows, row(400, 2, 0.2)], "galaxies", "CTLD", 3) == "more than 400"
    assert needed(rows, "galaxies", "NUTS", 2) == "not run"


def test_samplers_are_compared_once_all_are_right_or_wrong_with_as_many_gradients():
    ours = [row(100, 0, 0.2), row(200, 0), row(200, 1)]
    none = row(100, 0, 0.2, method="NUTS")
    assert compared(ours, 2) == {}  # beside nobody
    assert compared([*ours, none], 2) == {}  # NUTS may be right with 200
    assert compared([*ours, none, row(200, 0, method="NUTS")], 2) == {}  # a seed is to come
    assert compared([*ours, none, row(200, 0, 0.2, method="NUTS")], 2) == {"galaxies": {"CTLD": 200, "NUTS": None}}
    early = [row(100, 0, method="NUTS"), row(100, 1, method="NUTS")]
    assert compared([*ours, *early], 2) == {"galaxies": {"CTLD": 200, "NUTS": 100}}
    assert compared([ours[0], *early], 2) == {}  # CTLD is not right


@pytest.mark.parametrize(
    ("theirs", "verdict", "words"),
    [
        ((100, 0.01), standing.LOSES, "CTLD: 200; NUTS: 100"),
        ((200, 0.01), standing.LEVEL, "CTLD: 200; NUTS: 200"),
        ((200, 0.2), standing.WINS, "CTLD: 200; the other 1: more"),
    ],
)
def test_the_verdict_is_of_the_least_gradients(theirs, verdict, words, tmp_path):
    budget, worst = theirs
    rows = [one for seed in range(8) for one in (row(200, seed), row(budget, seed, worst, method="NUTS"))]
    table.add(tmp_path / "right_weights.csv", Row, rows, key=KEY)
    (line,) = standing.right_weights(tmp_path)
    assert (line.verdict, line.figures) == (verdict, words)


def test_the_largest_error_of_a_weight_is_told():
    assert multimodal.score(pair(), toy_truth(), toy_found(0.5))["worst"] == pytest.approx(0.3, abs=0.02)
    lost = toy_found()
    lost.samples[...] = np.inf
    assert multimodal.score(pair(), toy_truth(), lost)["worst"] == 1.0


@pytest.fixture
def toys(monkeypatch):
    """CTLD is right from 400 gradients on, NUTS, which takes its setting from the pilots' choice, never, SGHMC always."""
    ran = []

    def sampler(method, weight_of):
        def sample(target, key, budget, **setting):
            ran.append((method, budget, setting))
            return toy_found(weight_of(budget))

        return sample

    def method(name, weight_of, *settings):
        monkeypatch.setitem(crossers.METHODS, name, crossers.Method(sampler(name, weight_of), settings, "blackjax"))

    monkeypatch.setattr(separated, "problem", lambda _: pair())
    monkeypatch.setattr(separated, "truth", lambda _: toy_truth())
    method("CTLD", lambda budget: 0.8 if budget >= 400 else 0.5, {})
    method("NUTS", lambda _: 0.5, {"dense": True}, {"dense": False})
    method("SGHMC", lambda _: 0.8, {})
    return ran


def test_budgets_go_up_until_all_are_right_and_nothing_is_measured_twice(toys, tmp_path, monkeypatch, capsys):
    figures = dict.fromkeys(("variation", "chain_variation", "error", "error_square", "seconds"), 0.1)
    counts = dict.fromkeys(("seed", "budget", "chains", "draws", "gradients", "found", "modes"), 2)
    pilots = multimodal.Row(
        problem="galaxies", method="NUTS", setting=json.dumps({"dense": False}), stage="report", round_trips=math.nan, by="",
        **figures, **counts,
    )  # fmt: skip
    table.add(tmp_path / "pilots.csv", multimodal.Row, [pilots], key=multimodal_run.KEY)
    monkeypatch.setattr(multimodal, "CSV", tmp_path / "pilots.csv")
    monkeypatch.setenv("COLUMNS", "200")
    options = ["--problems", "galaxies", "--seeds", "2", "--budgets", "800", "200", "400", "--csv", str(tmp_path / "right.csv")]
    right_weights.main([*options, "--methods", "CTLD", "NUTS", "SGHMC"])
    ours = [("CTLD", 200, {}), ("CTLD", 400, {}), ("CTLD", 400, {})]
    theirs = [("NUTS", 200, {"dense": False}), ("NUTS", 400, {"dense": False})]  # no further than CTLD
    assert toys == [*ours, *theirs, ("SGHMC", 200, {}), ("SGHMC", 200, {})]
    printed = capsys.readouterr().out
    assert "more than 400" in printed
    first = (tmp_path / "right.csv").read_text()
    right_weights.main([*options, "--methods", "CTLD", "NUTS", "SGHMC"])
    assert len(toys) == 7
    assert (tmp_path / "right.csv").read_text() == first


def test_a_sampler_that_was_never_tuned_is_refused():
    with pytest.raises(ValueError, match="NUTS has no setting for galaxies yet"):
        multimodal_run.chosen([], "galaxies", "NUTS", [{"dense": True}, {"dense": False}])
    assert multimodal_run.chosen([], "galaxies", "CTLD", [{}]) == {}


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(SystemExit):
        right_weights.main(["--seeds", "0"])
