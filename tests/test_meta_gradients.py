"""Gradients through the steps of a run, with respect to learning rate and temperature, against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax

START = {"w": jnp.linspace(-1.0, 1.0, 3), "b": jnp.ones(())}
# Its window is one point, so that alpha has a say from the first step on.
TEMPERING = ctld_optax.PolynomialTempering(delta=0.0)


def sampler(learning_rate, temperature, **changes):
    return ctld_optax.ctld(learning_rate, temperature, key=0, **{"tempering": TEMPERING} | changes)


def onto(make):
    return lambda rate, temperature: ctld_optax.phase_switch(sampler(rate, temperature), make(rate), 20)


MAKERS = {
    "defaults": sampler,
    "hamiltonian, adaptive force": lambda *rates: sampler(
        *rates, coupling="hamiltonian", bias=ctld_optax.AdaptiveBiasingForce(), alpha_step_size=0.05
    ),
    "potential, geometric": lambda *rates: sampler(
        *rates, coupling="potential", tempering=ctld_optax.GeometricTempering(delta=0.0, strength=0.9), alpha_step_size=0.05
    ),
    "kinetic": lambda *rates: sampler(*rates, coupling="kinetic"),
    "in a dense metric": lambda *rates: sampler(*rates, preconditioner=ctld_optax.FixedMetric(jnp.eye(4) + 0.1)),
    "in a scale a layer": lambda *rates: sampler(*rates, preconditioner=ctld_optax.LayerScale(power=1.0, decay=0.9)),
    "santa": lambda *rates: ctld_optax.baselines.santa(*rates, key=0, exploration_steps=20, eps=0.1),
    "onto adam from a second moment": lambda rate, temperature: ctld_optax.phase_switch(
        sampler(0.1 * rate, temperature, preconditioner=ctld_optax.SecondMoment(decay=0.9)), optax.adam(rate), 20
    ),
    "estimated noise": lambda *rates: sampler(*rates, gradient_noise=ctld_optax.RunningNoise(0.9)),
    "in a second moment": lambda *rates: sampler(*rates, preconditioner=ctld_optax.SecondMoment(decay=0.9)),
    "onto sgd": onto(lambda rate: optax.sgd(rate, momentum=0.9)),
    "onto adam": onto(optax.adam),
}


def loss_fn(params):
    return jnp.sum(jnp.square(params["w"]) + 0.1 * params["w"] ** 4) + jnp.square(params["b"])


def stepper(tx):
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    return step


def summary(params):
    return params["b"] + jnp.sum(params["w"] * jnp.arange(1.0, 4.0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_with_respect_to_the_hyperparameters_are_right(name):
    def end(rates):
        tx, params = MAKERS[name](rates[0], rates[1]), jax.tree.map(lambda p: p.astype(jnp.float64), START)
        return summary(jax.lax.scan(stepper(tx), (params, tx.init(params)), length=30)[0][0])

    rates, steps = jnp.asarray([0.05, 0.1]), 1e-6 * np.eye(2)
    gradient = jax.jit(jax.grad(end))(rates)
    ends = jax.jit(end)
    differences = [(ends(rates + step) - ends(rates - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient, differences, rtol=1e-4)
    assert np.all(np.abs(gradient) > 1e-3)


def test_without_jit_the_gradient_is_finite_and_the_same():
    def end(rates, *, wrap):
        tx = sampler(rates[0], rates[1])
        carry, step = (START, tx.init(START)), wrap(stepper(tx))
        for _ in range(3):
            carry, _ = step(carry, None)
        return summary(carry[0])

    rates = jnp.asarray([0.05, 0.1])
    eager, compiled = (jax.grad(lambda rates, wrap=wrap: end(rates, wrap=wrap))(rates) for wrap in (lambda f: f, jax.jit))
    np.testing.assert_allclose(eager, compiled, rtol=1e-3)
    assert np.all(eager != 0.0)
