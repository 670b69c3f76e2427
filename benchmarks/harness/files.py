"""How a benchmark puts a file in its place: whole or not at all, and never on top of what it did not make."""

import contextlib
import io
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Generator
from typing import Any

from matplotlib import pyplot as plt

from ctld_optax.checkpoint import explained, locked, make_folder

ADVICE = "What was there is as it was. Make room, or name a place that can be written (--csv, --out or --page)."


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Generator[None]:
    """While it lasts, no other process that asks here writes into the folder of `path`, which is made."""
    with explained(path, ADVICE):
        make_folder(path.parent)
        folder = os.open(path.parent, os.O_RDONLY)
    try:
        while not locked(folder):
            time.sleep(0.01)
        yield
    finally:
        os.close(folder)


def replace(path: pathlib.Path, data: bytes) -> None:
    """The new file under its name, or the old one as it was: a kill or a full disk at any moment leaves one of the two."""
    path = path.resolve()  # a link stays a link
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with explained(path, ADVICE):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def put(path: pathlib.Path, data: bytes, *, is_own: Callable[[bytes], bool] = lambda _: False) -> None:
    """Writes a file that is made anew by each run. One of another content that stands there is kept, under another name.

    Args:
      path: of the file; its folder is made.
      data: what it is to hold.
      is_own: of the content that stands there: whether it can be made again from what else is kept, and so be replaced.
    """
    with alone(path):
        old = path.read_bytes() if path.is_file() else None
        if os.path.lexists(path) and old != data and not (old is not None and is_own(old)):
            aside = next(p for n in itertools.count(1) if not os.path.lexists(p := path.with_name(f"{path.name}.aside-{n}")))
            path.rename(aside)
            print(f"{path} held something else, which is now {aside}.")
        replace(path, data)


def save_figure(figure: Any, path: pathlib.Path, *, dpi: int) -> None:
    """As `put`, of a figure, which is then closed. An older one of ours makes room: its numbers are kept elsewhere."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    plt.close(figure)
    put(path, drawn.getvalue(), is_own=lambda old: old.startswith(b"\x89PNG") and b"Matplotlib" in old[:200])
