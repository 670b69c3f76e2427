"""The benchmark of minibatches: what it compares, what it keeps, and at a small size what it finds."""

import re

import jax
import numpy as np
import pytest

from benchmarks import minibatches
from benchmarks.harness import table

SD = np.linspace(0.5, 2.0, minibatches.DIMENSION)


def independent(times):
    def sample(rows, size, key):
        draws = np.sqrt(times) * SD * np.asarray(jax.random.normal(key, (4, 2_000, minibatches.DIMENSION)))
        return minibatches.Found(draws, 300.0, 100.0)

    return sample


def test_the_command_runs_what_is_missing_and_compares_with_nuts(tmp_path, monkeypatch, capsys):
    others = {minibatches.REFERENCE: (independent(1.0), "blackjax", 2), "in one call": (independent(1.2), "ctld-optax", 1)}
    monkeypatch.setattr(minibatches, "METHODS", others)
    places = ["--csv", str(tmp_path / "results.csv"), "--out", str(tmp_path)]
    minibatches.main(["--small", "--methods", minibatches.REFERENCE, *places])
    first = table.read(tmp_path / "results.csv", minibatches.Row)
    assert [row.run for row in first] == [(minibatches.REFERENCE, 2_000, 0), (minibatches.REFERENCE, 2_000, 1)]
    np.testing.assert_allclose(first[0].variance, SD**2, rtol=0.1)
    assert first[0].ess_square == pytest.approx(8_000, rel=0.15)
    minibatches.main(["--small", *places])
    again = table.read(tmp_path / "results.csv", minibatches.Row)
    assert again[:2] == first
    assert [row.run for row in again[2:]] == [("in one call", 2_000, 0)]
    (mean,) = re.findall(r"in one call +│ 0 +│ \+(\d+\.\d)", capsys.readouterr().out)
    assert float(mean) == pytest.approx(20.0, abs=3.0)
    assert (tmp_path / "minibatches.png").stat().st_size > 10_000


def test_every_method_has_a_colour():
    assert minibatches.COLORS.keys() == minibatches.METHODS.keys()


@pytest.mark.slow
def test_batches_have_the_variances_of_nuts_on_all_rows():
    """Within 4 standard errors of both, and 3 % for the step and for what is white of the noise."""
    size = minibatches.Size(rows=5_000, nuts=(300, 2_000), samples=4_000, passes=200)
    rows, key = minibatches.rows_of(size.rows), jax.random.key(0)
    ours, theirs = minibatches.in_one_call(rows, size, key), minibatches.nuts(rows, size, key)
    plain = minibatches.by_hand(rows, size, key, gradient_noise=None)
    variances = [np.asarray(found.samples, np.float64).var((0, 1)) for found in (ours, theirs, plain)]
    # Of 4 x 2,000 draws a third or more are independent squares: sqrt(2 / 2,500) is 0.03.
    assert np.abs(np.log(variances[0] / variances[1])).max() < 4.0 * 0.03 + 0.03
    assert np.median(variances[2] / variances[1]) > 1.3  # half of the noise again: the negative control
    assert ours.passes + ours.warmup_passes < 0.5 * float(theirs.passes + theirs.warmup_passes)
