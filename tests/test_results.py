"""The files that benchmarks write: nothing that was there is lost, and no results are mixed up."""

import ast
import errno
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest
from matplotlib import pyplot as plt

from benchmarks import digits, ensembles, minibatches, multimodal, paper, posteriordb, right_weights, step_cost, transformer
from benchmarks.harness import files, sweep, table

ROOT = pathlib.Path(__file__).parents[1]


class Row(NamedTuple):
    """A result."""

    name: str
    seed: int
    score: float
    seconds: float


def add(path, *rows):
    table.add(path, Row, rows, key=("name", "seed"), varying=["seconds"])


def rows(*seeds, name="a"):
    return [Row(name, seed, seed / 3.0, 1.0) for seed in seeds]


# What writes: only `files` puts anything in a place that a user names.


def writes(call):
    """Whether a call writes a file by itself; `checkpoint.save` takes care of what is there."""
    if ast.unparse(call.func) == "checkpoint.save":
        return False
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    modes = [
        node.value
        for node in ast.walk(call)
        if isinstance(node, ast.Constant) and node.value in {"w", "a", "x", "wb", "ab", "xb"}
    ]
    written = {"write_text", "write_bytes", "savefig", "to_csv", "to_parquet", "tofile", "save", "savez", "dump", "mkdir"}
    return name in written or (name == "open" and bool(modes))


def test_benchmarks_write_through_one_door():
    paths = sorted((ROOT / "benchmarks").rglob("*.py"))
    found = {
        path.relative_to(ROOT / "benchmarks").as_posix()
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and writes(node)
    }
    assert found == {"harness/files.py"}


# Tables.


def test_rows_are_read_as_they_were_written_and_none_twice(tmp_path):
    path = tmp_path / "new" / "results.csv"
    add(path, *rows(1, 2))
    add(path, *rows(2, 3, 3), Row("b, c", 3, float("nan"), 2.0))
    add(path, Row("b, c", 3, float("nan"), 7.0))
    assert table.read(path, Row)[:3] == rows(1, 2, 3)
    assert [row.name for row in table.read(path, Row)] == ["a", "a", "a", "b, c"]


def test_other_figures_for_what_is_there_are_refused(tmp_path):
    path = tmp_path / "results.csv"
    add(path, *rows(1, 2))
    held = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"\{'name': 'a', 'seed': '2'\} already, and other figures for it: score is 0\.66.*Name "
    ):
        add(path, *rows(5), Row("a", 2, 9.0, 1.0))
    with pytest.raises(ValueError, match="other figures"):  # within one batch too
        add(path, Row("a", 5, 1.0, 1.0), Row("a", 5, 2.0, 1.0))
    assert path.read_bytes() == held


WRITER = """
import pathlib, sys
from tests import test_results
for number in range(40):
    test_results.add(pathlib.Path(sys.argv[1]), *test_results.rows(*range(3 * number, 3 * number + 3), name=sys.argv[2]))
"""


def writer(path, name):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], cwd=ROOT, env=environment)


def test_two_processes_on_one_new_file_lose_nothing(tmp_path):
    path = tmp_path / "results.csv"
    processes = [writer(path, name) for name in "ab"]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = table.read(path, Row)
    assert [row for row in found if row.name == "a"] == rows(*range(120))
    assert [row for row in found if row.name == "b"] == rows(*range(120), name="b")
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_kill_leaves_whole_batches(tmp_path):
    path = tmp_path / "results.csv"
    process = writer(path, "a")
    while process.poll() is None and (not path.exists() or path.stat().st_size < 2_000):
        pass
    process.kill()
    process.wait()
    kept = table.read(path, Row)
    assert kept == rows(*range(len(kept)))
    assert len(kept) % 3 == 0
    assert path.read_bytes().endswith(b"\n")
    add(path, *rows(*range(120)))
    assert table.read(path, Row) == rows(*range(120))


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    add(path, *rows(1, 2))
    held = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(
            OSError, match=r"results\.csv could not be written: No space left .*What was there is as it was\. Make"
        ):
            add(path, *rows(3))
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"results.csv": held}
    with path.open("rb") as reader:  # whoever reads meanwhile has the old file, whole
        add(path, *rows(3))
        assert reader.read() == held
    assert table.read(path, Row) == rows(1, 2, 3)


