"""Minibatch noise: with its variance taken off what is injected, the law is that of full batches; without, it is hotter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._dynamics.alpha import AlphaHalf
from ctld_optax._dynamics.integrators import BAOAB
from ctld_optax._dynamics.minibatch import RunningNoise
from ctld_optax._dynamics.preconditioner import Diagonal
from tests.laws.chains import SIGMAS, broken, deviation, estimate, sampler

LEARNING_RATE, TEMPERATURE, MOMENTUM, ALPHA_MOMENTUM = 0.2, 0.37, 0.83, 0.91
CURVATURE = np.array([0.6, 1.7])
SMALL = 0.04  # a learning rate at which the gradient moves little in a step, for what is estimated from differences
BROUGHT = np.array([0.25, 0.7])  # the part of the noise that is the gradient's own


def sigma_at(learning_rate):
    """Variance of the gradient's own noise."""
    return BROUGHT * 2.0 * (1.0 - MOMENTUM) * TEMPERATURE / learning_rate


SIGMA = sigma_at(LEARNING_RATE)
IDENTITY = np.eye(2)
SLACK = 0.005 * TEMPERATURE
VALUE_SIGMA = 2.3  # standard deviation of the loss's own noise: 6.2 in units of the temperature


def simulate_noisy(
    transformation, *, steps, chains=64, seed=41, value_sigma=0.0, root=np.sqrt(SIGMA), rate=LEARNING_RATE, hessian=CURVATURE
):
    """A quadratic whose gradient and value are noisy: (theta, r, r_alpha, alpha) of every fourth step.

    `root` makes the gradient's noise of white noise; that and `hessian` are matrices, or their diagonals.
    """
    hessian, root = (jnp.asarray(np.diag(m) if np.ndim(m) == 1 else m, jnp.float32) for m in (hessian, root))

    def step(carry, key):
        theta, state = carry
        gradient_key, value_key = jax.random.split(key)
        grads = hessian @ theta + root @ jax.random.normal(gradient_key, (2,))
        value = 0.5 * theta @ hessian @ theta + value_sigma * jax.random.normal(value_key)
        updates, state = transformation.update(grads, state, theta, value=value)
        r = -state.momentum * jnp.sqrt(rate / TEMPERATURE)
        return (theta + updates, state), (theta, r, state.r_alpha, state.alpha)

    @jax.jit
    @jax.vmap
    def chain(key):
        init_key, key = jax.random.split(key)
        state = dataclasses.replace(transformation.kernel, key=init_key).init(jnp.zeros(2))
        _, rows = jax.lax.scan(step, (jnp.zeros(2), state), jax.random.split(key, steps))
        return jax.tree.map(lambda row: row[steps // 10 :: 4], rows)

    return [np.asarray(rows, np.float64) for rows in chain(jax.random.split(jax.random.key(seed), chains))]


def langevin(noise, **changes):
    settings = {"learning_rate": LEARNING_RATE, "temperature": TEMPERATURE, "momentum": MOMENTUM, "key": 0, "tempering": None}
    return ctld_optax.ctld(**(settings | {"gradient_noise": noise} | changes))


def worst(transformation, temperature=TEMPERATURE, *, rate=LEARNING_RATE, scale=IDENTITY, curvature=CURVATURE):
    """Deviation from the law of `temperature`, of whose noise the part `brought` is the gradient's own, and white.

    In the coordinates theta = scale z the target has this diagonal curvature, and the noise a diagonal covariance.
    """
    inverse = np.linalg.inv(scale)
    root, hessian = inverse.T * np.sqrt(sigma_at(rate)), (inverse.T * curvature) @ inverse
    theta, r, *_ = simulate_noisy(transformation, steps=12_000, root=root, rate=rate, hessian=hessian)
    z, stiffness, brought = theta @ inverse.T, rate * curvature, BROUGHT
    order = transformation.kernel.integrator
    return max(
        deviation(z**2, order.variance(stiffness, MOMENTUM, brought) * temperature / curvature, slack=SLACK / curvature),
        deviation(r**2, order.kinetic_temperature(MOMENTUM, stiffness, brought) * temperature / TEMPERATURE, slack=SLACK),
    )


@pytest.mark.parametrize(
    "noise",
    [jnp.asarray(SIGMA, jnp.float32), ctld_optax.KnownNoise(jnp.asarray(SIGMA, jnp.float32))],
    ids=["pytree", "known"],
)
def test_compensated_law_is_that_of_full_batches(noise):
    assert worst(langevin(noise)) < SIGMAS


@pytest.mark.slow
def test_estimated_noise_compensates_up_to_the_motion_of_the_gradient():
    """Sigma comes out too large by 1 + lr U'' and (lr U'')^2 / (4 (1 - mu)) of the whole: so much colder is the law."""
    stiffness = SMALL * CURVATURE
    excess = stiffness * BROUGHT + stiffness**2 / (4.0 * (1.0 - MOMENTUM))
    transformation = langevin(ctld_optax.RunningNoise(), learning_rate=SMALL)
    assert worst(transformation, TEMPERATURE * (1.0 - excess), rate=SMALL) < SIGMAS


@pytest.mark.parametrize(
    "noise",
    [
        None,
        pytest.param(float(SIGMA[0]), marks=pytest.mark.slow),
        pytest.param(np.sqrt(SIGMA), marks=pytest.mark.slow),
        pytest.param(2.0 * SIGMA, marks=pytest.mark.slow),
    ],
    ids=["none", "of one parameter", "root", "twice"],
)
def test_uncompensated_and_wrongly_compensated_laws_are_others(noise):
    assert worst(langevin(noise)) > SIGMAS


# In a metric the gradient enters, and the noise is injected, in its coordinates.

MASS = np.array([0.05, 3.0])  # of a diagonal one; Sigma is that of the parameters
OBLIQUE = np.array([[90.0, 21.0], [21.0, 8.0]])  # a curvature, and the dense metric that makes it round


def in_diagonal_metric():
    scale = 1.0 / np.sqrt(MASS)
    noise = ctld_optax.KnownNoise(jnp.asarray(SIGMA / scale**2, jnp.float32))
    transformation = langevin(noise, preconditioner=ctld_optax.FixedMetric(jnp.asarray(MASS, jnp.float32)))
    return worst(transformation, scale=np.diag(scale))


def in_dense_metric(rate, noise, excess=0.0):
    metric = ctld_optax.FixedMetric(jnp.asarray(OBLIQUE, jnp.float32))
    scale = np.asarray(metric.init(jnp.zeros(2)).factor, np.float64)
    transformation = langevin(noise, learning_rate=rate, preconditioner=metric)
    return worst(transformation, TEMPERATURE * (1.0 - excess), rate=rate, scale=scale, curvature=np.ones(2))


def test_known_noise_of_the_parameters_is_carried_into_a_diagonal_metric():
    assert in_diagonal_metric() < SIGMAS


def test_noise_taken_in_the_wrong_coordinates_fails(monkeypatch):
    monkeypatch.setattr(Diagonal, "variances", lambda self, of_grads: of_grads)
    assert in_diagonal_metric() > SIGMAS


@pytest.mark.slow
def test_estimated_noise_is_that_of_the_coordinates_of_a_dense_metric(monkeypatch):
    """At the learning rates of the preset; the excess is that of the motion of the gradient, as above."""
    noise = ctld_optax.RunningNoise()
    excess = SMALL * BROUGHT + SMALL**2 / (4.0 * (1.0 - MOMENTUM))
    assert in_dense_metric(SMALL, noise, excess) < SIGMAS
    # Negative controls: no compensation; and Sigma of the parameters, where the noise is injected in other coordinates.
    assert in_dense_metric(SMALL, None) > SIGMAS
    observe = RunningNoise.observe
    factor = ctld_optax.FixedMetric(jnp.asarray(OBLIQUE, jnp.float32)).init(jnp.zeros(2)).factor
    outside = lambda self, state, grads, *rest: observe(self, state, grads @ jnp.linalg.inv(factor), *rest)
    monkeypatch.setattr(RunningNoise, "observe", outside)
    assert in_dense_metric(SMALL, noise, excess) > SIGMAS


def test_variances_of_parameters_beside_a_dense_metric_are_refused():
    metric = ctld_optax.FixedMetric(jnp.asarray(OBLIQUE, jnp.float32))
    for noise in (0.1, jnp.ones(2), ctld_optax.KnownNoise(0.1)):
        with pytest.raises(ValueError, match=r"^gradient_noise must be RunningNoise\(\) beside a dense metric"):
            langevin(noise, preconditioner=metric).init(jnp.zeros(2))
    langevin(ctld_optax.KnownNoise(0.0, value=0.1), preconditioner=metric).init(jnp.zeros(2))  # of the loss alone


@pytest.mark.parametrize("wrong", [[1.0, 2.0], {"w": 0.1}])
def test_variances_of_another_structure_are_named_in_a_metric_too(wrong):
    tx, params = langevin(wrong, preconditioner=ctld_optax.FixedMetric(2.0)), {"w": jnp.ones(2), "b": jnp.ones(1)}
    with pytest.raises(ValueError, match=r"^gradient_noise must be a number or a pytree like the parameters"):
        tx.update(params, tx.init(params), params, value=1.0)


def test_estimates_of_the_variances():
    """Each parameter's own variance, and the loss's."""
    transformation = langevin(ctld_optax.RunningNoise(decay=0.9995))
    rng = np.random.default_rng(0)
    state = transformation.init(jnp.zeros(2))
    update = jax.jit(lambda s, g, v: transformation.update(g, s, value=v)[1])
    grads = rng.normal(size=(4_000, 2)) * np.sqrt(SIGMA) + 5.0
    values = rng.normal(size=4_000) * 0.3 - 7.0

    def step(state, row):
        return update(state, *row), None

    state, _ = jax.lax.scan(step, state, (jnp.asarray(grads, jnp.float32), jnp.asarray(values, jnp.float32)))
    np.testing.assert_allclose(state.gradient_noise.gradient, SIGMA, rtol=0.1)
    np.testing.assert_allclose(state.gradient_noise.value, 0.09, rtol=0.1)


def test_two_minibatches_give_half_the_squared_difference_and_the_third_enters_evenly():
    estimator = ctld_optax.RunningNoise(decay=0.999)
    state = estimator.init(jnp.zeros(1), jnp.float32)
    found = []
    for gradient in (3.0, 5.0, 1.0):
        state = estimator.observe(state, jnp.asarray([gradient]), jnp.asarray(2.0 * gradient))
        variances = estimator.variances(state)
        found.append((float(variances.gradient[0]), float(variances.value)))
    np.testing.assert_allclose(found, [(0.0, 0.0), (2.0, 8.0), (5.0, 20.0)], rtol=1e-2)


def test_a_minibatch_that_is_not_finite_leaves_no_trace():
    estimator = ctld_optax.RunningNoise()
    state = estimator.init(jnp.zeros(1), jnp.float32)
    clean = estimator.observe(state, jnp.asarray([3.0]), jnp.asarray(1.0))
    for gradient, value in ((jnp.nan, 1.0), (1.0, jnp.inf)):
        spoiled = estimator.observe(clean, jnp.asarray([gradient]), jnp.asarray(value))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, clean, spoiled))


