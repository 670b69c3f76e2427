"""Every public docstring has an example, and it runs as it stands, with the imports that the reference names."""

import doctest

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest
from matplotlib import pyplot as plt

import ctld_optax
from tests.helpers import public_objects

mpl.use("agg")
STANDS_ON = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "ctld_optax": ctld_optax}


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
