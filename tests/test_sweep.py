"""The tuner: equal budgets, validation only, and nothing run twice, even after a kill."""

import collections
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import paper
from benchmarks.harness import methods, sweep, training
from benchmarks.harness.sweep import Method, Point, Range

ROOT = pathlib.Path(__file__).parents[1]
SPACE = {"learning_rate": Range(1e-3, 1e1), "temperature": Range(1e-8, 1e-4)}
METHODS = {name: Method(SPACE, lambda *_: None) for name in ("one", "two")}


def experiment(ran=None, *, at_once=2, maximize=False, slow=0.0):
    """Validation is best at learning rate 0.05, test at the smallest, and a learning rate above 5 diverges."""

    def train(hyper, seeds):
        rate = np.asarray(hyper["learning_rate"])
        if ran is not None:
            ran.extend(zip(rate.tolist(), np.asarray(seeds).tolist(), strict=True))
        time.sleep(slow)
        validation = np.where(rate > 5.0, np.nan, np.abs(np.log(rate / 0.05)))
        sign = -1.0 if maximize else 1.0
        ones = np.ones_like(rate)
        return [Point(10 * (i + 1), ones, sign * validation, rate, math.nan * ones) for i in range(3)]

    return sweep.Experiment("toy", "error", {"steps": 30}, lambda _: train, at_once, last_step=30, maximize=maximize)


def run(path, ran=None, **options):
    sweep.sweep(experiment(ran), METHODS, path=path, trials=6, report_seeds=(0, 1, 2), **options)
    return sweep.read(path)


def test_every_method_gets_the_same_number_of_trials_and_the_csv_proves_it(tmp_path):
    rows = run(tmp_path / "results.csv")
    assert paper.budget(rows) == {"one": 6, "two": 6}
    rates = [json.loads(row.hyperparameters)["learning_rate"] for row in rows if (row.method, row.stage) == ("one", "tune")]
    assert len(set(rates)) == 6
    more = [*rows, rows[0]._replace(hyperparameters='{"learning_rate": 7.0}')]
    assert paper.budget(more) == {"one": 7, "two": 6}
    assert "not equal" in paper.budget_in_words(more)
    assert "6 settings on 2 seeds for each of 2 methods" in paper.budget_in_words(rows)
    # A seed less for one setting, for all settings of one method, and for one setting of every method.
    for lacking in (rows[:1], rows[:12:2], [rows[0], next(row for row in rows if row.method == "two")]):
        assert "not equal" in paper.budget_in_words([row for row in rows if row not in lacking])


@pytest.mark.parametrize("maximize", [False, True])
def test_the_best_on_validation_is_reported_on_new_seeds(tmp_path, maximize):
    path = tmp_path / "results.csv"
    sweep.sweep(experiment(maximize=maximize), METHODS, path=path, trials=6, report_seeds=(0, 1, 2))
    rows = sweep.read(path)
    tuned = {json.loads(row.hyperparameters)["learning_rate"] for row in rows if row.stage == "tune"}
    expected = min((rate for rate in tuned if rate <= 5.0), key=lambda rate: abs(math.log(rate / 0.05)))
    reported = [row for row in rows if row.stage == "report"]
    assert {json.loads(row.hyperparameters)["learning_rate"] for row in reported} == {expected}
    tried = [setting["learning_rate"] for setting in sweep.settings(METHODS["one"], 6)]
    assert expected not in (min(tried), max(tried), tried[0], tried[-1])  # what other rules would choose
    assert {row.seed for row in reported} == {0, 1, 2}
    assert not {row.seed for row in reported} & {row.seed for row in rows if row.stage == "tune"}


def test_the_tuner_never_sees_a_test_figure(tmp_path):
    rows = run(tmp_path / "results.csv")
    assert all(math.isnan(row.test) for row in rows if row.stage == "tune")
    assert all(math.isfinite(row.test) for row in rows if row.stage == "report")


