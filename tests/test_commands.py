"""What a person can run as `python -m benchmarks.NAME`: its extra installs all it imports, and the list of them is whole."""

import ast
import importlib
import importlib.metadata
import pathlib
import pkgutil
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import benchmarks

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = [found.name for found in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]
COMMANDS = [found.name for found in pkgutil.iter_modules(benchmarks.__path__, "benchmarks.") if not found.ispkg]
OWN = {"benchmarks", PROJECT["name"].replace("-", "_")}


def installed_by(extra):
    """The distributions that the project and this extra name, those of its own extras that it names among them."""
    found = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:
            found = found.union(*map(installed_by, requirement.extras))
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def imports(path):
    """Top-level names of what a file imports anywhere in it, the standard library's and our own left out."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names} - OWN - set(sys.stdlib_module_names)


def test_modules_are_found():
    assert {"benchmarks.mixture", "benchmarks.harness.data"} <= set(MODULES)
    assert {"blackjax"} <= imports(ROOT / "benchmarks" / "mixture.py")
    assert {"sklearn"} <= imports(ROOT / "benchmarks" / "harness" / "data.py")  # inside a function


@pytest.mark.parametrize("name", MODULES)
def test_the_extra_names_all_that_a_module_imports(name):
    module = importlib.import_module(name)
    distributions = importlib.metadata.packages_distributions()
    needed = {canonicalize_name(one) for top in imports(pathlib.Path(module.__file__)) for one in distributions[top]}
    assert needed <= installed_by("benchmarks")


def test_every_command_is_listed_with_its_own_first_line():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", (ROOT / "benchmarks" / "README.md").read_text(), re.MULTILINE)
    first_lines = {name: importlib.import_module(name).__doc__.splitlines()[0] for name in COMMANDS}
    assert dict(rows) == {name.removeprefix("benchmarks."): line for name, line in first_lines.items()}


def test_the_notebooks_extra_opens_them():
    assert {"jupyterlab", "jupytext", "ipykernel"} <= installed_by("notebooks")
