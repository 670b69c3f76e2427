"""Constant temperature on a Gaussian target: the recursion is linear, so its law is known exactly, step size and all.

With y_t = (theta_t, m_{t-1}, xi_{t-1}), A the Hessian of the loss, l the learning rate, sigma the scale of the noise and w the
share of a variate that enters a step later (0 in Euler's order, 1/2 in BAOAB's),

    y_{t+1} = F y_t + G xi_t,   F = [[1 - l A, -l mu, l w sigma], [A, mu, -w sigma], [0, 0, 0]],
                                G = [[(1 - w) l sigma], [-(1 - w) sigma], [1]],

whose stationary covariance solves C = F C F^T + G G^T, and whose autocovariance at lag k is F^k C. The stiffest direction has
l U'' = 1.4; the limit of stability is 3.7.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import ctld_optax
from ctld_optax._arrays import noise as sources
from ctld_optax._dynamics.integrators import BAOAB, INTEGRATORS
from ctld_optax._dynamics.langevin import Langevin
from tests.laws.chains import SIGMAS, broken, deviation, simulate

LEARNING_RATE, TEMPERATURE, MOMENTUM = 0.6, 0.37, 0.83
HESSIAN = np.array([[1.9, 0.8], [0.8, 0.7]])
LAGS = (1, 5, 20)


def loss(theta):
    return 0.5 * theta @ jnp.asarray(HESSIAN, jnp.float32) @ theta + 17.0  # an offset of the loss changes nothing


def langevin(**changes):
    settings = {"learning_rate": LEARNING_RATE, "temperature": TEMPERATURE, "momentum": MOMENTUM, "key": 0, "tempering": None}
    return ctld_optax.ctld(**(settings | changes))


def exact_law(momentum=MOMENTUM, integrator="baoab"):
    """<theta theta^T>, <r r^T>, and <theta_{t+k} theta_t^T> at the lags."""
    eye, none, later = np.eye(2), np.zeros((2, 2)), INTEGRATORS[integrator].later
    scale = np.sqrt(2 * (1 - momentum) * TEMPERATURE / LEARNING_RATE) * eye
    forward = np.block(
        [
            [eye - LEARNING_RATE * HESSIAN, -LEARNING_RATE * momentum * eye, LEARNING_RATE * later * scale],
            [HESSIAN, momentum * eye, -later * scale],
            [none, none, none],
        ]
    )
    noise = np.vstack([(1 - later) * LEARNING_RATE * scale, -(1 - later) * scale, eye])
    covariance = scipy.linalg.solve_discrete_lyapunov(forward, noise @ noise.T)
    lagged = [(np.linalg.matrix_power(forward, lag) @ covariance)[:2, :2] for lag in LAGS]
    return covariance[:2, :2], covariance[2:4, 2:4] * LEARNING_RATE / TEMPERATURE, np.stack(lagged)


def worst_deviation(transformation, *, momentum=MOMENTUM, integrator="baoab", steps=8_000, chains=64, start=(0.9, -0.4)):
    """How far the run is from the exact law, in standard errors: second moments and autocovariances."""
    draws, _ = simulate(transformation, loss, jnp.asarray(start, jnp.float32), steps=steps, chains=chains, seed=11)
    draws = draws.after(0.05)
    r = -draws.momentum * np.sqrt(LEARNING_RATE / TEMPERATURE)
    positions, momenta, lagged = exact_law(momentum, integrator)
    longest = max(LAGS)
    now = draws.theta[:, :-longest]
    later = np.stack([draws.theta[:, lag : lag - longest or None] for lag in LAGS], axis=2)
    return {
        "theta theta": deviation(draws.theta[..., :, None] * draws.theta[..., None, :], positions),
        "r r": deviation(r[..., :, None] * r[..., None, :], momenta),
        "autocovariance": deviation(later[..., :, None] * now[:, :, None, None, :], lagged),
        "kinetic energy": deviation(draws.kinetic_energy, TEMPERATURE * np.trace(momenta) / 2),
    }


def test_the_exact_law_of_baoab_is_that_of_the_differential_equation():
    """At any stable step; Euler's is not, and the closed forms of `integrators` are right for both."""
    curvature, directions = np.linalg.eigh(HESSIAN)
    for momentum in (0.0, 0.5, MOMENTUM):
        for name, integrator in INTEGRATORS.items():
            positions, momenta, _ = exact_law(momentum, name)
            stiffness = LEARNING_RATE * curvature
            variance = integrator.variance(stiffness, momentum)
            heat = integrator.kinetic_temperature(momentum, stiffness)
            np.testing.assert_allclose(
                directions.T @ positions @ directions, np.diag(variance * TEMPERATURE / curvature), atol=1e-9
            )
            np.testing.assert_allclose(directions.T @ momenta @ directions, np.diag(heat), atol=1e-9)
            exact = np.allclose(variance, 1.0, atol=1e-9) and np.allclose(heat, 1.0, atol=1e-9)
            assert exact == (name == "baoab")


@pytest.mark.parametrize("noise", sources.SOURCES)
def test_second_moments_and_autocorrelation_are_those_of_the_discrete_recursion(noise):
    """Of every source: they depend on the mean and the variance of the noise alone."""
    found = worst_deviation(langevin(noise=noise))
    assert max(found.values()) < SIGMAS, found


