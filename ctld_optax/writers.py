"""From a recorder to files that grow while the run goes on: CSV, Parquet, TensorBoard (`pip install ctld-optax[record]`).

    with CSVWriter("run.csv") as table, TensorBoardWriter("runs/first") as board:
        for chunk in chunks:
            carry, _ = jax.lax.scan(step, carry, chunk)
            recording = recorder.read(carry[-1])
            table.append(recording)
            board.append(recording)

`append` writes the rows that are newer than the last one written and hands them to the operating system before it returns: a
program that is killed loses nothing that was appended. A writer opened on what an earlier run left goes on behind its last
row, so a run that is resumed from a checkpoint repeats no step: those it makes again were written already, and a restored run
makes them bit for bit the same. A row cut off in the middle is removed.

Columns are named by the path of a scalar in what is recorded, "loss" or "sampler/alpha".
"""

import csv
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from ctld_optax.recorder import Recording

MISSING = "{} needs {}, which is not installed: pip install 'ctld-optax[record]'."


def columns(recording: Recording) -> dict[str, np.ndarray]:
    """A recording as named columns, "step" first.

    Raises:
      ValueError: if it holds replicas; select one, `jax.tree.map(lambda x: x[0], recording.values)`.
    """
    table = {"step": np.asarray(recording.step)}
    for path, column in jax.tree_util.tree_leaves_with_path(recording.values):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if column.shape != recording.step.shape:
            raise ValueError(
                f"a file holds one run: {name} has shape {column.shape} for {recording.step.size} steps. Select a replica, "
                "recording._replace(values=jax.tree.map(lambda x: x[0], recording.values)), and give each a file."
            )
        table[name] = column
    return table


class _Writer:
    """What the writers share: which rows are new, and `with`."""

    last_step: int  # of the last row written; 0 before the first

    def append(self, recording: Recording) -> int:
        """Writes the rows behind `last_step`, and returns how many they were."""
        table = columns(recording)
        is_new = table["step"] > self.last_step
        fresh = {name: column[is_new] for name, column in table.items()}
        if is_new.any():
            self._write(fresh)
            self.last_step = int(fresh["step"][-1])
        return int(is_new.sum())

    def _write(self, table: dict[str, np.ndarray]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """After this nothing more is appended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class CSVWriter(_Writer):
    """A CSV file with a header. Numbers are as short as they can be without loss in their dtype.

    Args:
      path: of the file; its folder is made.

    Raises:
      ValueError: if there is a file of another kind at `path`, or with other columns (at the first `append`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", newline="", encoding="utf-8")
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]  # a line without its end was cut off
        if len(whole) < len(text):
            self._file.truncate(len(whole.encode()))
        rows = list(csv.reader(whole.splitlines()))
        if rows and rows[0][0] != "step":
            self._file.close()
            raise ValueError(f"{path} is not a record of a run: its first column is {rows[0][0]!r}, not 'step'.")
        self._header = rows[0] if rows else None
        self.last_step = int(rows[-1][0]) if len(rows) > 1 else 0

    def _write(self, table: dict[str, np.ndarray]) -> None:
        lines = csv.writer(self._file, lineterminator="\n")
        if self._header is None:
            self._header = list(table)
            lines.writerow(self._header)
        if self._header != list(table):
            raise ValueError(f"{self._file.name} has the columns {self._header}, this recording has {list(table)}.")
        lines.writerows(zip(*table.values(), strict=True))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class ParquetWriter(_Writer):
    """A folder of Parquet files, one an `append`, that readers take as one table: `pandas.read_parquet(folder)`.

    Parquet files cannot grow. Each is written under another name and then renamed, so that there are whole ones only; the
    name holds its first and its last step.

    Args:
      folder: is made.

    Raises:
      ImportError: without pyarrow.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(MISSING.format("ParquetWriter", "pyarrow")) from error
        self._arrow: Any = pa
        self._parquet: Any = pq
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        lasts = [int(path.stem.split("-")[-1]) for path in self._folder.glob("steps-*.parquet")]
        self.last_step = max(lasts, default=0)

    def _write(self, table: dict[str, np.ndarray]) -> None:
        name = f"steps-{table['step'][0]:012d}-{table['step'][-1]:012d}.parquet"
        unfinished = self._folder / f".{name}.unfinished"  # readers skip names that begin with a dot
        self._parquet.write_table(self._arrow.table(table), unfinished)
        unfinished.replace(self._folder / name)


class TensorBoardWriter(_Writer):
    """Scalars for TensorBoard, through tensorboardX: `tensorboard --logdir folder`.

    It uses tensorboardX's `EventsWriter`, not its `SummaryWriter`: the latter hands rows to a thread, and its `flush` returns
    before they are in the file.

    Args:
      folder: is made; a run that is resumed adds a file to it.

    Raises:
      ImportError: without tensorboardX.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboardX import event_file_writer, proto  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(MISSING.format("TensorBoardWriter", "tensorboardX")) from error
        messages: Any = proto
        self._event, self._summary = messages.event_pb2.Event, messages.summary_pb2.Summary
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        logs = sorted(folder.glob("events.out.tfevents.*"))
        self.last_step = max((self._event.FromString(data).step for log in logs for data in _records(log)), default=0)
        # Named by the second and the suffix: without one a run resumed within a second would overwrite its own beginning.
        self._writer: Any = event_file_writer.EventsWriter(str(folder / "events"), f".from-{self.last_step + 1}")

    def _write(self, table: dict[str, np.ndarray]) -> None:
        names = [name for name in table if name != "step"]
        now = time.time()
        for step, *row in zip(table["step"], *(table[name] for name in names), strict=True):
            values = [self._summary.Value(tag=name, simple_value=float(x)) for name, x in zip(names, row, strict=True)]
            self._writer.write_event(self._event(step=int(step), wall_time=now, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, data, their checksum. What is cut off is left out."""
    data = path.read_bytes()
    start = 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        if start + 12 + length + 4 > len(data):
            return
        yield data[start + 12 : start + 12 + length]
        start += 16 + length
