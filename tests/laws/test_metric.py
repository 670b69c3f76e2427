"""In a metric the law is that of the target, whatever the metric; and a badly scaled Gaussian is sampled fast.

The exact moments of BAOAB on a harmonic target do not depend on the step, so none of these tests needs a small one.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax._dynamics.langevin import Langevin
from tests.laws.chains import SIGMAS, broken, deviation, effective_size, simulate

CURVATURE = np.geomspace(1.0, 1e4, 6)
ROTATION = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
HESSIAN = (ROTATION * CURVATURE) @ ROTATION.T
TEMPERATURE = 0.37


def loss(theta):
    return 0.5 * theta @ jnp.asarray(HESSIAN, jnp.float32) @ theta


def sampler(metric, **changes):
    return ctld_optax.posterior_sampler(0.3, TEMPERATURE, key=0, tempering=None, preconditioner=metric, **changes)


def worst_deviation(transformation, steps=4_000):
    """Of the variances along the axes of the target, in standard errors, and the gradients an independent sample costs."""
    draws, _ = simulate(transformation, loss, jnp.zeros(6), steps=steps, chains=32, seed=5)
    along = draws.after(0.1).theta.astype(np.float64) @ ROTATION
    cost = max(along[..., 0].size / effective_size(along[..., i] ** 2) for i in range(6))
    return max(deviation(along[..., i] ** 2, TEMPERATURE / CURVATURE[i]) for i in range(6)), cost


def test_the_exact_metric_makes_the_target_round():
    """Condition 10^4, at a learning rate of 0.3: variances exact, and some ten gradients an independent sample."""
    worst, cost = worst_deviation(sampler(ctld_optax.metric_from_hessian(loss, jnp.zeros(6))))
    assert worst < SIGMAS
    assert cost < 15.0


def test_a_wrong_metric_has_the_same_law():
    """Twice and half the curvature by turns: slower, no less exact."""
    metric = (ROTATION * (CURVATURE * np.asarray([2.0, 0.5] * 3))) @ ROTATION.T
    worst, _ = worst_deviation(sampler(ctld_optax.FixedMetric(jnp.asarray(metric, jnp.float32))), steps=8_000)
    assert worst < SIGMAS


class NoiseOfTheParameters(Langevin):
    """Noise as of unit mass in the parameters, not in the coordinates of the metric."""

    def thermalize(self, state, value, grads):
        new = super().thermalize(state, value, grads)
        noise = new.momentum - state.momentum
        return new._replace(momentum=state.momentum + state.coordinates.outward(noise))


class ForgottenOnTheWayOut(Langevin):
    def displacement(self, count, momentum, like, *rest):
        whitened = jnp.linalg.solve(jnp.asarray(ctld_optax.FixedMetric(jnp.asarray(HESSIAN)).init(momentum).factor), momentum)
        return super().displacement(count, 0.05 * whitened, like, *rest)


@pytest.mark.parametrize("kernel", [NoiseOfTheParameters, ForgottenOnTheWayOut])
def test_wrong_kernels_fail(kernel):
    metric = ctld_optax.metric_from_hessian(loss, jnp.zeros(6))
    worst, _ = worst_deviation(broken(sampler(metric), kernel_class=kernel))
    assert not worst < SIGMAS


def test_the_mass_for_its_inverse_fails():
    mass = ctld_optax.metric_from_hessian(loss, jnp.zeros(6)).mass
    with np.errstate(invalid="ignore", over="ignore"):  # it runs away
        worst, _ = worst_deviation(sampler(ctld_optax.FixedMetric(jnp.linalg.inv(mass))), steps=1_000)
    assert not worst < SIGMAS