def test_only_settings_of_the_budget_can_be_chosen(tmp_path):
    path = tmp_path / "results.csv"
    lucky = run(path)[0]._replace(hyperparameters='{"learning_rate": 0.05, "temperature": 1e-06}', validation=0.0)
    sweep.add(path, [lucky])
    tried = sweep.settings(METHODS["one"], 6)
    assert sweep.best(sweep.read(path), experiment(), "one", tried)["learning_rate"] != 0.05
    with pytest.raises(ValueError, match="was not tried"):
        sweep.best(sweep.read(path), experiment(), "one", sweep.settings(METHODS["one"], 7))


def test_the_setting_reported_last_is_found_again(tmp_path):
    rows = run(tmp_path / "results.csv")
    reported = [row for row in rows if row.stage == "report" and row.method == "one"]
    expected = json.loads(reported[-1].hyperparameters)
    assert sweep.tuned(rows, "toy", "one") == sweep.tuned(rows, "toy", "one", steps=30) == expected
    assert sweep.tuned(rows, "toy", "one", steps=31) is sweep.tuned(rows, "toy", "three") is None
    again = reported[-1]._replace(hyperparameters='{"learning_rate": 7.0}')
    other = again._replace(config='{"steps": 31}')
    assert sweep.tuned([*rows, again], "toy", "one") == {"learning_rate": 7.0}
    assert sweep.tuned([*rows, other], "toy", "one", steps=30) == expected


def test_the_command_line_reports_on_seeds_that_nothing_was_learnt_from():
    options = sweep.parser("toy", None).parse_args([])
    assert list(sweep.reported(options)) == list(sweep.REPORT_SEEDS)
    options.seeds = 6
    assert list(sweep.reported(options))[: len(sweep.REPORT_SEEDS)] == list(sweep.REPORT_SEEDS)
    assert not set(sweep.reported(options)) & {0, 1, 2, 3, *sweep.TUNING_SEEDS}


def test_report_seeds_must_be_new(tmp_path):
    with pytest.raises(ValueError, match="new seeds"):
        run(tmp_path / "results.csv", tuning_seeds=(2, 1000))


def test_nothing_is_run_twice_and_more_trials_add_to_those_made(tmp_path):
    path, ran = tmp_path / "results.csv", []
    run(path, ran)
    assert len(ran) == len(set(ran)) * 2  # both methods try the same settings
    before = len(ran)
    run(path, ran)
    assert len(ran) == before
    sweep.sweep(experiment(ran), METHODS, path=path, trials=8, report_seeds=(0, 1, 2))
    tuning = collections.Counter(seed for _, seed in ran)
    assert tuning[1000] == 16  # two methods, 8 settings, each once


