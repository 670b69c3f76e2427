"""A CSV of named rows that grows while a benchmark runs: whoever is stopped goes on from what it holds."""

import csv
import io
import os
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

from benchmarks.harness import provenance

Row = TypeVar("Row")


def read(path: pathlib.Path, kind: type[Row]) -> list[Row]:
    """All rows, in the order of the file, as the named tuple `kind`. A last line that was cut off is left out."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if None not in line.values()]
    return [kind(**{name: column(line[name]) for name, column in kind.__annotations__.items()}) for line in lines]


def append(path: pathlib.Path, kind: Any, rows: Iterable[Any]) -> None:
    """Adds rows with the provenance of this process, in a single write: processes may share a file."""
    origin = provenance.flat()
    columns = (*kind._fields, *origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.stat().st_size == 0:
        path.write_text(",".join(columns) + "\n")
    with path.open("rb") as file:
        known = next(csv.reader([file.readline().decode()]))
        file.seek(-1, os.SEEK_END)
        is_cut_off = file.read(1) != b"\n"
    if known != list(columns):
        raise ValueError(
            f"{path} has the columns {known}, this version writes {list(columns)}. Move it away, or merge it by hand."
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerows({**row._asdict(), **origin} for row in rows)
    with path.open("a") as file:
        file.write("\n" * is_cut_off + text.getvalue())
