"""The house: an import never runs upward, nothing imports in a circle, and the step can be read on one screen."""

import ast
import inspect
import pathlib

import pytest

import ctld_optax
from ctld_optax._dynamics.langevin import Langevin

ROOT = pathlib.Path(ctld_optax.__file__).parent
# From the ground up: a room may import what lies below it, and of its own floor whatever makes no circle.
FLOORS = (
    {"_validate", "_checked", "_arviz"},
    {"_arrays"},
    {"_dynamics"},
    {"_ctld", "_handover", "_probe", "_heated", "_chains", "_exact", "_warmup", "_batches"},
    {"_presets", "_phase_switch", "_accumulate", "_temperature_ramp", "baselines"},
    {"diagnostics", "posterior", "_sample", "_windows", "_heat", "_running_mean"},
    {"plotting", "recorder", "writers", "checkpoint"},
    {"__init__"},
)


def modules():
    """Every module of the package, by its dotted name below it."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path


MODULES = dict(modules())


def imports(path):
    """The package's own modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ctld_optax":
            base = node.module.removeprefix("ctld_optax").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                yield name if name in MODULES else base or "__init__"


def floor(name):
    (found,) = [level for level, rooms in enumerate(FLOORS) if name.split(".")[0] in rooms]
    return found


@pytest.mark.parametrize("name", MODULES)
def test_no_import_runs_upward(name):
    above = {other for other in imports(MODULES[name]) if floor(other) > floor(name)}
    assert not above
    for upper, lower in (("posterior", "diagnostics"), ("diagnostics", "posterior")):
        assert not (name.split(".")[0] == lower and any(other.split(".")[0] == upper for other in imports(MODULES[name])))


def circles(graph):
    """A module that can be reached from itself."""
    for start in graph:
        seen, open_ = set(), list(graph[start])
        while open_:
            here = open_.pop()
            if here not in seen:
                seen.add(here)
                open_ += graph[here]
        if start in seen:
            yield start


def test_nothing_imports_in_a_circle():
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    assert not list(circles(graph))
    # Negative control.
    assert list(circles(graph | {"_validate": {"_ctld"}}))


@pytest.mark.parametrize("room", ["alpha", "integrators", "tempering", "walls", "grid", "coupling", "minibatch"])
def test_these_rooms_do_not_know_optax(room):
    nodes = list(ast.walk(ast.parse(MODULES[f"_dynamics.{room}"].read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "jax" in names
    assert not any(name.split(".")[0] == "optax" for name in names)


def test_the_step_fits_one_screen():
    assert len(MODULES["_ctld"].read_text().splitlines()) < 250
    parts = (Langevin.update, Langevin.accelerate, Langevin.thermalize, Langevin.displacement)
    assert sum(len(inspect.getsource(part).splitlines()) for part in parts) <= 70
