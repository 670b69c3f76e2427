"""The benchmark scripts at their smallest, and the loaders of real data."""

import gzip
import json
import os
import pathlib
import struct

import numpy as np
import pytest

from benchmarks import data, digits, record, step_cost


def test_digits_ends_in_a_table_and_a_figure(tmp_path, capsys):
    digits.main(["--steps", "50", "--seeds", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    labels = list(digits.jobs(tune=False))
    assert all(label in printed for label in labels)
    assert (tmp_path / "digits.png").stat().st_size > 50_000
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


@pytest.mark.parametrize("arguments", [["--steps", "75"], ["--steps", "0"], ["--seeds", "0"]])
def test_digits_refuses_what_it_cannot_do(arguments):
    with pytest.raises(SystemExit):
        digits.main(arguments)


def test_step_cost_writes_its_figures(tmp_path):
    step_cost.main(
        [
            "--sizes",
            "1000",
            "--layouts",
            "one leaf",
            "--variants",
            "SGD-M",
            "CTLD gaussian",
            "--seconds",
            "0",
            "--out",
            str(tmp_path),
        ]
    )
    lines = (tmp_path / "step_cost.csv").read_text().splitlines()
    assert len(lines) == 3
    assert (tmp_path / "step_cost.png").exists()


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
    said = record.flat()
    assert {"commit", "machine", "python", "jax", "optax"} <= set(said)
