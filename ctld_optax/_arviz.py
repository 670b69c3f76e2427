"""ArviZ, which not every install has, and which two processes may want at the same moment."""

import importlib
from typing import Any


def arviz(purpose: str) -> Any:
    """The package.

    Args:
      purpose: what needs it, a sentence.

    Raises:
      ImportError: with `purpose` and what to install, if it is not there.
    """
    try:
        try:
            return importlib.import_module("arviz")
        except FileNotFoundError:
            # Its first import of a day leaves a note in the user's cache, by way of one file for all processes. Another one
            # has moved that away, so the note is there now.
            return importlib.import_module("arviz")
    except ImportError as error:
        raise ImportError(f"{purpose}: pip install 'ctld-optax[posterior]'.") from error