def test_state_is_there_only_with_an_estimator():
    params = {"w": jnp.ones((3, 2))}
    assert langevin(None).init(params).gradient_noise == ()
    assert langevin(0.3).init(params).gradient_noise == ()
    state = langevin(ctld_optax.RunningNoise()).init(params).gradient_noise
    assert state.gradient["w"].shape == state.last_gradient["w"].shape == (3, 2)


def test_noise_beyond_what_there_is_to_inject_leaves_sgd_with_momentum():
    params = jnp.asarray([1.0, -2.0])
    transformation = langevin(1e9)
    updates, _ = transformation.update(jnp.asarray([0.5, 0.25]), transformation.init(params), params, value=jnp.asarray(1.0))
    np.testing.assert_allclose(updates, -LEARNING_RATE * jnp.asarray([0.5, 0.25]), rtol=1e-6)


def test_out_of_range():
    with pytest.raises(ValueError, match="gradient must be"):
        ctld_optax.KnownNoise(-1.0)
    with pytest.raises(ValueError, match="value must be"):
        ctld_optax.KnownNoise(1.0, value=-1.0)
    with pytest.raises(ValueError, match="decay must be"):
        ctld_optax.RunningNoise(decay=1.0)


def test_estimator_inside_phase_switch_sees_the_gradients():
    transformation = ctld_optax.phase_switch(
        langevin(ctld_optax.RunningNoise()), optax.sgd(LEARNING_RATE, momentum=MOMENTUM), sampling_steps=5
    )
    state = transformation.init(jnp.zeros(2))
    for gradient in (1.0, 3.0):
        _, state = transformation.update(jnp.full(2, gradient), state, jnp.zeros(2), value=jnp.asarray(gradient))
    np.testing.assert_allclose(state.sampler.gradient_noise.gradient, 2.0, rtol=1e-4)


