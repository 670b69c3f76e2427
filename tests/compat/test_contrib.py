"""The list of Optax's contrib checks is complete, and every counterpart exists."""

import ast
import importlib.util
from pathlib import Path

import pytest

from .columns import COLUMNS
from .contrib import COUNTERPARTS


def contrib_checks():
    # The file is read, not imported: importing it would run absl's flags.
    spec = importlib.util.find_spec("optax.contrib")
    path = Path(spec.submodule_search_locations[0]) / "_common_test.py"
    if not path.exists():
        pytest.skip("this Optax comes without its tests")
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_contrib_check_has_a_counterpart():
    assert contrib_checks() == COUNTERPARTS.keys()


def test_every_counterpart_exists():
    names = {column.name for column in COLUMNS}
    assert {name for columns in COUNTERPARTS.values() for name in columns} <= names
