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
makes them bit for bit the same. That is checked: rows that were written already and now differ are those of another run,
and an error. A row cut off in the middle is removed.

Nothing is changed that is not known to be a record of this run: what is found is read first, and no byte of it is touched
before the first `append` has agreed with it. One writer at a time has a path. A row that cannot be written whole (a full disk)
leaves what was there before it, and can be appended again.

Columns are named by the path of a scalar in what is recorded, "loss" or "sampler/alpha".
"""

import contextlib
import csv
import io
import os
import re
import socket
import struct
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from ctld_optax._arrays import compat
from ctld_optax._checked import checked
from ctld_optax.checkpoint import explained, locked, make_folder
from ctld_optax.recorder import Recording

_TEXT = np.dtypes.StringDType()
ELSEWHERE = "Choose a path that can be written."
AS_IT_WAS = "What was there is as it was, and the same recording can be appended again."
MISSING = "{} needs {}, which is not installed: pip install 'ctld-optax[record]'."


@checked()
def columns(recording: Recording) -> dict[str, np.ndarray]:
    """A recording as named columns, "step" first.

    Raises:
      ValueError: if it holds replicas; select one, `jax.tree.map(lambda x: x[0], recording.values)`. Or if two scalars would
        have one name, or one that of the steps.

    Example:
      >>> recorder = ctld_optax.recorder.Recorder({"loss": 0.0}, capacity=4)
      >>> log = recorder.init()
      >>> for number in range(8):
      ...     log = recorder.record(log, {"loss": 0.5 * number})
      >>> recording = recorder.read(log)
      >>> list(ctld_optax.writers.columns(recording))
      ['step', 'loss']
    """
    table = {"step": np.asarray(recording.step)}
    for path, column in jax.tree_util.tree_leaves_with_path(recording.values):
        name = compat.path_name(path, "/") or "value"
        if column.shape != recording.step.shape:
            raise ValueError(
                f"a file holds one run: {name} has shape {column.shape} for {recording.step.size} steps. Select a replica, "
                "recording._replace(values=jax.tree.map(lambda x: x[0], recording.values)), and give each a file."
            )
        if name in table:
            raise ValueError(
                f"two columns would have the name {name!r}, and one of them would be lost ('step' is the number of the step). "
                "Give the scalar another name where it is recorded."
            )
        table[name] = column
    return table


class _Writer:
    """What the writers share: one at a time, which rows are new, whether the others agree, and `with`."""

    last_step: int  # of the last row written; 0 before the first

    def __init__(self, path: Path, flags: int) -> None:
        self._path = path
        with explained(path, ELSEWHERE):
            self._descriptor = os.open(path, flags, 0o666)
        # Closed with the writer, or when it is forgotten.
        self._closing = weakref.finalize(self, os.close, self._descriptor)
        if not locked(self._descriptor):
            self._closing()
            raise BlockingIOError(
                f"{path} is being written by another process, or another writer of this one, and two runs in one record would "
                "make it a record of neither. Close that writer, or choose another path."
            )
        try:
            self._table = self._read()
        except BaseException:
            self._closing()
            raise
        self.last_step = 0 if self._table is None else int(max(self._table["step"], default=0))

    @checked(recording="It is what recorder.read(state) gives.")
    def append(self, recording: Recording) -> int:
        """Writes the rows behind `last_step`, and returns how many they were.

        Raises:
          ValueError: if the recording is not of the run whose rows are there: other columns, or other numbers at a step that
            both have. OSError: if the rows cannot be written. In either case nothing is.
        """
        if not self._closing.alive:
            raise ValueError(f"the writer of {self._path} is closed. Open a new one: it goes on behind the last row.")
        table = columns(recording)
        is_new = table["step"] > self.last_step
        self._check_same_run(table, is_new)
        fresh = {name: column[is_new] for name, column in table.items()}
        if is_new.any():
            held = self._held(fresh)
            with explained(self._path, AS_IT_WAS):
                self._write(held)
            old = self._table or {name: column[:0] for name, column in held.items()}
            self._table = {name: np.concatenate([old[name], column]) for name, column in held.items()}
            self.last_step = int(fresh["step"].max())
        return int(is_new.sum())

    def _check_same_run(self, table: dict[str, np.ndarray], is_new: np.ndarray) -> None:
        if self._table is None:
            return
        elsewhere = "Nothing was written. Give this run a path of its own, or move that record away."
        if list(self._table) != list(table):
            raise ValueError(f"{self._path} has the columns {list(self._table)}, this recording has {list(table)}. {elsewhere}")
        both, there, here = np.intersect1d(self._table["step"], table["step"], return_indices=True)
        ours = self._held({name: column[here] for name, column in table.items()})
        for name, column in ours.items():
            theirs = self._table[name][there]
            differ = np.flatnonzero(_differ(theirs, column))
            if differ.size:
                first = differ[0]
                raise ValueError(
                    f"{self._path} is the record of another run: at step {both[first]} its {name} is {theirs[first]}, that of "
                    f"this recording {column[first]} ({differ.size} of {both.size} common steps differ). {elsewhere}"
                )
        if not both.size and is_new.any() and not is_new.all():
            raise ValueError(
                f"{self._path} has none of the {int(np.sum(~is_new))} steps up to its last, {self.last_step}, that this "
                f"recording has, so that it is the record of another run. {elsewhere}"
            )

    def _read(self) -> dict[str, np.ndarray] | None:
        """The rows that are there, as `_held` makes them; None if there is nothing. Changes nothing."""
        raise NotImplementedError

    def _held(self, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Numbers as the file holds them."""
        return table

    def _write(self, table: dict[str, np.ndarray]) -> None:
        """Writes rows whole, or raises an error and leaves what was there."""
        raise NotImplementedError

    def close(self) -> None:
        """After this nothing more is appended, and another writer may have the path."""
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class CSVWriter(_Writer):
    """A CSV file with a header. Numbers are as short as they can be without loss in their dtype.

    Args:
      path: of the file; its folder is made.

    Raises:
      ValueError: if there is anything else than the record of a run at `path`; at `append`, also if that of another run.
      OSError: if it cannot be written, or another writer has it.

    Example:
      >>> recorder = ctld_optax.recorder.Recorder({"loss": 0.0}, capacity=4)
      >>> log = recorder.init()
      >>> for number in range(8):
      ...     log = recorder.record(log, {"loss": 0.5 * number})
      >>> recording = recorder.read(log)
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.csv"
      >>> with ctld_optax.writers.CSVWriter(path) as table:
      ...     table.append(recording)  # rows that were new
      2
    """

    @checked()
    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        with explained(path, ELSEWHERE):
            if path.is_dir():
                raise IsADirectoryError(
                    f"{path} is a folder, and a CSV record is a file. Write {path / 'run.csv'}, for example."
                )
            if path.exists() and not path.is_file():
                raise ValueError(f"{path} is a device or a pipe, and a record is read before it is written. Name a file.")
            make_folder(path.parent)
        super().__init__(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)

    def _read(self) -> dict[str, np.ndarray] | None:
        with open(self._descriptor, "rb", closefd=False) as file:
            data = file.read()
        self._file = _GrowingFile(self._path, self._descriptor)
        self._whole = data.rfind(b"\n") + 1  # a line without its end was cut off; it goes when the first row comes
        elsewhere = "Choose another path, or move it away."
        if data and not self._whole:
            raise ValueError(f"{self._path} is not a record of a run: it has no whole line, only {data[:40]!r}. {elsewhere}")
        try:
            rows = list(csv.reader(data[: self._whole].decode().split("\n")[:-1]))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{self._path} is not a record of a run: it is no CSV file ({error}). {elsewhere}") from error
        if not rows:
            return None
        header = rows[0]
        if header[:1] != ["step"]:
            first = header[0] if header else ""
            raise ValueError(f"{self._path} is not a record of a run: its first column is {first!r}, not 'step'. {elsewhere}")
        for number, row in enumerate(rows[1:], start=2):
            if len(row) != len(header) or not row[0].isdecimal():
                raise ValueError(
                    f"{self._path} is damaged, or not a record of a run: line {number} is {','.join(row)[:60]!r}, and the "
                    f"columns are {header}. Mend that line, or move the file away."
                )
        texts = zip(*rows[1:], strict=True) if len(rows) > 1 else ([] for _ in header)
        table = {name: np.array(list(column), _TEXT) for name, column in zip(header, texts, strict=True)}
        return table | {"step": table["step"].astype(np.int64)}

    def _held(self, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        texts = {name: np.array([str(x) for x in column], _TEXT) for name, column in table.items() if name != "step"}
        return {"step": table["step"]} | texts

    def _write(self, table: dict[str, np.ndarray]) -> None:
        lines = [",".join(row) for row in zip(map(str, table["step"]), *list(table.values())[1:], strict=True)]
        if self._table is None:
            lines.insert(0, _csv_line(list(table)))
        self._whole = self._file.append("".join(f"{line}\n" for line in lines).encode(), self._whole)


class ParquetWriter(_Writer):
    """A folder of Parquet files, one an `append`, that readers take as one table: `pandas.read_parquet(folder)`.

    Parquet files cannot grow. Each is written under another name and then renamed, so that there are whole ones only; the
    name holds its first and its last step.

    Args:
      folder: is made. It must hold nothing else, since readers would take that for a part of the table.

    Raises:
      ImportError: without pyarrow.
      ValueError: if there is anything else in the folder, or a file that is damaged; at `append`, if there is another run.
      OSError: if it cannot be written, or another writer has it.

    Example:
      >>> recorder = ctld_optax.recorder.Recorder({"loss": 0.0}, capacity=4)
      >>> log = recorder.init()
      >>> for number in range(8):
      ...     log = recorder.record(log, {"loss": 0.5 * number})
      >>> recording = recorder.read(log)
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp()) / "run"
      >>> with ctld_optax.writers.ParquetWriter(folder) as table:
      ...     table.append(recording)
      2
    """

    @checked()
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(MISSING.format("ParquetWriter", "pyarrow")) from error
        self._arrow: Any = pa
        self._parquet: Any = pq
        with explained(Path(folder), ELSEWHERE):
            make_folder(Path(folder))
        super().__init__(Path(folder), os.O_RDONLY)

    def _read(self) -> dict[str, np.ndarray] | None:
        # Readers skip names that begin with a dot or an underscore, and so do we.
        paths = sorted(path for path in self._path.iterdir() if not path.name.startswith((".", "_")))
        foreign = [path.name for path in paths if not re.fullmatch(r"steps-\d{12,}-\d{12,}\.parquet", path.name)]
        if foreign:
            raise ValueError(
                f"{self._path} holds {foreign[:5]}, which no ParquetWriter wrote, and readers would take it for a part of the "
                "table. Choose a folder of its own."
            )
        tables = [self._read_file(path) for path in paths]
        # Earlier releases let a run go on with other columns: then those of the last file count.
        tables = [{name: table.get(name, table["step"][:0]) for name in tables[-1]} for table in tables]
        whole = [table for table in tables if len({column.size for column in table.values()}) == 1]
        return {name: np.concatenate([table[name] for table in whole]) for name in tables[-1]} if tables else None

    def _read_file(self, path: Path) -> dict[str, np.ndarray]:
        try:
            with path.open("rb") as file:
                table = self._parquet.read_table(file)
        except (OSError, ValueError) as error:  # Arrow's own errors are of these kinds
            raise ValueError(
                f"{path} is no whole Parquet file ({error}). Move it away; if it is the last one, those of its rows that the "
                "recording still has are then written again."
            ) from error
        if table.column_names[:1] != ["step"]:
            raise ValueError(f"{path} is not a record of a run: its columns are {table.column_names}. Choose another folder.")
        return {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}

    def _write(self, table: dict[str, np.ndarray]) -> None:
        name = f"steps-{table['step'][0]:012d}-{table['step'][-1]:012d}.parquet"
        unfinished = self._path / f".{name}.unfinished"
        try:
            with unfinished.open("wb") as file:
                self._parquet.write_table(self._arrow.table(table), file)
            unfinished.replace(self._path / name)
        except BaseException:
            unfinished.unlink(missing_ok=True)  # it would hold on to the room that a full disk lacks
            raise


class TensorBoardWriter(_Writer):
    """Scalars for TensorBoard: `tensorboard --logdir folder`.

    The events are tensorboardX's, the files are not: its `SummaryWriter` hands rows to a thread, its `flush` returns before
    they are in the file, and after a full disk its files go on behind half a row, where TensorBoard stops reading.

    Args:
      folder: is made; a run that is resumed adds a file to it. Event files of other programs may stand there. What comes behind
        a damage in a file counts as cut off, since TensorBoard does not read it either.

    Raises:
      ImportError: without tensorboardX.
      ValueError: at `append`, if the folder has a record of another run.
      OSError: if it cannot be written, or another writer has it.

    Example:
      >>> recorder = ctld_optax.recorder.Recorder({"loss": 0.0}, capacity=4)
      >>> log = recorder.init()
      >>> for number in range(8):
      ...     log = recorder.record(log, {"loss": 0.5 * number})
      >>> recording = recorder.read(log)
      >>> import tempfile
      >>> with ctld_optax.writers.TensorBoardWriter(tempfile.mkdtemp()) as board:
      ...     board.append(recording)
      2
    """

    @checked()
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboardX import proto, record_writer  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(MISSING.format("TensorBoardWriter", "tensorboardX")) from error
        messages: Any = proto
        self._event, self._summary = messages.event_pb2.Event, messages.summary_pb2.Summary
        self._checksum: Any = record_writer.masked_crc32c
        self._log: _GrowingFile | None = None
        with explained(Path(folder), ELSEWHERE):
            make_folder(Path(folder))
        super().__init__(Path(folder), os.O_RDONLY)

    def _read(self) -> dict[str, np.ndarray] | None:
        rows: list[tuple[int, dict[str, float]]] = []
        for log in sorted(self._path.glob("events.out.tfevents.*.from-*")):  # ours
            with contextlib.suppress(ValueError):  # no events from there on
                for data in _records(log, self._checksum):
                    event = self._parse(data)
                    if event.summary.value:
                        rows.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
        if not rows:
            return None
        rows.sort(key=lambda row: row[0])
        names = list(rows[-1][1])
        whole = [(step, row) for step, row in rows if list(row) == names]  # as in ParquetWriter
        table = {name: np.asarray([row[name] for _, row in whole], np.float32) for name in names}
        return {"step": np.asarray([step for step, _ in whole], np.int64)} | table

    def _parse(self, data: bytes) -> Any:
        try:
            return self._event.FromString(data)
        except Exception as error:  # protobuf's DecodeError, which is of another class in each of its versions
            raise ValueError(f"no event: {error}") from error

    def _held(self, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with np.errstate(over="ignore"):  # to infinity, as TensorBoard shows it
            return {name: column if name == "step" else column.astype(np.float32) for name, column in table.items()}

    def _write(self, table: dict[str, np.ndarray]) -> None:
        now = time.time()
        names = list(table)[1:]
        events: list[Any] = []
        for step, *row in zip(*table.values(), strict=True):
            values = [self._summary.Value(tag=name, simple_value=float(x)) for name, x in zip(names, row, strict=True)]
            events.append(self._event(step=int(step), wall_time=now, summary=self._summary(value=values)))
        if self._log is None:
            # Opened for the first row, under a name that is no one else's.
            name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.from-{self.last_step + 1}-{os.urandom(4).hex()}"
            descriptor = os.open(self._path / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
            self._closing_log = weakref.finalize(self, os.close, descriptor)
            self._log = _GrowingFile(self._path / name, descriptor)
        if self._log.size == 0:
            events.insert(0, self._event(wall_time=now, file_version="brain.Event:2"))
        self._log.append(b"".join(_record(event.SerializeToString(), self._checksum) for event in events))

    def close(self) -> None:
        """After this nothing more is appended, and another writer may have the folder."""
        if self._log is not None:
            self._closing_log()
        super().close()


def _csv_line(cells: Sequence[str]) -> str:
    """With quotes where a name needs them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _differ(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where they do; NaN is like NaN."""
    differ = first != second
    return differ & ~(np.isnan(first) & np.isnan(second)) if first.dtype.kind == "f" else differ


class _GrowingFile:
    """A file that grows by whole pieces, and that no one else changes meanwhile."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self.size = os.fstat(descriptor).st_size

    def append(self, data: bytes, behind: int | None = None) -> int:
        """Writes all of it, at the end or `behind` so many bytes, or raises; returns the file's new size."""
        own = os.fstat(self._descriptor)
        # Rows must not go into a file that no one can find any more, nor between those of someone who asks no one.
        if not self._path.exists() or not os.path.samestat(own, self._path.stat()):
            raise FileNotFoundError(
                f"{self._path} was deleted or replaced while a writer had it open. Open a new one: the rows that the recording "
                "still has are then written again."
            )
        if own.st_size != self.size:
            raise ValueError(
                f"{self._path} was left with {self.size} bytes and now has {own.st_size}: another program writes to it. "
                "Nothing was written. Give each run a path of its own."
            )
        start = self.size if behind is None else behind
        if start < self.size:
            os.ftruncate(self._descriptor, start)
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except BaseException:
            os.ftruncate(self._descriptor, start)
            raise
        finally:
            self.size = os.fstat(self._descriptor).st_size
        return self.size


def _record(data: bytes, checksum: Any) -> bytes:
    """One record of a TFRecord file: length, its checksum, data, their checksum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", checksum(length)) + data + struct.pack("<I", checksum(data))


def _records(path: Path, checksum: Any) -> Iterator[bytes]:
    """The records of a TFRecord file, up to where it is cut off or damaged, which is as far as TensorBoard reads it."""
    data = path.read_bytes()
    start = 0
    while start + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 12 + length + 4
        if end > len(data) or data[start:end] != _record(record := data[start + 12 : end - 4], checksum):
            return
        yield record
        start = end