# The loss's own noise heats r_alpha, by (h g'(alpha) sigma / T)^2 a step.


def heat_of_alpha(noise, *, alpha_step_size=0.05, value_sigma=VALUE_SIGMA, band=(0.65, 1.25), rate=LEARNING_RATE, **parts):
    """Mean and error of r_alpha^2 where |alpha| lies in `band`, and what it should be there if all noise is made up for.

    Like a minibatch's on the parameters, the part that comes with the loss is white in either order.
    """
    settings = {"learning_rate": rate, "temperature": TEMPERATURE, "momentum": MOMENTUM, "gradient_noise": noise}
    settings["tempering"] = ctld_optax.PolynomialTempering()  # whose slope is nowhere so steep that there is too much noise
    transformation = sampler(**settings, alpha_momentum=ALPHA_MOMENTUM, alpha_step_size=alpha_step_size)
    _, _, r_alpha, alpha = simulate_noisy(
        broken(transformation, **parts), steps=16_000, value_sigma=value_sigma, root=np.zeros(2)
    )
    inside = (np.abs(alpha) > band[0]) & (np.abs(alpha) < band[1])
    lever = np.asarray(settings["tempering"].beta_gradient(jnp.asarray(alpha[inside]))) * value_sigma / TEMPERATURE
    brought = np.mean(np.square(alpha_step_size * lever)) / (2.0 * (1.0 - ALPHA_MOMENTUM))
    return *estimate(r_alpha**2, inside.astype(np.float64)), BAOAB.kinetic_temperature(ALPHA_MOMENTUM, brought=brought)


