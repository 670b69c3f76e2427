"""The benchmark of ensembles: wrong labels, scores, what is read off a run, equal budgets, a text that says what came out."""

import collections
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import ensembles
from benchmarks.harness import data, label_noise, sweep, table
from benchmarks.harness.sweep import Method

PARTS = label_noise.parts(data.digits(test_share=0.5))
COMMAND = ["--data", "digits", "--steps", "240", "--trials", "3", "--seeds", "3", "--wrong", "0.3"]


@pytest.fixture
def short_looks(monkeypatch):
    monkeypatch.setattr(label_noise, "EVERY", 10)


def test_a_share_of_the_labels_is_wrong_and_those_of_the_test_are_not():
    images = label_noise.with_wrong_labels(PARTS, 0.3, 5, with_test=True)
    for given, right in ((images.train_y, PARTS.train_y), (images.validation_y, PARTS.validation_y)):
        assert np.count_nonzero(np.asarray(given) != right) == round(0.3 * len(right))
        assert set(np.asarray(given).tolist()) == set(range(10))
    np.testing.assert_array_equal(images.test_y, PARTS.test_y)
    wrong = np.asarray(images.train_y) != PARTS.train_y
    moved = np.bincount((np.asarray(images.train_y) - PARTS.train_y)[wrong] % 10, minlength=10)
    assert moved[0] == 0
    assert moved[1:].min() > 0.5 * moved[1:].mean()  # about 30 of each: all nine alike
    again, other = (label_noise.with_wrong_labels(PARTS, 0.3, seed, with_test=False) for seed in (5, 6))
    np.testing.assert_array_equal(again.train_y, images.train_y)
    assert not np.array_equal(other.train_y, images.train_y)
    assert set(other.looks) == {"validation"}  # while tuning nothing else is predicted
    np.testing.assert_array_equal(label_noise.with_wrong_labels(PARTS, 0.0, 5, with_test=False).train_y, PARTS.train_y)


def test_validation_test_and_training_are_apart():
    sets = [{row.tobytes() for row in x} for x in (PARTS.train_x, PARTS.validation_x, PARTS.test_x)]
    assert not set.intersection(*sets[:2]) | set.intersection(*sets[1:]) | set.intersection(sets[0], sets[2])
    np.testing.assert_allclose(np.sort(PARTS.out_x, 1), np.sort(PARTS.test_x[:1_000], 1))
    assert not np.array_equal(PARTS.out_x, PARTS.test_x[:1_000])


def of(confidence, labels, size):
    """Predictions that give `labels` this confidence and share the rest."""
    return np.where(np.arange(10) == labels[:, None], confidence, (1.0 - confidence) / 9.0)[:size]


def test_the_scores_are_what_they_say():
    labels = np.arange(1_000) % 10
    flat = np.full((500, 10), 0.1)
    sure = label_noise.scores({"test": of(1.0, labels, 1_000), "out": flat}, labels)
    np.testing.assert_allclose(sure, (1.0, 0.0, 0.0, 0.0, math.log(10), 1.0), atol=1e-9)
    # Right in 70 of 100 with a confidence of 0.9: overconfident by 0.2, and its own shape is nothing new.
    said = of(0.9, np.where(np.arange(1_000) % 100 < 70, labels, (labels + 1) % 10), 1_000)
    some = label_noise.scores({"test": said, "out": said[:300]}, labels)
    nll = -0.7 * math.log(0.9) - 0.3 * math.log(0.1 / 9.0)
    np.testing.assert_allclose([some.accuracy, some.nll, some.ece, some.detection], (0.7, nll, 0.2, 0.5), rtol=1e-9)
    assert all(map(math.isnan, label_noise.scores({"test": said * np.nan, "out": flat}, labels)))


def test_what_is_read_off_a_run_that_stands_still_is_its_one_network(short_looks):
    images = label_noise.with_wrong_labels(PARTS, 0.3, 0, with_test=True)
    still = Method({}, lambda *_: optax.set_to_zero())
    found = label_noise.trainer(still, 140)({"l2": 0.0}, jnp.asarray(3), images)
    assert set(found) == {"last", "weights", "mean", "window", "cycles", "stopped", "oracle"}
    network = found["last"]["test"]
    np.testing.assert_allclose(network.sum(-1), 1.0, rtol=1e-5)
    for name, each in found.items():
        np.testing.assert_allclose(each["test"], network, atol=1e-6, err_msg=name)