def test_euler_has_its_own_discrete_law():
    found = worst_deviation(langevin(integrator="euler"), integrator="euler")
    assert max(found.values()) < SIGMAS, found
    assert max(worst_deviation(langevin(integrator="euler"), steps=2_000).values()) > SIGMAS


FOURTH_CUMULANT = {"gaussian": 0.0, "irwin_hall": 0.0, "three_point": 0.0, "rademacher": -2.0}


def excess_kurtosis(noise):
    """Of theta in one dimension, measured over independent coordinates, and by theory from the noise's fourth cumulant.

    theta_t = sum_k c_k xi_{t-k}, and cumulants add up: kappa_4(theta) = kappa_4(xi) sum_k c_k^4. Small momentum and a large
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
    half = 0.5 * np.sqrt(2 * (1 - momentum) * TEMPERATURE / learning_rate)
    forward = np.array(
        [[1 - learning_rate, -learning_rate * momentum, learning_rate * half], [1.0, momentum, -half], [0, 0, 0]]
    )
    kick = np.array([half * learning_rate, -half, 1.0])
    weights = np.array([np.linalg.matrix_power(forward, lag) @ kick for lag in range(steps)])[:, 0]
    expected = FOURTH_CUMULANT[noise] * np.sum(weights**4) / np.sum(weights**2) ** 2
    return np.mean(theta**4) / np.mean(theta**2) ** 2 - 3.0, expected


@pytest.mark.parametrize("noise", sources.SOURCES)
def test_kurtosis_is_what_the_fourth_moment_of_the_source_makes_it(noise):
    measured, expected = excess_kurtosis(noise)
    error = np.sqrt(24.0 / 2**20)  # of the sample kurtosis of independent, nearly Gaussian variates
    assert abs(measured - expected) < SIGMAS * error
    # Negative control: the check sees the coin's missing fourth moment.
    assert (abs(measured) > 10.0 * error) == (noise == "rademacher")


class Frozen(Langevin):
    def displacement(self, count, momentum, like, *rest):
        return jax.tree.map(jnp.zeros_like, like)


class HalfStep(Langevin):
    def displacement(self, count, momentum, like, *rest):
        return jax.tree.map(lambda update: 0.5 * update, super().displacement(count, momentum, like, *rest))


class AveragedGradients(Langevin):
    def accelerate(self, grads, momentum, kept):
        return super().accelerate(jax.tree.map(lambda g: (1.0 - self.decay) * g, grads), momentum, kept)


class RestForgotten(Langevin):
    """The second half drift's noise left out."""

    def thermalize(self, state, value, grads):
        return super().thermalize(state._replace(noise_variance=jnp.zeros_like(state.noise_variance)), value, grads)


class RestOfAnother(Langevin):
    """The rest of a variate that was never drawn."""

    def thermalize(self, state, value, grads):
        return super().thermalize(state._replace(noise_words=state.noise_words + 1), value, grads)


class KineticEnergyBesideTheParameters(Langevin):
    """K of the momentum half a kick earlier."""

    def thermalize(self, state, value, grads):
        new = super().thermalize(state, value, grads)
        earlier = jax.tree.map(lambda m, g: m - 0.5 * g, new.momentum, grads)
        squares = sum(jnp.sum(jnp.square(m)) for m in jax.tree.leaves(earlier))
        return new._replace(kinetic_energy=0.5 * self.learning_rate(state.count) * squares)


class KineticEnergyWithoutItsFactor(Langevin):
    """As if m were the momentum before friction and noise, whose K has 1 + mu in place of 2."""

    def thermalize(self, state, value, grads):
        new = super().thermalize(state, value, grads)
        return new._replace(kinetic_energy=new.kinetic_energy * 2.0 / (1.0 + self.decay))


WRONG = {
    "noise without the 2": {"source": lambda word: sources.gaussian(word) / np.float32(np.sqrt(2.0))},
    "temperature for its root": {"temperature": lambda count: TEMPERATURE**2},
    "root for the temperature": {"temperature": lambda count: TEMPERATURE**0.5},
    "noise shared by the parameters": {
        "source": lambda word: jnp.broadcast_to(sources.gaussian(word.ravel()[:1]), word.shape),
    },
    "noise with a 4 for the 2": {"source": lambda word: sources.gaussian(word) * np.float32(np.sqrt(2.0))},
    "frozen position": {"kernel_class": Frozen},
    "half a step": {"kernel_class": HalfStep},
    "averaged gradients": {"kernel_class": AveragedGradients},
    "the rest of the noise forgotten": {"kernel_class": RestForgotten},
    "the rest of another noise": {"kernel_class": RestOfAnother},
    "a third of a variate later": {"integrator": dataclasses.replace(BAOAB, later=1 / 3)},
    "kinetic energy beside the parameters": {"kernel_class": KineticEnergyBesideTheParameters},
    "kinetic energy without its factor": {"kernel_class": KineticEnergyWithoutItsFactor},
}


FAST = (
    "noise without the 2",
    "temperature for its root",
    "the rest of the noise forgotten",
    "kinetic energy without its factor",
)


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