class SlopeWithoutSquare(AlphaHalf):
    """Eq. 9 as printed: g' sigma^2 in place of g'^2 sigma^2 (g' in absolute value, for there is no negative variance)."""

    def step(self, state, energy, temperature, key, *, num_seen, value_variance):
        slope = jnp.abs(self.tempering.beta_gradient(state.alpha + self.step_size * state.r_alpha))
        value_variance = value_variance / jnp.maximum(slope, 1e-3)
        return super().step(state, energy, temperature, key, num_seen=num_seen, value_variance=value_variance)


@pytest.mark.slow
def test_energy_noise_is_taken_off_the_noise_of_r_alpha():
    known = ctld_optax.KnownNoise(0.0, value=VALUE_SIGMA**2)
    for noise, rate in ((known, LEARNING_RATE), (ctld_optax.RunningNoise(), SMALL)):
        mean, error, target = heat_of_alpha(noise, rate=rate)
        assert abs(mean - target) < SIGMAS * error + 0.01
    mean, error, target = heat_of_alpha(None)
    assert mean - target > SIGMAS * error + 0.1


@pytest.mark.slow
def test_the_slope_of_g_enters_squared():
    """Where g' is about 0.4 the noise of Eq. 9 as printed would leave r_alpha too cold; a slow alpha shows it in place."""
    noise = ctld_optax.KnownNoise(0.0, value=11.5**2)
    place = {"alpha_step_size": 0.01, "value_sigma": 11.5, "band": (0.45, 0.57)}
    mean, error, target = heat_of_alpha(noise, **place)
    assert abs(mean - target) < SIGMAS * error + 0.01
    mean, error, target = heat_of_alpha(noise, **place, alpha_class=SlopeWithoutSquare)
    assert target - mean > SIGMAS * error + 0.01
