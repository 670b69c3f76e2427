"""Twelve real posteriors: their densities are those of the reference draws, and every gradient is counted."""

import functools
import json
import math
import os
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import posteriordb
from benchmarks.harness import data, peers, posteriors, table

pytestmark = pytest.mark.usefixtures("x64")
needs_data = pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("CTLD_DATA_DIR", "")) / "posteriordb").is_dir(),
    reason="CTLD_DATA_DIR does not hold posteriordb",
)
each = pytest.mark.parametrize("name", posteriors.NAMES)


def toy(dim=3):
    """N(1, 2^2) in each coordinate; the last natural parameter is the exponential of the last coordinate."""
    mean, sd = np.ones(dim), np.full(dim, 2.0)
    mean[-1], sd[-1] = stats.lognorm(2.0, scale=math.e).stats("m"), stats.lognorm(2.0, scale=math.e).std()
    reference = posteriors.Reference(mean, sd, sd**2 + mean**2, 0.01 * sd, 0.01 * sd)
    potential = lambda x: 0.125 * jnp.sum(jnp.square(x - 1.0))
    return posteriors.Posterior("toy", ("a", "b", "c")[:dim], potential, posteriors.last_positive, reference)


def near(target, key, count):
    """Points around where NUTS would be: the lowest place that BFGS finds, a little shaken."""
    lowest = peers.mode(target, jax.random.key(0), 1)[0]
    return lowest + 0.1 * jax.random.normal(key, (count, target.dim)) * jnp.minimum(1.0, jnp.abs(lowest) + 0.1)


@needs_data
@each
def test_gradients_are_those_of_the_density(name):
    target = posteriors.posterior(name)
    (x,) = posteriors.starts(target, jax.random.key(1), 1, times=0.2)
    value, gradient = jax.jit(jax.value_and_grad(target.potential))(x)
    assert value.dtype == jnp.float64
    h = 1e-5
    stencil = [target.potential(x + c * h * jnp.eye(target.dim)[i]) for i in range(target.dim) for c in (1, -1)]
    slopes = (np.array(stencil[::2]) - np.array(stencil[1::2])) / (2 * h)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-5, atol=1e-6 * (1 + abs(float(value))))


@needs_data
@each
def test_natural_parameters_are_one_for_one_and_where_they_may_be(name):
    target = posteriors.posterior(name)
    assert target.dim == len(target.reference.mean)
    x = posteriors.starts(target, jax.random.key(0), 50)
    natural = jax.vmap(target.constrain)(x)
    assert natural.shape == x.shape
    # A coordinate moved moves a natural parameter: the Jacobian is regular.
    signs, _ = jax.vmap(lambda one: jnp.linalg.slogdet(jax.jacobian(target.constrain)(one)))(x)
    assert (jnp.abs(signs) == 1.0).all()
    positive = [i for i, parameter in enumerate(target.parameters) if parameter.startswith(("sigma", "tau", "rho"))]
    assert (natural[:, positive] > 0.0).all()
    assert (jnp.sign(natural).mean(0)[positive] == 1.0).all()
