"""Constant temperature on a Gaussian target: the recursion is linear, so its law is known exactly, step size and all.

With y_t = (theta_t, m_{t-1}), A the Hessian of the loss, l the learning rate and s the scale of the noise,

    y_{t+1} = F y_t + G eps,   F = [[1 - l A, -l mu], [A, mu]],   G = s [[l], [-1]],

whose stationary covariance solves C = F C F^T + G G^T, and whose autocovariance at lag k is F^k C.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import ctld_optax
from ctld_optax import _noise
from ctld_optax._ctld import LangevinKernel
from tests.laws.chains import SIGMAS, broken, deviation, simulate

LEARNING_RATE, TEMPERATURE, MOMENTUM = 0.06, 0.37, 0.83
HESSIAN = np.array([[1.9, 0.8], [0.8, 0.7]])
LAGS = (1, 5, 20)


def loss(theta):
    return 0.5 * theta @ jnp.asarray(HESSIAN, jnp.float32) @ theta + 17.0  # an offset of the loss changes nothing


def langevin(**changes):
    settings = {"learning_rate": LEARNING_RATE, "temperature": TEMPERATURE, "momentum": MOMENTUM, "key": 0, "tempering": None}
    return ctld_optax.ctld(**(settings | changes))


def exact_law(momentum=MOMENTUM):
    """<theta theta^T>, <r r^T>, and <theta_{t+k} theta_t^T> at the lags."""
    eye = np.eye(2)
    scale = np.sqrt(2 * (1 - momentum) * TEMPERATURE / LEARNING_RATE)
    forward = np.block([[eye - LEARNING_RATE * HESSIAN, -LEARNING_RATE * momentum * eye], [HESSIAN, momentum * eye]])
    noise = scale * np.vstack([LEARNING_RATE * eye, -eye])
    covariance = scipy.linalg.solve_discrete_lyapunov(forward, noise @ noise.T)
    lagged = [(np.linalg.matrix_power(forward, lag) @ covariance)[:2, :2] for lag in LAGS]
    return covariance[:2, :2], covariance[2:, 2:] * LEARNING_RATE / TEMPERATURE, np.stack(lagged)


def worst_deviation(transformation, *, momentum=MOMENTUM, steps=8_000, chains=64, start=(0.9, -0.4)):
    """How far the run is from the exact law, in standard errors: second moments and autocovariances."""
    draws, _ = simulate(transformation, loss, jnp.asarray(start, jnp.float32), steps=steps, chains=chains, seed=11)
    draws = draws.after(0.05)
    r = -draws.momentum * np.sqrt(LEARNING_RATE / TEMPERATURE)
    positions, momenta, lagged = exact_law(momentum)
    longest = max(LAGS)
    now = draws.theta[:, :-longest]
    later = np.stack([draws.theta[:, lag : lag - longest or None] for lag in LAGS], axis=2)
    return {
        "theta theta": deviation(draws.theta[..., :, None] * draws.theta[..., None, :], positions),
        "r r": deviation(r[..., :, None] * r[..., None, :], momenta),
        "autocovariance": deviation(later[..., :, None] * now[:, :, None, None, :], lagged),
    }


@pytest.mark.parametrize("noise", _noise.SOURCES)
def test_second_moments_and_autocorrelation_are_those_of_the_discrete_recursion(noise):
    """Of every source: they depend on the mean and the variance of the noise alone."""
    found = worst_deviation(langevin(noise=noise))
    assert max(found.values()) < SIGMAS, found


FOURTH_CUMULANT = {"gaussian": 0.0, "irwin_hall": 0.0, "three_point": 0.0, "rademacher": -2.0}


def excess_kurtosis(noise):
    """Of theta in one dimension, measured over independent coordinates, and by theory from the noise's fourth cumulant.

    theta_t = sum_k c_k eps_{t-k}, and cumulants add up: kappa_4(theta) = kappa_4(eps) sum_k c_k^4. Small momentum and a large
    step, so that a theta is made of few variates.
    """
    learning_rate, momentum, coordinates, steps = 0.5, 0.2, 2**20, 60
    transformation = langevin(learning_rate=learning_rate, momentum=momentum, noise=noise, key=3)

    def step(carry, _):
        theta, state = carry
        updates, state = transformation.update(theta, state, theta)
        return (theta + updates, state), None

    start = jnp.zeros(coordinates)
    (theta, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps))((start, transformation.init(start)))
    theta = np.asarray(theta, np.float64)
    forward = np.array([[1 - learning_rate, -learning_rate * momentum], [1.0, momentum]])
    kick = np.sqrt(2 * (1 - momentum) * TEMPERATURE / learning_rate) * np.array([learning_rate, -1.0])
    weights = np.array([np.linalg.matrix_power(forward, lag) @ kick for lag in range(steps)])[:, 0]
    expected = FOURTH_CUMULANT[noise] * np.sum(weights**4) / np.sum(weights**2) ** 2
    return np.mean(theta**4) / np.mean(theta**2) ** 2 - 3.0, expected


@pytest.mark.parametrize("noise", _noise.SOURCES)
def test_kurtosis_is_what_the_fourth_moment_of_the_source_makes_it(noise):
    measured, expected = excess_kurtosis(noise)
    error = np.sqrt(24.0 / 2**20)  # of the sample kurtosis of independent, nearly Gaussian variates
    assert abs(measured - expected) < SIGMAS * error
    # Negative control: the check sees the coin's missing fourth moment.
    assert (abs(measured) > 10.0 * error) == (noise == "rademacher")


@pytest.mark.slow
def test_the_check_can_tell_the_discrete_law_from_that_of_the_differential_equation():
    draws, _ = simulate(langevin(), loss, jnp.zeros(2), steps=12_000, chains=64, seed=11)
    curvature, directions = np.linalg.eigh(HESSIAN)
    stiff = draws.after(0.05).theta @ directions[:, 1]
    heat = 1.0 / (1.0 - LEARNING_RATE * curvature[1] / (2.0 * (1.0 + MOMENTUM)))
    assert deviation(stiff**2, heat * TEMPERATURE / curvature[1]) < SIGMAS
    assert deviation(stiff**2, TEMPERATURE / curvature[1]) > SIGMAS
    r = -draws.after(0.05).momentum * np.sqrt(LEARNING_RATE / TEMPERATURE)
    assert deviation(r[..., :, None] * r[..., None, :], np.eye(2)) > SIGMAS


class Frozen(LangevinKernel):
    def displacement(self, count, momentum, like, *rest):
        return jax.tree.map(jnp.zeros_like, like)


class HalfStep(LangevinKernel):
    def displacement(self, count, momentum, like, *rest):
        return jax.tree.map(lambda update: 0.5 * update, super().displacement(count, momentum, like, *rest))


class AveragedGradients(LangevinKernel):
    def accelerate(self, grads, momentum, decay):
        return super().accelerate(jax.tree.map(lambda g: (1.0 - decay) * g, grads), momentum, decay)


WRONG = {
    "noise without the 2": {"source": lambda word: _noise.gaussian(word) / np.float32(np.sqrt(2.0))},
    "temperature for its root": {"temperature": lambda count: TEMPERATURE**2},
    "root for the temperature": {"temperature": lambda count: TEMPERATURE**0.5},
    "noise shared by the parameters": {"source": lambda word: jnp.broadcast_to(_noise.gaussian(word.ravel()[:1]), word.shape)},
    "noise with a 4 for the 2": {"source": lambda word: _noise.gaussian(word) * np.float32(np.sqrt(2.0))},
    "frozen position": {"kernel_class": Frozen},
    "half a step": {"kernel_class": HalfStep},
    "averaged gradients": {"kernel_class": AveragedGradients},
}


FAST = ("noise without the 2", "temperature for its root", "frozen position")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in WRONG])
def test_wrong_variants_fail(name):
    assert max(worst_deviation(broken(langevin(), **WRONG[name]), steps=4_000).values()) > SIGMAS


def test_a_stationary_start_is_stationary_in_the_momentum_of_the_paper():
    """r ~ N(0, I) at step 0, before the first update."""
    transformation = langevin(initial_momentum="stationary", temperature=0.37)
    start = jnp.zeros(2)

    def first(key):
        return langevin(initial_momentum="stationary", key=key).init(start).momentum

    m = np.asarray(jax.vmap(first)(jax.random.split(jax.random.key(5), 20_000)))
    r = -m * np.sqrt(LEARNING_RATE / TEMPERATURE)
    error = np.sqrt(2.0 / r.shape[0])
    assert np.all(np.abs(np.cov(r.T) - np.eye(2)) < SIGMAS * error)
    assert transformation.init(start).momentum.shape == (2,)
