"""A metric is a change of coordinates, and what does not fit says so."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._dynamics.preconditioner import Dense, Diagonal
from tests.helpers import assert_identical, run

PARAMS = {"w": jnp.asarray([[0.5, -0.3], [0.2, 0.9]]), "b": jnp.asarray(0.7)}


def quadratic(params):
    return 0.5 * jnp.sum(jnp.square(params["w"])) + 1.5 * params["b"] ** 2


def mass_matrix():
    factor = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)))
    return factor @ factor.T + jnp.eye(5)


@pytest.mark.parametrize("mass", [{"w": 4.0, "b": 0.25}, mass_matrix()], ids=["diagonal", "dense"])
def test_cold_it_is_momentum_in_its_own_coordinates(mass):
    """theta = S z: the run is that of optax.sgd on z, with S S^T the inverse of the mass."""
    metric = ctld_optax.FixedMetric(mass)
    ours, _ = run(ctld_optax.ctld(0.05, 0.0, 0.9, key=0, preconditioner=metric), quadratic, PARAMS, 20)

    coordinates = metric.init(PARAMS)
    start = jax.tree.map(jnp.zeros_like, PARAMS)

    def there(z):
        return jax.tree.map(jnp.add, PARAMS, coordinates.outward(z))

    z, _ = run(optax.sgd(0.05, momentum=0.9), lambda z: quadratic(there(z)), start, 20)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(there(z)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)

    whole = metric.init(PARAMS)
    columns = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(whole.outward(unit))]) for unit in units()]
    expected = mass_matrix() if isinstance(whole, Dense) else np.diag([0.25, 4.0, 4.0, 4.0, 4.0])  # ravelled: b, then w
    s = np.stack(columns, axis=1)
    np.testing.assert_allclose(s @ s.T, np.linalg.inv(expected), rtol=1e-4, atol=1e-5)


def units():
    """The unit vectors, as trees."""
    _, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    return [unravel(row) for row in jnp.eye(5)]


def test_unit_mass_is_no_preconditioner():
    plain, _ = run(ctld_optax.ctld(0.05, 0.1, key=0), quadratic, PARAMS, 10)
    unit, _ = run(ctld_optax.ctld(0.05, 0.1, key=0, preconditioner=ctld_optax.FixedMetric(1.0)), quadratic, PARAMS, 10)
    for mine, theirs in zip(jax.tree.leaves(unit), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_gradient_times_s_in_and_update_times_s_out():
    coordinates = ctld_optax.FixedMetric(4.0).init(PARAMS)
    assert isinstance(coordinates, Diagonal)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    assert_identical(coordinates.inward(grads), jax.tree.map(lambda g: 0.5 * g, grads))


@pytest.mark.parametrize("mass", [jnp.full(3, 2.0, jnp.float32), jnp.eye(3)])
def test_a_mass_that_is_known_is_looked_at_inside_jit_too(mass):
    made = jax.jit(lambda: ctld_optax.FixedMetric(mass).init(jnp.zeros(3)))()
    assert_identical(made.inward(jnp.ones(3)), ctld_optax.FixedMetric(mass).init(jnp.zeros(3)).inward(jnp.ones(3)))
    wrong = -mass
    with pytest.raises(ValueError, match="mass must be positive"):
        jax.jit(lambda: ctld_optax.FixedMetric(wrong).init(jnp.zeros(3)))()


def test_one_array_like_the_one_parameter_is_a_diagonal():
    square = jnp.full((3, 3), 2.0) + jnp.eye(3)
    assert isinstance(ctld_optax.FixedMetric(square).init(jnp.zeros((3, 3))), Diagonal)
    assert isinstance(ctld_optax.FixedMetric(square).init(jnp.zeros(3)), Dense)


@pytest.mark.parametrize(
    ("mass", "error", "words"),
    [
        (jnp.eye(4), ValueError, r"mass must be a \(5, 5\) matrix"),
        ({"w": 1.0}, ValueError, "mass must be .* the structure"),
        ({"w": 1.0, "b": -1.0}, ValueError, r"mass must be a finite number in \(0, inf\)"),
        (-jnp.eye(5), ValueError, "mass must be positive"),
        (jnp.eye(5) * jnp.nan, ValueError, "mass must be positive"),
        ({"w": jnp.asarray([[1.0, jnp.inf], [1.0, 1.0]]), "b": 1.0}, ValueError, "mass must be positive and finite"),
        ("hessian", TypeError, "mass must be a matrix"),
        ((), TypeError, "mass must be a matrix"),
    ],
)
def test_a_mass_that_does_not_fit_is_told(mass, error, words):
    with pytest.raises(error, match=words):
        ctld_optax.FixedMetric(mass).init(PARAMS)


def test_variances_of_the_parameters_are_refused_beside_a_metric_that_follows_the_run():
    make = functools.partial(ctld_optax.ctld, 0.1, 0.1, key=0, preconditioner=ctld_optax.SecondMoment())
    with pytest.raises(ValueError, match=r"gradient_noise must be RunningNoise\(\) beside a metric that follows the run"):
        make(gradient_noise=1.0).init(PARAMS)
    run(make(gradient_noise=ctld_optax.RunningNoise()), quadratic, PARAMS, 3)


def test_a_matrix_is_refused_beside_param_specs():
    metric = ctld_optax.FixedMetric(mass_matrix())
    sampler = ctld_optax.ctld(0.1, 0.1, key=0, preconditioner=metric, param_specs=jax.sharding.PartitionSpec("x"))
    with pytest.raises(ValueError, match="mass must be a diagonal beside param_specs"):
        sampler.init(PARAMS)


def test_metric_from_hessian_is_the_curvature():
    matrix = mass_matrix()
    metric = ctld_optax.metric_from_hessian(lambda x, m: 0.5 * x @ m @ x, jnp.ones(5), matrix)
    np.testing.assert_allclose(metric.mass, matrix, rtol=1e-5, atol=1e-5)


def test_metric_from_hessian_is_positive_at_a_saddle_and_on_a_plain():
    metric = ctld_optax.metric_from_hessian(lambda x: x[0] ** 2 - 3.0 * x[1] ** 2, jnp.zeros(3), floor=1e-3)
    np.testing.assert_allclose(np.linalg.eigvalsh(metric.mass), [6e-3, 2.0, 6.0], rtol=1e-4)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.05, momentum=0.9), optax.adam(0.01)], ids=["sgd", "adam"])
def test_phase_switch_starts_the_optimizer_at_rest(optimizer):
    """The momentum is that of other coordinates, and no sum of gradients."""
    metric = ctld_optax.FixedMetric({"w": 4.0, "b": 0.25})
    sampler = ctld_optax.ctld(0.05, 1e-3, key=0, preconditioner=metric)
    alone, sampled = run(sampler, quadratic, PARAMS, 5)
    has_trace = isinstance(optimizer.init(PARAMS)[0], optax.TraceState)
    said = pytest.warns(UserWarning, match="the coordinates of its preconditioner, .* trace starts from zeros")
    with said if has_trace else contextlib.nullcontext():
        both, _ = run(ctld_optax.phase_switch(sampler, optimizer, 5), quadratic, PARAMS, 9)
    if has_trace:
        with pytest.raises(ValueError, match="sampler_state has its momentum in the coordinates of a preconditioner"):
            ctld_optax.hand_over_momentum(optimizer.init(PARAMS), sampled)
    expected, _ = run(optimizer, quadratic, alone, 4)
    for mine, theirs in zip(jax.tree.leaves(both), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