HEADER = ",".join(Row._fields)
FOREIGN = {
    "other columns": (b"name,score\na,1\n", "has the columns"),
    "a text": (b"My notes\nof last year\n", "columns"),
    "a text without an end": (b"My notes", "no whole line"),
    "no text": (b"\x89PNG\r\n\x1a\n\xff\n", "no table of this benchmark"),
    "quotes that never end": (b'name,"score\na,1\n', "no table of this benchmark"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_left_alone(name, tmp_path):
    content, message = FOREIGN[name]
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    for call in (lambda: table.read(path, Row), lambda: add(path, *rows(1)), lambda: add(path)):
        with pytest.raises(ValueError, match=f"{message}.*Name another file"):
            call()
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"is no file\. Name another"):
        table.read(tmp_path, Row)
    with pytest.raises(ValueError, match=r"is no file\. Name another"):
        add(tmp_path, *rows(1))


@pytest.mark.parametrize(
    ("line", "message"), [("a,x,1.0,1.0", "line 3 is damaged: invalid literal"), ("a,1,1,1,1", "5 cells for")]
)
def test_a_damaged_line_is_named(line, message, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(f"{HEADER}\na,1,0.5,1.0\n{line}\n")
    with pytest.raises(ValueError, match=f"{message}.*Mend or delete that line"):
        table.read(path, Row)


def test_lines_that_were_cut_off_do_not_count(tmp_path):
    path = tmp_path / "results.csv"
    add(path, *rows(1, 2))
    whole = path.read_text()
    for cut in range(len(whole.splitlines()[0]) + 1, len(whole)):
        path.write_text(whole[:cut])
        kept = table.read(path, Row)
        assert kept == rows(1, 2)[: len(kept)]
        add(path, *rows(1, 2))
        assert path.read_text() == whole


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (sweep.CSV, sweep.Row),
        (posteriordb.CSV, posteriordb.Row),
        (ensembles.CSV, ensembles.Row),
        (multimodal.CSV, multimodal.Row),
        (minibatches.CSV, minibatches.Row),
        (right_weights.CSV, right_weights.Row),
        (transformer.CSV, transformer.Row),
        (ROOT / "benchmarks/results/step_cost.csv", step_cost.Row),
    ],
    ids=lambda found: getattr(found, "name", ""),
)
def test_the_results_that_are_kept_are_read(path, kind):
    assert table.read(path, kind)
    key = {
        sweep.Row: lambda row: (*row.trial, row.step),
        posteriordb.Row: lambda row: row.run,
        ensembles.Row: lambda row: row[:5],
        multimodal.Row: lambda row: row.run,
        minibatches.Row: lambda row: row.run,
        right_weights.Row: lambda row: row.run,
        transformer.Row: lambda row: row[:6],
        step_cost.Row: lambda row: row[:2],
    }
    found = [key[kind](row) for row in table.read(path, kind)]
    assert len(found) == len(set(found))


# Files that are made anew.


def test_another_file_in_the_place_is_kept(tmp_path, capsys):
    path = tmp_path / "new" / "report.json"
    files.put(path, b"first")
    files.put(path, b"first")
    assert [each.name for each in path.parent.iterdir()] == ["report.json"]
    files.put(path, b"second")
    files.put(path, b"third")
    assert "held something else, which is now" in capsys.readouterr().out
    found = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    assert found == {"report.json": b"third", "report.json.aside-1": b"first", "report.json.aside-2": b"second"}


def test_a_figure_replaces_our_own_only(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"\x89PNG of my cat")
    for _ in range(3):
        figure = plt.figure(figsize=(1, 1))
        files.save_figure(figure, path, dpi=10)
        assert not plt.fignum_exists(figure.number)
    assert {each.name for each in tmp_path.iterdir()} == {"figure.png", "figure.png.aside-1"}
    assert (tmp_path / "figure.png.aside-1").read_bytes() == b"\x89PNG of my cat"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "results.csv").symlink_to(tmp_path / "real.csv")
    add(tmp_path / "results.csv", *rows(1))
    add(tmp_path / "results.csv", *rows(2))
    assert (tmp_path / "results.csv").is_symlink()
    assert table.read(tmp_path / "real.csv", Row) == rows(1, 2)


def test_a_page_and_a_report_of_others_are_kept(tmp_path):
    page, report = tmp_path / "RESULTS.md", tmp_path / "digits.json"
    page.write_text("# Mine\n")
    report.write_text("{}")
    for _ in range(2):
        paper.main(["--csv", str(tmp_path / "none.csv"), "--page", str(page)])
    digits.write_json(report, {}, [0], 50)
    assert (tmp_path / "RESULTS.md.aside-1").read_text() == "# Mine\n"
    assert (tmp_path / "digits.json.aside-1").read_text() == "{}"
    assert not (tmp_path / "RESULTS.md.aside-2").exists()
