"""The benchmark scripts at their smallest, and the loaders of real data."""

import gzip
import hashlib
import json
import os
import pathlib
import struct
import zipfile

import jax
import numpy as np
import pytest

from benchmarks import (
    char_rnn,
    digits,
    paper,
    phases,
    round_trips,
    sda,
    sda_phases,
    sensitivity,
    step_cost,
    temperature_range,
    value_free,
)
from benchmarks.harness import data, deep_mlp, provenance, sweep, table


def test_digits_ends_in_a_table_and_a_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deep_mlp, "HIDDEN_LAYERS", 3)  # the compiler takes its time for the weights of each layer
    digits.main(["--steps", "50", "--seeds", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    labels = list(digits.jobs(tune=False))
    assert all(label in printed for label in labels)
    assert (tmp_path / "digits.png").stat().st_size > 50_000
    assert (tmp_path / "digits_ends.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "digits.json").read_text())
    assert list(written["results"]) == labels
    assert all(len(row["test_accuracy"]) == 2 for row in written["results"].values())
    assert written["provenance"]["packages"]["jax"] != "not installed"


def test_interrupted_digits_keeps_what_is_done(tmp_path, capsys, monkeypatch):
    def interrupted(factory, split, seeds, steps, on_chunk, curves):
        del factory, split, on_chunk
        if "SGD-M" in done:
            curves["train_loss"] = [np.ones(len(seeds))]
            curves["test_accuracy"] = [np.zeros(len(seeds))]
            raise KeyboardInterrupt
        done.append("SGD-M")
        curves["train_loss"] = [np.full(len(seeds), 2.3)] * (steps // digits.CHUNK)
        curves["test_accuracy"] = [np.full(len(seeds), 0.1)] * (steps // digits.CHUNK)

    done: list[str] = []
    monkeypatch.setattr(digits, "train", interrupted)
    digits.main(["--steps", "100", "--seeds", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Interrupted in Adam" in printed
    assert "(step 50)" in printed
    assert len(json.loads((tmp_path / "digits.json").read_text())["results"]) == 2
    assert (tmp_path / "digits.png").exists()


def test_round_trips_measures_each_line_once(tmp_path, capsys, monkeypatch):
    smallest = ["--steps", "2500", "--chains", "2", "--csv", str(tmp_path / "lines.csv")]
    slow, fast = (next(s for s in round_trips.SETTINGS if s.coupling == c) for c in ("hamiltonian", "potential"))
    monkeypatch.setattr(round_trips, "SETTINGS", [slow])
    round_trips.main(smallest)
    first = (tmp_path / "lines.csv").read_text()
    monkeypatch.setattr(round_trips, "SETTINGS", [slow, fast])
    round_trips.main(smallest)
    assert (tmp_path / "lines.csv").read_text().startswith(first)
    assert [row[:5] for row in table.read(tmp_path / "lines.csv", round_trips.Row)] == [slow, fast]
    assert "potential" in capsys.readouterr().out


def test_round_trips_hears_of_another_file_before_it_measures(tmp_path, monkeypatch):
    path = tmp_path / "lines.csv"
    path.write_text(",".join([*round_trips.Row._fields, "temperature"]) + "\n")
    monkeypatch.setattr(round_trips, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"has the columns .* Name another file"):
        round_trips.main(["--csv", str(path)])


@pytest.mark.parametrize("arguments", [["--steps", "75"], ["--steps", "0"], ["--seeds", "0"]])
def test_digits_refuses_what_it_cannot_do(arguments):
    with pytest.raises(SystemExit):
        digits.main(arguments)


def test_step_cost_writes_its_figures_and_measures_nothing_twice(tmp_path, capsys):
    smallest = ["--sizes", "1000", "--layouts", "one leaf", "--seconds", "0", "--out", str(tmp_path), "--variants"]
    step_cost.main([*smallest, "SGD-M", "CTLD gaussian"])
    first = (tmp_path / "step_cost.csv").read_text()
    assert len(first.splitlines()) == 3
    assert (tmp_path / "step_cost.png").exists()
    with pytest.raises(SystemExit):
        step_cost.main([*smallest, "SGD-M", "Adam"])
    assert "has ('one leaf, 1e3', 'SGD-M') already, and 0 others of these. Name another folder" in capsys.readouterr().err
    assert (tmp_path / "step_cost.csv").read_text() == first
    step_cost.main([*smallest, "Adam"])
    assert (tmp_path / "step_cost.csv").read_text().startswith(first)
    assert [row.variant for row in table.read(tmp_path / "step_cost.csv", step_cost.Row)] == ["SGD-M", "CTLD gaussian", "Adam"]


@pytest.mark.slow
def test_value_free_runs_once_and_says_what_it_found(tmp_path, capsys):
    arguments = ["--networks", "digits", "--seeds", "2", "--steps", "8", "--csv", str(tmp_path / "free.csv")]
    value_free.main(arguments)
    rows = table.read(tmp_path / "free.csv", value_free.Row)
    assert {(row.drive, row.temperature, row.seed) for row in rows} == {
        (drive, t, seed) for drive in ("loss", "kinetic", "work") for t in (2.5e-5, 4e-5) for seed in (0, 1)
    }
    assert all(sum(json.loads(row.alpha_counts)) == 4 for row in rows)  # the steps of the sampling phase
    assert "2 runs of" in capsys.readouterr().out
    value_free.main(arguments)
    assert "2 runs of" not in capsys.readouterr().out


def test_value_free_pools_the_seeds_of_a_setting():
    half = [100] * 7 + [50] + [0] * 7
    rows = [
        value_free.Row("CNN", "kinetic", 0.1, 1e-4, 8, seed, "accuracy", 0.1, 0.9, 0.267, json.dumps(counts), 1.0)
        for seed, counts in enumerate([half, half[::-1]])
    ]
    assert value_free.divergence(rows) < 1e-9
    assert value_free.divergence(rows[:1]) > 0.5
    assert list(value_free.show(rows).columns[5].cells) == ["yes"]
    assert list(value_free.show(rows[:1]).columns[5].cells) == ["no"]


def ramp_rows(metric, ends, suggestions):
    grid = temperature_range.grid(1e-6)
    rows = [
        temperature_range.Row("CNN", "grid", t, 8, seed, metric, end, "[]", np.nan, "", 1.0)
        for t, end in zip(grid, ends, strict=True)
        for seed in (0, 1)
    ]
    losses = json.dumps([2.0] * 40)
    return rows + [
        temperature_range.Row("CNN", "ramp", 0.0, 4, seed, metric, np.nan, losses, suggestion, "", 1.0)
        for seed, suggestion in enumerate(suggestions)
    ]


def test_temperature_range_reads_the_band_around_the_best_end(tmp_path):
    nan = float("nan")
    # The last one is as good as the best, and cut off from it.
    accuracy = ramp_rows("accuracy", [0.1, 0.94, 0.96, 0.95, 0.5, nan, 0.96], [4e-6, 2e-5, 4e-5, nan])
    found = temperature_range.read(accuracy)
    half = 10 ** (1 / 6)
    np.testing.assert_allclose(found.band, [2.2e-6 / half, 1e-5 * half], rtol=1e-6)
    assert found.hits.tolist() == [True, False, False, False]
    np.testing.assert_allclose(found.off[:3], [1.0, 2e-5 / (1e-5 * half), 4e-5 / (1e-5 * half)])
    loss = temperature_range.read(ramp_rows("mse", [0.04, 0.0329, 0.03, 0.031, 0.05, nan, 1e9], [1e-7]))
    np.testing.assert_allclose(loss.band, [2.2e-6 / half, 1e-5 * half], rtol=1e-6)
    assert loss.hits.tolist() == [False]
    temperature_range.draw(tmp_path / "range.png", accuracy)
    assert (tmp_path / "range.png").stat().st_size > 10_000
    assert list(temperature_range.show(accuracy).columns[4].cells) == ["1 of 4"]


TINY = ["--steps", "3", "--trials", "2", "--seeds", "2", "--methods", "SGD-M", "CTLD"]


@pytest.fixture
def tiny_text(tmp_path, monkeypatch):
    """A text of 27 characters in place of War and Peace, and an LSTM of one layer of four units."""
    content = bytes(np.random.default_rng(0).integers(97, 124, 3_000).tolist())
    monkeypatch.setattr(data, "text", lambda _: data.split_text(content))
    for name, value in {"LAYERS": 1, "UNITS": 4, "BATCH": 2, "LENGTH": 5, "MEASURED": 100}.items():
        monkeypatch.setattr(char_rnn, name, value)
    return ["--csv", str(tmp_path / "results.csv"), "--out", str(tmp_path)]


@pytest.mark.slow
def test_char_rnn_and_what_follows_it_end_in_tables_figures_and_a_page(tiny_text, tmp_path, capsys):
    char_rnn.main([*TINY, *tiny_text])
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in ("SGD-M", "CTLD"))
    assert (tmp_path / "char_rnn.png").stat().st_size > 20_000
    rows = sweep.read(tmp_path / "results.csv")
    assert paper.budget(rows) == {"SGD-M": 2, "CTLD": 2}
    assert {row.step for row in rows} == {1, 2, 3}
    # 27 characters at random: nothing can be far below 27, and an untrained network is not far above.
    assert all(20.0 < row.train < 40.0 for row in rows)

    sensitivity.main(["--steps", "3", "--seeds", "2", *tiny_text])
    assert "varies by" in capsys.readouterr().out
    rows = sweep.newest(sweep.read(tmp_path / "results.csv"), "sensitivity")
    assert len(rows) == 2 * 20
    assert {json.loads(row.hyperparameters)["learning_rate"] for row in rows} == {
        sweep.best(sweep.read(tmp_path / "results.csv"), *_char_rnn_tuning(tmp_path))["learning_rate"]
    }
    assert (tmp_path / "sensitivity.png").stat().st_size > 20_000

    phases.main(["--steps", "3", "--seeds", "2", "--methods", phases.STANDARD, "no sampling", *tiny_text])
    assert "Lowest mean test perplexity" in capsys.readouterr().out

    paper.main(["--csv", str(tmp_path / "results.csv"), "--page", str(tmp_path / "page" / "RESULTS.md")])
    page = (tmp_path / "page" / "RESULTS.md").read_text()
    assert "section 5.2" in page
    assert "section 5.3" in page
    assert "Not in the CSV yet: sda, sda_phases, plateau_tuned, plateau_rates, plateau" in page
    assert "2 settings on 2 seeds for each of 2 methods" in page
    assert (tmp_path / "page" / "results" / "char_rnn.png").exists()


def _char_rnn_tuning(folder):
    made = char_rnn.experiment(data.text(""), "war_and_peace", 3, full=False)
    return made, "CTLD", sweep.settings(char_rnn.METHODS["CTLD"], 2)


@pytest.mark.slow
def test_sda_and_its_phases_end_in_tables_and_a_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "mnist", lambda num_test: data.digits(test_share=num_test / 1797))
    for name, value in {"HELD_OUT": 100, "POINTS": 1, "LAST_POINTS": 3}.items():
        monkeypatch.setattr(sda, name, value)
    places = ["--csv", str(tmp_path / "results.csv"), "--out", str(tmp_path)]
    sda.main([*TINY, "--widths", "64", "6", "6", "6", "4", *places])
    printed = capsys.readouterr().out
    assert "| SGD-M |" in printed
    assert "CTLD" in printed
    assert (tmp_path / "sda.png").stat().st_size > 20_000
    rows = sweep.read(tmp_path / "results.csv")
    reported = [row for row in rows if row.method == "CTLD" and row.stage == "report" and row.seed == sweep.REPORT_SEEDS[0]]
    assert [row.step for row in reported] == [3, 6, 9, 10, 11, 12]
    assert [row.temperature > 0.0 for row in reported] == [False, False, False, True, True, False]  # half the steps: 2 of 3
    assert all(0.0 < row.train < 1.0 for row in rows)

    variants = [phases.STANDARD, "no sampling"]
    sda_phases.main([*TINY[:2], *TINY[4:6], "--methods", *variants, "--widths", "64", "6", "6", "6", "4", *places])
    assert "Lowest mean test error" in capsys.readouterr().out
    rows = sweep.read(tmp_path / "results.csv")
    again = sweep.newest(rows, "sda_phases")
    assert {row.hyperparameters for row in again} == {reported[0].hyperparameters}
    # The standard variant is the comparison's CTLD: the same trial, measured less often.
    first = [row for row in again if row.method == phases.STANDARD and row.seed == sweep.REPORT_SEEDS[0]]
    assert [(row.step, row.test) for row in first] == [(row.step, row.test) for row in reported if row.step in (3, 6, 9, 12)]


def test_what_sampling_adds_is_told_seed_by_seed_and_not_where_a_run_diverged():
    def of(name, *figures):
        return [
            sweep.Row("phases", "{}", name, "report", "{}", seed, 3, "error", 0.0, 0.0, figure, 0.0, 1.0)
            for seed, figure in enumerate(figures)
        ]

    rows = [*of(phases.STANDARD, 8.0, 19.0), *of(phases.UNSAMPLED, 9.0, 20.0)]
    assert "adds to the error: -1 ± 0." in phases.table(rows, "error")  # the spread of the seeds cancels
    told = phases.table([*rows[:2], *of(phases.UNSAMPLED, 9.0, np.inf)], "error")
    assert "adds to the error: unknown, since runs diverged." in told
    assert "| diverged |" in told
    assert "adds" not in phases.table(rows[:2], "error")
    assert set(phases.VARIANTS) >= {phases.STANDARD, phases.UNSAMPLED}


def test_a_setting_that_breaks_the_claim_is_named():
    close = {"S = 0": np.array([10.0, 10.2]), "S = 0.5": np.array([10.3, 10.1])}
    assert "varies by 1.0%, less than 5 %" in sensitivity.variation(close, "S")
    said = sensitivity.variation({**close, "S = 0.99": np.array([13.0, 15.0])}, "S")
    assert "varies by 34.1%, **not** less than 5 %, against the paper (without S = 0.99 by 1.0%)" in said
    assert "diverged" in sensitivity.variation({**close, "S = 0.99": np.array([13.0, np.inf])}, "S")


def test_the_stack_restores_through_all_its_layers():
    layers = [
        sda.new_layer(key, a, b) for key, a, b in zip(jax.random.split(jax.random.key(0), 2), (8, 4), (4, 2), strict=True)
    ]
    x = np.random.default_rng(0).uniform(size=(5, 8)).astype(np.float32)

    def sigmoid(z):
        return 1.0 / (1.0 + np.exp(-z))

    first = sigmoid(x @ layers[0].encoder)
    second = sigmoid(first @ layers[1].encoder)
    restored = sigmoid(sigmoid(second @ layers[1].decoder) @ layers[0].decoder)
    np.testing.assert_allclose(sda.reconstruction_error(layers, x), np.mean((restored - x) ** 2), rtol=1e-5)


def test_the_lanes_stream_through_the_whole_text():
    text = data.split_text(bytes(range(65, 75)) * 30)
    lanes = np.asarray(char_rnn.in_lanes(text.train, 3, 10))
    assert lanes.shape == (3, 81)  # 8 windows of 10 and the last target: 90 characters a lane are 1 too few for 9
    np.testing.assert_array_equal(lanes[:, 0], [0, 0, 0])
    np.testing.assert_array_equal(lanes[1], text.train[80:161])
    with pytest.raises(ValueError, match="do not fill"):
        char_rnn.in_lanes(text.train[:20], 3, 10)


def test_the_state_of_the_lstm_goes_on_and_begins_again(tiny_text):
    task = char_rnn.task(data.text(""), 2, 5, 100)
    params, windows = task.init(jax.random.key(0)), (task.data["lanes"].shape[1] - 1) // 5
    _, after_one = task.loss(params, task.begin(None), task.data, (), 0, None)
    fresh, _ = task.loss(params, task.begin(None), task.data, (), 1, None)
    carried, _ = task.loss(params, after_one, task.data, (), 1, None)
    assert fresh != carried
    first, _ = task.loss(params, task.begin(None), task.data, (), 0, None)
    again, _ = task.loss(params, after_one, task.data, (), windows, None)
    np.testing.assert_array_equal(first, again)


def test_texts_are_split_in_order(tmp_path, monkeypatch):
    content = bytes(np.random.default_rng(1).integers(0, 256, 1_000, dtype=np.uint8).tolist())
    text = data.split_text(content)
    assert [len(text.train), len(text.validation), len(text.test)] == [900, 50, 50]
    decoded = np.frombuffer(text.vocabulary, np.uint8)[np.concatenate([text.train, text.validation, text.test])]
    assert decoded.tobytes() == content

    path = tmp_path / "enwik8.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("enwik8", content)
    monkeypatch.setenv("CTLD_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="expected 547994d9"):
        data.text("wikipedia")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(data._SOURCES, "enwik8.zip", ("https://example.invalid", checksum))
    np.testing.assert_array_equal(data.text("wikipedia").test, text.test)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("another", b"")
    with pytest.raises(ValueError, match="exactly one file"):
        data._read_text(path)


def test_digits_data_is_split_without_overlap():
    split = data.digits(seed=0)
    assert split.train_x.shape == (1438, 64)
    assert split.test_x.shape == (359, 64)
    assert split.train_x.dtype == np.float32
    assert 0.0 <= split.train_x.min() <= split.train_x.max() <= 1.0
    both = np.concatenate([split.train_x, split.test_x])
    assert np.unique(both, axis=0).shape[0] == 1797  # the 1,797 images are all different
    assert not np.array_equal(split.train_y, data.digits(seed=1).train_y)


def test_idx_files_are_read(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4) + array.tobytes()))
    np.testing.assert_array_equal(data._read_idx(path), array)
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match="no idx file"):
        data._read_idx(path)


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    monkeypatch.setenv("CTLD_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="expected f7ae60f9"):
        data.fetch("t10k-labels-idx1-ubyte.gz")


@pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("CTLD_DATA_DIR", "")) / "t10k-images-idx3-ubyte.gz").is_file(),
    reason="CTLD_DATA_DIR does not hold MNIST",
)
def test_mnist_is_the_official_test_set():
    split = data.mnist(num_test=1_000)
    assert split.train_x.shape == (9_000, 784)
    labels = np.concatenate([split.train_y, split.test_y])
    np.testing.assert_array_equal(np.bincount(labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])


def test_a_file_says_where_it_comes_from():
    said = provenance.flat()
    assert {"commit", "machine", "python", "jax", "optax"} <= set(said)