def test_means_begin_late_and_the_best_look_is_kept(short_looks):
    """Weights that are set by the step: what each reading has taken in can be told from the outside."""
    images = label_noise.with_wrong_labels(PARTS, 0.0, 0, with_test=True)

    def to_step(updates, state, params, **_):
        # All weights are 0; the bias of class 0 is the number of steps done, until it is made small again.
        new = jax.tree.map(jnp.zeros_like, params)
        done = state + 1
        new["params"]["Dense_0"]["bias"] = jnp.zeros(10).at[0].set(0.01 * jnp.where(done < 130, done, 0.0))  # the last layer's
        return jax.tree.map(jnp.subtract, new, params), done

    made = Method({}, lambda *_: optax.GradientTransformationExtraArgs(lambda _: jnp.zeros(()), to_step))
    found = label_noise.trainer(made, 140)({}, jnp.asarray(3), images)
    of_bias = lambda bias: np.exp(bias) / (np.exp(bias) + 9.0)
    late = [of_bias(0.01 * step) for step in (70, 80, 90, 100, 110, 120)] + [of_bias(0.0)]
    np.testing.assert_allclose(found["mean"]["test"][0, 0], np.mean(late), rtol=1e-5)
    np.testing.assert_allclose(found["last"]["test"][0, 0], of_bias(0.0), rtol=1e-5)
    np.testing.assert_allclose(found["weights"]["test"][0, 0], of_bias(np.mean([0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 0.0])), rtol=1e-5)
    # Of cycles of 35 steps the last 7, in which there are looks at 30 and 100.
    np.testing.assert_allclose(found["cycles"]["test"][0, 0], np.mean([of_bias(0.3), of_bias(1.0)]), rtol=1e-5)
    best = max(np.mean(PARTS.test_y == 0), np.mean(np.argmax(found["stopped"]["test"], -1) == PARTS.test_y))
    assert best == np.mean(np.argmax(found["oracle"]["test"], -1) == PARTS.test_y)


def stand_in(runs):
    """A trainer whose accuracy is that of its learning rate, best at 0.03; nothing is trained."""

    def trainer(method, steps, members=1):
        def train(hyper, seed, images):
            rate = float(hyper["learning_rate"])
            runs.append((steps, members, "test" in images.looks, int(seed)))
            rng = np.random.default_rng(int(seed))
            share = 0.9 - 0.1 * abs(math.log(rate / 0.03))

            def predictions(name, x):
                y = {"validation": np.asarray(images.validation_y), "test": PARTS.test_y}.get(name, np.zeros(len(x), int))
                return of(0.8, np.where(rng.uniform(size=len(x)) < share, y, (y + 1) % 10), len(x)).astype(np.float32)

            readings = {reading.reading for reading in ensembles.METHODS.values()} | {"oracle"}
            found = {name: predictions(name, x) for name, x in images.looks.items()}
            return dict.fromkeys(readings, found)

        return train

    return trainer


def test_each_method_has_the_same_budget_and_is_reported_on_new_seeds_at_its_best(tmp_path, monkeypatch, capsys):
    runs = []
    monkeypatch.setattr(label_noise, "trainer", stand_in(runs))
    command = [*COMMAND, "--csv", str(tmp_path / "rows.csv"), "--out", str(tmp_path)]
    ensembles.main(command)
    printed = capsys.readouterr().out
    assert "3 settings of each method on 1 seed, the best one on 3 new seeds" in printed
    assert (tmp_path / "ensembles.png").stat().st_size > 20_000
    rows = table.read(tmp_path / "rows.csv", ensembles.Row)
    tuned, reported = ([row for row in rows if row.stage == stage] for stage in ("tune", "report"))
    assert collections.Counter(row.method for row in tuned) == dict.fromkeys(ensembles.METHODS, 3)
    assert collections.Counter(row.method for row in reported) == dict.fromkeys([*ensembles.METHODS, ensembles.ORACLE], 3)
    assert not {row.seed for row in tuned} & {row.seed for row in reported}
    assert all(math.isnan(row.accuracy) for row in tuned)  # the tuner cannot look at the test set
    assert {with_test for _, _, with_test, seed in runs if seed in ensembles.TUNING_SEEDS} == {False}
    for name, reading in ensembles.METHODS.items():
        best = min(
            sweep.settings(ensembles.WAYS[reading.way].method, 3), key=lambda h: abs(math.log(h["learning_rate"] / 0.03))
        )
        assert {row.hyperparameters for row in reported if row.method == name} == {sweep.as_json(best)}
    # The same command runs nothing again, one more seed only that.
    done = len(runs)
    ensembles.main(command)
    assert len(runs) == done
    ensembles.main([*command[:6], "--seeds", "4", *command[8:], "--methods", "SGD-M"])
    assert [seed for *_, seed in runs[done:]] == [13]


