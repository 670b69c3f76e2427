"""Every public docstring has an example, and it runs as it stands, with the imports that the reference names."""

import doctest
import importlib
import pkgutil
import types

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest
from matplotlib import pyplot as plt

import ctld_optax

mpl.use("agg")
STANDS_ON = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "ctld_optax": ctld_optax}


def public_objects():
    """Each public function and class by the path a user would import it from, once."""
    names = [found.name for found in pkgutil.iter_modules(ctld_optax.__path__)]
    modules = [ctld_optax, *(importlib.import_module(f"ctld_optax.{name}") for name in names if not name.startswith("_"))]
    seen = set()
    for module in modules:
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            found = getattr(module, name)
            where = "ctld_optax" if hasattr(module, "__all__") else module.__name__
            is_ours = getattr(found, "__module__", "").startswith(where)
            if is_ours and callable(found) and not isinstance(found, types.ModuleType) and found not in seen:
                seen.add(found)
                yield f"{module.__name__}.{name}", found


OBJECTS = dict(public_objects())


def test_objects_are_found():
    assert {"ctld_optax.ctld", "ctld_optax.CTLDState", "ctld_optax.posterior.sample", "ctld_optax.plotting.dashboard"} <= set(
        OBJECTS
    )
    assert len(OBJECTS) > 60


# Building an animation or a figure starts nothing that outlives it, but Matplotlib warns of one that was never shown.
@pytest.mark.filterwarnings("ignore:Animation was deleted")
@pytest.mark.parametrize("name", OBJECTS)
def test_the_example_runs(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(OBJECTS[name], name, module=False, globs=dict(STANDS_ON))
    assert example.examples, f"{name} has no example"
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=said.append)
    plt.close("all")
    assert not runner.summarize(verbose=False).failed, "".join(said)
