"""A CSV of named rows that grows while a benchmark runs: whoever is stopped goes on from what it holds.

Every change is a new file that takes the place of the old one: a kill or a full disk leaves no half rows. Processes that share
a file take turns. Nothing is changed before the columns are known to be ours, and what is measured again is compared with what
is there.
"""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from benchmarks.harness import files, provenance

Row = TypeVar("Row")


def read(path: pathlib.Path, kind: type[Row]) -> list[Row]:
    """All rows, in the order of the file, as the named tuple `kind`. A line that was cut off is left out.

    Raises:
      ValueError: if the file is no table of such rows.
    """
    columns, lines = _lines(path)
    lacking = [name for name in kind.__annotations__ if name not in columns]
    if columns and lacking:
        raise ValueError(f"{path} is no table of this benchmark: it has the columns {columns}, without {lacking}. {_ELSEWHERE}")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=2):
        cells = dict(zip(columns, line, strict=False))
        if len(line) < len(columns):
            continue  # cut off, in a file of an earlier version
        if len(line) > len(columns):
            raise ValueError(
                f"{path}, line {number} has {len(line)} cells for {len(columns)} columns. Mend or delete that line."
            )
        try:
            rows.append(kind(**{name: of(cells[name]) for name, of in kind.__annotations__.items()}))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}. Mend or delete that line.") from error
    return rows


def add(path: pathlib.Path, kind: Any, rows: Iterable[Any], *, key: Sequence[str], varying: Sequence[str] = ()) -> None:
    """Adds those rows that are not there yet, with the provenance of this process.

    Args:
      path: of the file; it and its folder are made.
      kind: the named tuple that the rows are.
      rows: what was measured.
      key: the columns that say what was measured. Two rows with one key must hold the same figures.
      varying: the columns in which they need not agree, times above all.

    Raises:
      ValueError: if the file has other columns, or other figures for a key. Then nothing is written.
      OSError: if it cannot be written.
    """
    origin = provenance.flat()
    columns = [*kind._fields, *origin]
    with files.alone(path):
        known, lines = _lines(path)
        if known and known != columns:
            raise ValueError(f"{path} has the columns {known}, this version writes {columns}. {_ELSEWHERE}")
        there = {tuple(line[columns.index(name)] for name in key): line for line in lines if len(line) == len(columns)}
        new: list[list[str]] = []
        for row in rows:
            cells = {name: str(value) for name, value in {**row._asdict(), **origin}.items()}
            name = tuple(cells[column] for column in key)
            old = dict(zip(columns, there.get(name, []), strict=False))
            differ = [column for column in kind._fields if old and column not in varying and old[column] != cells[column]]
            if differ:
                raise ValueError(
                    f"{path} has {dict(zip(key, name, strict=True))} already, and other figures for it: {differ[0]} is "
                    f"{old[differ[0]]} there, of commit {old['commit']}, and {cells[differ[0]]} now. Nothing was written. Name "
                    "another file, or delete those lines if they are no longer true."
                )
            if not old:
                there[name] = list(cells.values())
                new.append(there[name])
        if new or not known:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([columns, *lines, *new])
            files.replace(path, text.getvalue().encode())


_ELSEWHERE = "Name another file (--csv, or --out for its folder), or move this one away."


def _lines(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
    """The columns and the cells of each line, without a last one that has no end; nothing of a file that is not there."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file. {_ELSEWHERE}")
    try:
        data = path.read_bytes() if path.exists() else b""
        text = data[: data.rfind(b"\n") + 1].decode()
        columns, *lines = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except (ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is no table of this benchmark: {error}. {_ELSEWHERE}") from error
    if data and not text:
        raise ValueError(f"{path} is no table of this benchmark: it has no whole line. {_ELSEWHERE}")
    return columns, lines
