"""The readings of the plateau benchmark on rows made by hand, and the script at its smallest."""

import json
import math

import numpy as np
import pytest

from benchmarks import plateau, plateau_maps, sweep
from benchmarks.plateau_maps import Map


def row(method, temperature, seed, accuracies, **hyper):
    """The rows of one trial; NaN where it had diverged."""
    hyper = json.dumps({"learning_rate": plateau.RATE, "temperature": temperature, **hyper}, sort_keys=True)
    return [
        sweep.Row("plateau", "{}", method, "report", hyper, seed, 10 * (i + 1), "accuracy", a, a, a, 0.0, 1.0)
        for i, a in enumerate(accuracies)
    ]


FLAT = [0.1, 0.1, 0.1, 0.1]
GOOD = [0.1, 0.8, 0.95, 0.95]


def rows_of(method, by_temperature, **hyper):
    return [
        line
        for temperature, runs in by_temperature.items()
        for seed, run in enumerate(runs)
        for line in row(method, temperature, seed, run, **hyper)
    ]


def test_a_band_is_measured_in_decades_seed_by_seed():
    values = np.geomspace(1e-6, 1e-3, 4)
    final = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.1]])
    each = Map(values, np.repeat(final[..., None], 4, axis=-1))
    # Up and down through 0.5 halfway between neighbours: two decades for the first seed, one for the second.
    np.testing.assert_allclose(each.decades(0.5), [2.0, 1.0], atol=1e-3)
    np.testing.assert_allclose(each.decades(0.05), [3.0, 3.0], atol=1e-3)
    np.testing.assert_allclose(each.decades(0.95), [0.0, 0.0])


def test_fates():
    runs = [FLAT, GOOD, [0.1, 0.6, 0.4, 0.3], [0.1, 0.8, 0.3, 0.1], [0.1, 0.5, math.nan, math.nan], [math.nan] * 4]
    found = Map(np.arange(1.0, 7.0), np.array(runs)[:, None])
    expected = ["never left", "trained", "on the way", "lost again", "diverged", "diverged"]
    assert found.fates.ravel().tolist() == expected
    assert found.final[-1] == 0.0


def test_only_values_that_all_seeds_have_are_shown():
    rows = rows_of("SGHMC", {1e-6: [FLAT, FLAT], 1e-5: [GOOD, GOOD], 1e-4: [GOOD]}, strength=0.0)
    found = plateau_maps.collect(rows, "SGHMC", "temperature", learning_rate=plateau.RATE)
    np.testing.assert_array_equal(found.values, [1e-6, 1e-5])
    assert found.curves.shape == (2, 2, 4)
    assert plateau_maps.collect(rows, "SGHMC", "temperature", learning_rate=0.5) is None


@pytest.mark.parametrize(("second", "verdict"), [(GOOD, "wider above"), (FLAT, "not wider")])
def test_the_section_tells_a_wider_band_from_one_that_is_not(second, verdict, tmp_path):
    temperatures = [1e-6, 1e-5, 1e-4, 1e-3]
    narrow = dict(zip(temperatures, ([FLAT] * 3, [GOOD] * 3, [FLAT] * 3, [FLAT] * 3), strict=True))
    rows = rows_of("SGHMC", narrow, strength=0.0)
    rows += rows_of("CTLD", {**narrow, 1e-4: [second] * 3}, strength=plateau.STRENGTHS[0])
    hyper = json.dumps({"learning_rate": 0.1})
    rows += [line._replace(method="SGD-M", hyperparameters=hyper) for line in row("", 0.0, 0, FLAT)]
    text = plateau.summarize(rows, tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("- CTLD, S = 0.85 against SGHMC"))
    assert verdict in line
    assert "SGD-M left chance level in 0 of its 1 runs" in text
    assert (tmp_path / "plateau.png").stat().st_size > 50_000


def test_all_methods_of_the_paper_have_ten_learning_rates():
    rates = {name: [hyper["learning_rate"] for hyper in plateau.rate_map(name, plateau.GRID)] for name in plateau.COMPARED}
    assert set(rates) == {"SGD-M", "RMSprop", "Adam", "AnnealSGD", "Santa", "SGHMC", "CTLD"}
    assert all(len(set(found)) >= 10 for found in rates.values())


def test_ends_in_a_table_and_a_figure_and_runs_nothing_twice(tmp_path, capsys):
    command = ["--steps", "4", "--trials", "1", "--seeds", "1", "--csv", str(tmp_path / "r.csv"), "--out", str(tmp_path)]
    command += ["--methods", "SGD-M", "CTLD, cold hand-over", "CTLD, cooled"]
    plateau.main(command)
    assert "| SGD-M | 1, 0.001 to 0.001 | 0 of 1 |" in capsys.readouterr().out
    assert (tmp_path / "plateau.png").exists()
    lines = (tmp_path / "r.csv").read_text()
    plateau.main(command)
    assert (tmp_path / "r.csv").read_text() == lines
