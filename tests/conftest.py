"""What the tests share."""

import contextlib
import itertools
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax._arrays import compat
from ctld_optax._arviz import arviz

# What takes the time of most tests is compiling: with these flags half of it, for programs some of which run slower. Pages,
# notebooks and the oldest leg of noxfile.py are compiled as users' programs are. An XLA that does not know a flag ends the
# process, so that older ones get none; `XLA_FLAGS=` in front of the command keeps XLA as it is.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ >= (0, 10):
    os.environ.setdefault("XLA_FLAGS", QUICK)  # read when a backend is made, which importing JAX does not do

# Each worker of pytest-xdist has cores of its own: threads of two on one core mostly wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    worker, workers = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[worker::workers] or cores)

# Equal programs of different tests are compiled once: by each process, for JAX writes entries while others may read them.
COMPILED = tempfile.TemporaryDirectory(prefix="ctld-optax-tests-")
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

with contextlib.suppress(ImportError):  # the minimal install has none
    arviz("tests of samples")  # before test modules import it, in all worker processes at about the same moment


def pytest_unconfigure():
    COMPILED.cleanup()


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _forgotten():
    """What tests compiled does not stay: a program holds memory maps, and Linux lets a process have some 65,000."""
    yield
    if next(_tests) % 100 == 0:
        jax.clear_caches()


@pytest.fixture
def x64():
    """float64 for one test; the others run in JAX's default float32."""
    with compat.enable_x64(True):
        yield


@pytest.fixture
def params():
    """Several leaves: two matrices, a nested vector, a scalar."""
    rng = np.random.default_rng(0)
    return {
        "dense": {"kernel": jnp.asarray(rng.normal(size=(5, 7)), jnp.float32), "bias": jnp.zeros(7, jnp.float32)},
        "out": jnp.asarray(rng.normal(size=(7, 3)), jnp.float32),
        "scale": jnp.asarray(1.5, jnp.float32),
    }


@pytest.fixture
def loss():
    """A loss that is neither quadratic nor separable, of the parameters above."""
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.normal(size=(11, 5)), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(11, 3)), jnp.float32)

    def loss_of(params):
        dtype = params["out"].dtype
        hidden = jnp.tanh(inputs.astype(dtype) @ params["dense"]["kernel"] + params["dense"]["bias"])
        return jnp.mean(jnp.square(params["scale"] * (hidden @ params["out"]) - targets.astype(dtype)))

    return loss_of


@pytest.fixture
def make():
    """`ctld` with usual figures, each of which a test may replace."""

    def make_transformation(**changes):
        return ctld_optax.ctld(**({"learning_rate": 0.01, "temperature": 0.01, "key": 0} | changes))

    return make_transformation