SCRIPT = """
import pathlib, sys
from tests import test_sweep
from benchmarks.harness import sweep
ran = pathlib.Path(sys.argv[2])
class Log(list):
    def extend(self, items):
        with ran.open("a") as file:
            file.writelines(f"{item}\\n" for item in items)
sweep.sweep(test_sweep.experiment(Log(), slow=0.3), test_sweep.METHODS, path=pathlib.Path(sys.argv[1]), trials=6,
            report_seeds=(0, 1, 2))
"""


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path):
    path, log = tmp_path / "results.csv", tmp_path / "log"
    command = [sys.executable, "-c", SCRIPT, str(path), str(log)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(sweep.read(path)) < 4:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = sweep.read(path)
    assert 4 <= len(kept) < 12
    with path.open("a") as file:
        file.write(",".join(str(value) for value in kept[0])[:40])  # a line cut off in the middle
    assert [row.trial for row in sweep.read(path)] == [row.trial for row in kept]
    ran = []
    rows = run(path, ran)
    assert len(ran) == 2 * (6 * len(sweep.TUNING_SEEDS) + 3) - len(kept)  # a tuning trial has one row
    whole = run(tmp_path / "whole.csv")
    assert {row.trial for row in rows} == {row.trial for row in whole}
    assert len(rows) == len(whole)


def test_a_trial_that_was_cut_short_is_run_again_and_the_rest_of_it_added(tmp_path):
    path, ran = tmp_path / "results.csv", []
    whole = run(path)
    lines = path.read_text().splitlines(keepends=True)
    cut = next(i for i, row in enumerate(whole, start=1) if row.stage == "report" and row.step == 20)
    path.write_text("".join(lines[:cut] + lines[cut + 2 :]))  # two of the three points of a trial are gone
    rows = run(path, ran)
    assert len(ran) == 1
    assert sorted(row[:7] for row in rows) == sorted(row[:7] for row in whole)


def test_a_trial_that_is_repeated_must_give_the_same(tmp_path):
    path = tmp_path / "results.csv"
    rows = run(path)
    held = path.read_bytes()
    sweep.add(path, [rows[0]._replace(seconds=99.0)])
    with pytest.raises(ValueError, match=r"other figures for it: train is 1\.0 there, of commit .* and 2\.0 now\. Nothing was"):
        sweep.add(path, [rows[-1]._replace(seed=77), rows[0]._replace(train=2.0)])
    assert path.read_bytes() == held


@pytest.mark.parametrize("columns", [["experiment", "score"], [*sweep.Row._fields, "commit"]], ids=["foreign", "of old"])
def test_another_file_is_heard_of_before_anything_runs(columns, tmp_path):
    path, ran = tmp_path / "results.csv", []
    path.write_text(",".join(columns) + "\n")
    with pytest.raises(ValueError, match=r"has the columns \['experiment', .*Name another file"):
        run(path, ran)
    assert ran == []
    assert path.read_text() == ",".join(columns) + "\n"


def test_an_experiment_says_where_its_trials_end(tmp_path):
    with pytest.raises(ValueError, match="toy ends at step 30, and its last_step is 40"):
        sweep.sweep(experiment()._replace(last_step=40), METHODS, path=tmp_path / "results.csv", trials=1)


def test_settings_fill_their_ranges_and_are_shared():
    tried = sweep.settings(METHODS["one"], 16)
    logs = np.log10([[one["learning_rate"], one["temperature"]] for one in tried])
    for column, (low, high) in zip(logs.T, SPACE.values(), strict=True):
        cells = np.floor(4 * (column - math.log10(low)) / (math.log10(high) - math.log10(low)))
        np.testing.assert_array_equal(np.bincount(cells.astype(int), minlength=4) > 1, True)
    table = methods.table(Range(1e-2, 1e0), Range(1e-4, 1e-1), Range(1e-8, 1e-4), Range(1e-9, 1e-4))
    assert {len(method.space) for method in table.values()} == {3}
    rates = [[one["learning_rate"] for one in sweep.settings(table[name], 12)] for name in ("SGD-M", "SGHMC", "CTLD")]
    assert rates[0] == rates[1] == rates[2]
    assert len(set(rates[0])) >= 10


def test_trials_side_by_side_are_the_trials_alone():
    task = training.Task(
        init=lambda _: {"w": jnp.ones(3)},
        begin=lambda _: (),
        loss=lambda p, memory, data, *_: (jnp.mean((p["w"] - data) ** 2), memory),
        evaluate=lambda p, data, _: (jnp.mean((p["w"] - data) ** 2),) * 3,
        data=jnp.arange(3.0),
    )
    method = methods.table(Range(1e-2, 1e0), Range(1e-4, 1e-1), Range(1e-8, 1e-4), Range(1e-9, 1e-4))["CTLD"]
    hyper = {"learning_rate": jnp.array([0.1, 0.3]), "temperature": jnp.array([1e-3, 1e-4])}
    fit = training.Fit(task, method, steps=40, points=4)
    _, both = fit(hyper, jnp.array([0, 1]))
    _, second = fit({name: values[1:] for name, values in hyper.items()}, jnp.array([1]))
    np.testing.assert_allclose(both[-1].train[1:], second[-1].train, rtol=1e-5)
    assert [point.step for point in both] == [10, 20, 30, 40]
    assert (both[0].temperature >= 1.0).all()
    assert (both[2].temperature == 0.0).all()  # after the hand-over
    with pytest.raises(ValueError, match="multiple"):
        training.Fit(task, method, steps=41, points=4)
