"""What is used of JAX, Optax and Flax: public names, none of them deprecated, and nothing experimental but in one room."""

import ast
import functools
import importlib
import pathlib

import pytest

import ctld_optax

PACKAGE = pathlib.Path(ctld_optax.__file__).parent
FOLDERS = (PACKAGE, PACKAGE.parent / "benchmarks", PACKAGE.parent / "notebooks")
FILES = [path for folder in FOLDERS for path in sorted(folder.rglob("*.py"))]
ROOM = PACKAGE / "_arrays" / "compat.py"
WATCHED = {"jax", "jaxlib", "optax", "flax"}


def names(source):
    """The dotted names that a program uses of these libraries, whatever it calls them."""
    nodes, known, found = list(ast.walk(ast.parse(source))), {}, set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            for alias in node.names:
                top = alias.name.split(".")[0]
                known |= {alias.asname: alias.name} if alias.asname else {top: top}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in nodes:
        parts, root = [], node
        while isinstance(root, ast.Attribute):
            parts, root = [root.attr, *parts], root.value
        if parts and isinstance(root, ast.Name) and root.id in known:
            found.add(".".join((known[root.id], *parts)))
    return {name for name in found if name.split(".")[0] in WATCHED}


def is_private(name):
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def is_experimental(name):
    return "experimental" in name.split(".")


def resolved(name):
    """The thing of this name. Warnings are errors here, so that a deprecated one cannot be had."""
    module, rest = name, []
    while True:
        try:
            return functools.reduce(getattr, rest, importlib.import_module(module))
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = [last, *rest]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_public_names_only(path):
    used = names(path.read_text())
    assert not set(filter(is_private, used))
    if path != ROOM:
        assert not set(filter(is_experimental, used))


@pytest.mark.parametrize(
    "path", [path for path in FILES if PACKAGE in path.parents and path != ROOM], ids=lambda path: path.stem
)
def test_every_name_is_there_and_not_deprecated(path):
    for name in names(path.read_text()):
        resolved(name)


def test_the_reading_finds_what_is_forbidden():
    program = """
import jax, jax.numpy as jnp, numpy as np
import jax.experimental.pallas
from jax._src import core
from optax import _src as hidden, contrib
def f(x):
    from jax import experimental
    return jnp.sum(jax.interpreters._one(x)), contrib.sam, np._core, experimental.io_callback, jax.__version__
"""
    used = names(program)
    assert set(filter(is_private, used)) == {"jax._src.core", "optax._src", "jax.interpreters._one"}
    assert set(filter(is_experimental, used)) == {"jax.experimental.pallas", "jax.experimental", "jax.experimental.io_callback"}
    assert {"jax.numpy.sum", "optax.contrib.sam", "jax.__version__"} <= used
    assert any(map(is_experimental, names(ROOM.read_text())))
    with pytest.raises(AttributeError):
        resolved("jax.numpy.no_such_name")
