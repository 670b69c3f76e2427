"""The notebooks with their outputs: `python docs/executed.py` runs those that changed, and the site shows them.

An executed notebook lies in build/notebooks under a name that says what it was made from: its own text, and the code of the
package without comments and docstrings. So it runs once, for whoever builds the site or tests it, and again where something
that could change its outputs has changed.
"""

import ast
import concurrent.futures
import hashlib
import os
import pathlib
import sys

import jupytext
import nbclient
import nbformat

import ctld_optax

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "notebooks"
KEPT = ROOT / "build" / "notebooks"
LONGEST = 900  # seconds that a cell may take


def code_of(path: pathlib.Path) -> str:
    """What a module does: no comments, no docstrings, no layout."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def package() -> str:
    """One text for all of the installed package's code."""
    folder = pathlib.Path(ctld_optax.__file__).parent
    return "\n".join(
        f"{path.relative_to(folder)}\n{code_of(path) if path.suffix == '.py' else path.read_text()}"
        for path in sorted(folder.rglob("*"))
        if path.suffix in {".py", ".html"}
    )


def execute(source: pathlib.Path, target: pathlib.Path) -> None:
    """Runs a notebook as a reader would, in a folder of its own; an error in a cell is one here."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    nbclient.NotebookClient(
        notebook, timeout=LONGEST, resources={"metadata": {"path": str(target.parent)}}
    ).execute()
    unfinished = target.with_suffix(f".{os.getpid()}")
    nbformat.write(notebook, unfinished)
    unfinished.replace(target)


def executed(at_once: int = 2) -> dict[str, pathlib.Path]:
    """Each notebook's name with its executed file; those that are not there yet are run."""
    code = package()
    files = {}
    for source in sorted(SOURCES.glob("*.py")):
        key = hashlib.sha256(f"{source.read_text()}\n{code}".encode()).hexdigest()[:16]
        files[source.stem] = KEPT / f"{source.stem}-{key}.ipynb"
    missing = [name for name, path in files.items() if not path.exists()]
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(lambda name: execute(SOURCES / f"{name}.py", files[name]), missing):
            pass
    return files


if __name__ == "__main__":
    for name, path in executed().items():
        sys.stdout.write(f"{name}: {path}\n")
