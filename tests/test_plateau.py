"""The plateau's tuner, its maps on rows made by hand, and the three scripts at their smallest."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import plateau, plateau_rates, plateau_tuned
from benchmarks.harness import deep_mlp, plateau_maps, sweep
from benchmarks.harness.plateau_maps import Map


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
    text = plateau.summarize(rows, tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("- CTLD, S = 0.85 against SGHMC"))
    assert verdict in line
    assert (tmp_path / "plateau.png").stat().st_size > 50_000


@pytest.mark.parametrize("name", ["AnnealSGD", "SGHMC"])
def test_noise_alone_carries_a_weight_as_far_as_its_reach(name):
    steps, weights = 2_400, 4_000
    hyper = {"learning_rate": 0.004, "reach": 0.15}
    tx = optax.with_extra_args_support(plateau_tuned.METHODS[name].make(hyper, jax.random.key(0), steps))
    params = {"w": jnp.zeros(weights)}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, value=jnp.float32(0.0))
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)
    # A root mean square over 4,000 weights is off by 1.1 % (one sigma); the momentum's start and end by less than 1 %.
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(params["w"] ** 2)), 0.15, rtol=0.055)


def test_every_method_of_the_paper_is_tuned_over_two_ranges_shared_by_its_kind():
    spaces = {name: method.space for name, method in plateau_tuned.METHODS.items()}
    assert list(spaces) == ["SGD-M", "RMSprop", "Adam", "AnnealSGD", "Santa", "SGHMC", "CTLD"]
    assert {len(space) for space in spaces.values()} == {2}
    assert spaces["AnnealSGD"] == spaces["SGHMC"] == spaces["CTLD"]
    assert spaces["SGD-M"]["learning_rate"] == spaces["CTLD"]["learning_rate"]
    assert spaces["RMSprop"]["learning_rate"] == spaces["Adam"]["learning_rate"]


def trial(experiment, method, stage, hyper, seed, accuracies):
    config = json.dumps({"data": "digits", "steps": 10 * len(accuracies), "train_images": 1})
    return [
        sweep.Row(experiment, config, method, stage, json.dumps(hyper), seed, 10 * (i + 1), "accuracy", a, a, a, 0.0, 1.0)
        for i, a in enumerate(accuracies)
    ]


@pytest.mark.parametrize(("rival", "word"), [(0.5, "better than"), (0.99, "**worse** than"), (math.nan, "better than")])
def test_the_tuned_section_says_who_wins_and_a_diverged_run_counts_as_zero(rival, word, tmp_path):
    rows = []
    for method, accuracy in {"SGD-M": 0.1, "SGHMC": rival, "CTLD": 0.9}.items():
        for rate in (0.1, 0.2, 0.3):
            hyper = {"learning_rate": rate, "reach": 0.2}
            for seed in (1000, 1001):
                rows += trial("plateau_tuned", method, "tune", hyper, seed, [0.3 if rate > 0.15 else 0.1])
        for seed in range(4):
            hyper = {"learning_rate": 0.2, "reach": 0.2}
            rows += trial("plateau_tuned", method, "report", hyper, seed, [0.1, accuracy + 0.001 * seed])
    text = plateau_tuned.summarize(rows, tmp_path)
    assert f"- CTLD is {word} SGHMC" in text
    assert ("SGHMC 0.000" in text) == math.isnan(rival)
    assert "| CTLD | 2 of 3 | 0 of 3 | 4 of 4 | 4 of 4 | 0.901 | 0.900 |" in text
    assert "CTLD temperature 0.001" in text  # 20 steps, half of them sampling: 0.2^2 * 0.1 / (2 * 0.2 * 10)
    assert "SGD-M left chance level in 4 of its 10 runs" in text  # those of the tuner at 0.3
    assert (tmp_path / "plateau_tuned.png").stat().st_size > 20_000


def test_the_map_over_learning_rates_keeps_what_the_tuner_chose():
    chosen = {"learning_rate": 0.004, "reach": 0.2}
    rows = trial("plateau_tuned", "CTLD", "tune", {"learning_rate": 0.1, "reach": 0.5}, 1000, [0.99])
    rows += trial("plateau_tuned", "CTLD", "report", chosen, 0, [0.1])
    assert plateau_rates.chosen(rows, "CTLD", "digits") == chosen
    with pytest.raises(ValueError, match="not been tuned on mnist"):
        plateau_rates.chosen(rows, "CTLD", "mnist")
    tried = plateau_rates.settings("CTLD", plateau_rates.GRID, chosen)
    assert {one["reach"] for one in tried} == {0.2}
    assert len({one["learning_rate"] for one in tried}) == 10
    adam = plateau_rates.settings("Adam", 10, {"learning_rate": 1e-3, "friction": 0.1})
    assert max(one["learning_rate"] for one in adam) < max(one["learning_rate"] for one in tried)


@pytest.mark.slow
def test_the_scripts_end_in_tables_and_figures_and_run_nothing_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deep_mlp, "HIDDEN_LAYERS", 3)  # the compiler takes its time for the weights of each layer
    places = ["--csv", str(tmp_path / "r.csv"), "--out", str(tmp_path), "--steps", "4", "--trials", "1", "--seeds", "1"]
    methods = ["--methods", "SGD-M", "CTLD"]
    commands = {plateau_tuned: methods, plateau_rates: methods, plateau: ["--methods", "CTLD, cold hand-over", "CTLD, cooled"]}
    lines = {plateau_tuned: "| SGD-M | 0 of 1 |", plateau_rates: "| SGD-M | 1, 0.0003 to 0.0003 | 0 of 1 |",
             plateau: "| CTLD, cooled |"}  # fmt: skip
    for script, options in commands.items():
        script.main([*places, *options])
        assert lines[script] in capsys.readouterr().out
        assert (tmp_path / f"{script.NAME}.png").exists()
    written = (tmp_path / "r.csv").read_text()
    for script, options in commands.items():
        script.main([*places, *options])
    assert (tmp_path / "r.csv").read_text() == written
