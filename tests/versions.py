"""What older versions lack, and which tests are skipped there for it. No other place says so."""

import importlib.metadata

import jax
import pytest
from packaging.version import Version

from ctld_optax._arrays import compat


def needs(is_there, what):
    """A mark; as in `@versions.EXPLICIT`, or `pytestmark = versions.MESHES`."""
    return pytest.mark.skipif(not is_there, reason=f"needs {what}; here is JAX {jax.__version__}")


def since(distribution, version):
    try:
        return Version(importlib.metadata.version(distribution)) >= Version(version)
    except importlib.metadata.PackageNotFoundError:
        return False


def _has_implementation(name):
    try:
        jax.random.key(0, impl=name)
    except ValueError:
        return False
    return True


MESHES = needs(hasattr(jax, "set_mesh") and hasattr(jax.lax, "pcast"), "jax.set_mesh and jax.lax.pcast, of JAX 0.8")
BARRIER = needs(compat.barrier_has_rules(), "an optimization barrier that can be differentiated")
EXPLICIT = needs(hasattr(jax, "typeof"), "a mesh with Explicit axes, of JAX 0.5")
NNX = needs(since("flax", "0.11"), "an nnx.Optimizer whose update takes the model, of Flax 0.11")
PHILOX = needs(_has_implementation("philox4x32"), "keys of philox4x32")
ORBAX = needs(since("jax", "0.6"), "an Orbax that saves typed keys, which needs JAX 0.6")
# To how much rounding errors of 1e-16 may grow in some hundred steps; older versions round otherwise.
ROUNDING = 1e-9 if hasattr(jax, "enable_x64") else 1e-7

DOG = needs(since("optax", "0.2.6"), "a contrib.dog that keeps the parameters from init on, of Optax 0.2.6")
