"""The transformer's benchmark: what is read off a run, the same budget for each method, and what the text says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import transformer
from benchmarks.harness import data, standing, sweep, table
from benchmarks.harness.sweep import Method
from benchmarks.transformer import OURS, READINGS, Row

TEXT = data.split_text(b"to be or not to be, that is the question: " * 200)


def test_a_run_that_stands_still_reads_the_same_in_both_ways():
    still = Method({}, lambda _hyper, _key, _steps: optax.set_to_zero())
    losses = transformer.trainer(still, len(TEXT.vocabulary), 8)({}, jnp.asarray(0), transformer.texts(TEXT, 4))
    np.testing.assert_allclose(losses["point"], losses["average"], rtol=1e-5)
    assert losses["point"].shape == (2,)
    assert np.all(np.abs(losses["point"] - np.log(len(TEXT.vocabulary))) < 1.0)


@pytest.mark.parametrize("name", transformer.METHODS)
def test_each_method_learns_and_its_members_are_of_its_stretch(name):
    """In 40 steps; AdamW's members are its last quarter, so that they are as good as its end, and CTLD's come from before."""
    hyper = {key: float(np.sqrt(low * high)) for key, (low, high) in transformer.METHODS[name].space.items()}
    train = transformer.trainer(transformer.METHODS[name], len(TEXT.vocabulary), 40)
    losses = train({key: jnp.float32(value) for key, value in hyper.items()}, jnp.asarray(1), transformer.texts(TEXT, 8))
    assert float(losses["point"][0]) < 0.95 * np.log(len(TEXT.vocabulary))
    assert np.isnan(losses["average"]).any() or float(losses["average"][0]) < 1.02 * np.log(len(TEXT.vocabulary))


def test_the_causal_mask_hides_what_comes():
    model = transformer.Transformer(7)
    characters = jnp.arange(10).reshape(1, 10) % 7
    params = model.init({"params": jax.random.key(0)}, characters)
    changed = model.apply(params, characters.at[0, 6].set(0))
    np.testing.assert_allclose(changed[0, :6], model.apply(params, characters)[0, :6], rtol=1e-5, atol=1e-6)
    assert not np.allclose(changed[0, 6:], model.apply(params, characters)[0, 6:], atol=1e-3)


@pytest.fixture
def stand_in(monkeypatch):
    """Runs that take no time: a loss that falls with the learning rate, lower on the test part, and for the average."""
    runs = []

    def trainer(method, vocabulary, steps):
        def train(hyper, seed, read):
            runs.append((method, sweep.as_json({key: float(value) for key, value in hyper.items()}), int(seed)))
            loss = 2.0 - float(hyper["learning_rate"]) + 1e-4 * int(seed)
            return {"point": np.array([loss, loss - 0.1]), "average": np.array([loss - 0.2, loss - 0.3])}

        return train

    monkeypatch.setattr(transformer, "trainer", trainer)
    monkeypatch.setattr(data, "text", lambda name: TEXT)
    return runs


def test_each_method_has_the_same_budget_and_a_second_call_runs_nothing(tmp_path, stand_in, capsys):
    arguments = ["--steps", "8", "--trials", "3", "--seeds", "2", "--measured", "4", "--csv", str(tmp_path / "found.csv")]
    transformer.main(arguments)
    rows = table.read(tmp_path / "found.csv", Row)
    assert len(stand_in) == len(transformer.METHODS) * (3 * len(sweep.TUNING_SEEDS) + 2)  # one setting is best for both
    for name in transformer.METHODS:
        own = [row for row in rows if row.method == name and row.reading == "point"]
        tuned = {row.hyperparameters for row in own if row.stage == "tune"}
        reported = {row.hyperparameters for row in own if row.stage == "report"}
        rates = {setting: json.loads(setting)["learning_rate"] for setting in tuned}
        assert (len(tuned), reported) == (3, {max(rates, key=rates.get)})
        assert all(np.isnan(row.test) == (row.stage == "tune") for row in own)
    stand_in.clear()
    transformer.main(arguments)
    assert not stand_in
    assert table.read(tmp_path / "found.csv", Row)[:1] != []
    assert "3 settings of each method on 2 seeds, the best one for each reading on 2 new seeds." in capsys.readouterr().out


def rows_of(losses):
    """Tuned at one setting and reported on as many seeds as there are losses, by method; the average is 0.1 lower."""
    setting, config = json.dumps({"learning_rate": 0.01}), json.dumps({"steps": 8})
    made = []
    for name, found in losses.items():
        for reading, offset in zip(READINGS, (0.0, -0.1), strict=True):
            made.append(Row(config, name, "tune", setting, 1000, reading, found[0], np.nan, 1.0))
            made += [Row(config, name, "report", setting, s, reading, v, v + offset, 1.0) for s, v in enumerate(found)]
    return made


@pytest.mark.parametrize(
    ("ours", "word", "verdict"),
    [
        ([1.9, 1.91, 1.89, 1.9], "is below", standing.WINS),
        ([2.1, 2.11, 2.09, 2.1], "is **above**", standing.LOSES),
        ([2.0, 2.02, 1.97, 2.01], "is level with", standing.LEVEL),
    ],
)
def test_the_text_and_the_table_say_what_came_out(tmp_path, ours, word, verdict):
    rows = rows_of({"AdamW": [2.0, 2.01, 1.99, 2.0], OURS: ours, "AdamW, held": [2.3, 2.31, 2.29, 2.3]})
    text = transformer.section(rows)
    assert f"- **point**: {OURS} {word} AdamW: " in text
    assert f"- **average**: {OURS} is below AdamW, held: " in text
    table.add(tmp_path / "transformer.csv", Row, rows, key=transformer.KEY)
    lines = standing.transformers(tmp_path)
    assert [line.verdict for line in lines] == [verdict, verdict]
    assert all("AdamW, held" not in line.figures for line in lines)  # the best beside it is the other


def test_nothing_is_told_before_all_ran(tmp_path):
    assert standing.transformers(tmp_path) == []
    rows = rows_of({"AdamW": [2.0, 2.01], OURS: [1.9, 1.91]})
    assert "Not run yet: AdamW, held." in transformer.section(rows)
    table.add(tmp_path / "transformer.csv", Row, rows, key=transformer.KEY)
    assert standing.transformers(tmp_path) == []