def rows_of(figures):
    """A CSV of these accuracies, by method, seed by seed."""
    config = json.dumps({"wrong": 0.3, "train_images": 5_000, "steps": 100})
    rows = []
    for name, values in figures.items():
        rows += [
            ensembles.Row(
                config, name, "tune", f'{{"l2": {t}}}', 1_000, 0.7 if t == 2 else 0.6, *label_noise.UNKNOWN, seconds=1.0
            )
            for t in (1, 2, 3)
        ]
        rows += [
            ensembles.Row(config, name, "report", '{"l2": 2}', seed, 0.6, value, 0.5, 0.1, 1.0, 2.0, 0.9, 1.0)
            for seed, value in enumerate(values)
        ]
    return rows


FIGURES = {
    "SGD-M": (0.90, 0.91, 0.90, 0.91),
    "ensemble of 4": (0.93, 0.92, 0.935, 0.915),
    "SGD-M, averaged": (0.94, 0.95, 0.94, 0.95),
    ensembles.WINDOW: (0.92, 0.93, 0.92, 0.93),
    ensembles.ALL: (0.921, 0.931, 0.921, 0.931),
}


def test_the_text_says_what_came_out():
    said = ensembles.section(rows_of(FIGURES))
    assert "**one network**: CTLD, window, is better than SGD-M (+2.00 ± 0.00)." in said
    assert "**several networks**: CTLD, window, is not to be told from ensemble of 4" in said
    assert "averaged, without noise**: CTLD, window, is **worse** than SGD-M, averaged (-2.00 ± 0.00)." in said
    assert "continuously tempered**: CTLD, window, is **worse** than CTLD, all steps (-0.10 ± 0.00)." in said
    assert "Best at 30% wrong labels: SGD-M, averaged, 0.945 ± 0.009; not to be told from it: ensemble of 4." in said
    assert "3 settings of each method on 1 seed, the best one on 4 new seeds" in said
    turned = ensembles.section(rows_of({**FIGURES, "SGD-M, averaged": (0.90, 0.91, 0.90, 0.91)}))
    assert "averaged, without noise**: CTLD, window, is better than SGD-M, averaged" in turned
    # Another setting that was reported once, before the best one was tried.
    before = [row._replace(hyperparameters='{"l2": 3}', accuracy=0.1) for row in rows_of(FIGURES) if row.stage == "report"]
    assert ensembles.section([*rows_of(FIGURES), *before]) == said
    fewer = [row for row in rows_of(FIGURES) if row.hyperparameters != '{"l2": 3}' or row.method != "SGD-M"]
    assert "**Unequal budgets.** 2 or 3 settings of each method" in ensembles.section(fewer)


def test_a_run_that_diverged_is_never_ahead():
    said = ensembles.section(rows_of({**FIGURES, "SGD-M, averaged": (0.99, math.nan, 0.99, 0.99)}))
    assert "| SGD-M, averaged | diverged | diverged |" in said
    assert "Best at 30% wrong labels: CTLD, all steps" in said
    assert "averaged, without noise**: CTLD, window, is not to be compared with SGD-M, averaged (diverged)" in said


@pytest.mark.slow
def test_the_ways_to_train_reach_more_than_chance(tmp_path, short_looks, capsys):
    """Those that have something of their own in a run: members, dropout, cycles, a sampler's window."""
    names = ["early stopping", "MC dropout", "ensemble of 4", "cyclical SGHMC", ensembles.WINDOW]
    command = [*COMMAND, "--steps", "480", "--trials", "2", "--seeds", "2", "--methods", *names]
    ensembles.main([*command, "--csv", str(tmp_path / "rows.csv"), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in [*names, ensembles.ORACLE])
    rows = [row for row in table.read(tmp_path / "rows.csv", ensembles.Row) if row.stage == "report"]
    assert len(rows) == 2 * (len(names) + 1)
    # A tenth is chance; two settings and 480 steps are not much.
    assert min(row.accuracy for row in rows) > 0.4, {(row.method, row.seed): row.accuracy for row in rows}
    by_seed = {(row.method, row.seed): row.accuracy for row in rows}
    assert all(by_seed[ensembles.ORACLE, seed] >= by_seed["early stopping", seed] for seed in (10, 11))
    assert (tmp_path / "ensembles.png").stat().st_size > 20_000
