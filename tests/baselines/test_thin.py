"""What is a thin layer over `ctld` must stay one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax import baselines
from tests.helpers import assert_finite, assert_identical, run


def test_sghmc_is_ctld_at_constant_temperature(params, loss):
    ours = run(baselines.sghmc(0.01, 0.02, 0.7, key=3), loss, params, 5)
    theirs = run(ctld_optax.ctld(0.01, 0.02, 0.7, key=3, tempering=None), loss, params, 5)
    assert_identical(ours, theirs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_anneal_sgd_without_noise_is_sgd(momentum, params, loss):
    ours, _ = run(baselines.anneal_sgd(0.01, 0.0, momentum, key=3), loss, params, 50)
    theirs, _ = run(optax.sgd(0.01, momentum=momentum), loss, params, 50)
    assert_identical(ours, theirs)


METHODS = {
    "sgld": lambda: baselines.sgld(0.01, 0.02, key=0),
    "sghmc": lambda: baselines.sghmc(0.01, 0.02, key=0),
    "anneal_sgd": lambda: baselines.anneal_sgd(0.01, 0.02, 0.9, key=0),
}


@pytest.mark.parametrize("method", METHODS)
def test_needs_no_value_and_survives_bad_gradients(method, params):
    tx = METHODS[method]()
    update = jax.jit(tx.update)
    bad = jax.tree.map(lambda p: p.at[(0,) * p.ndim].set(jnp.nan), params)
    _, state = update(bad, tx.init(params), params)
    updates, state = update(params, state, params)
    assert_finite((updates, state))
    assert int(state.skipped) == 1


@pytest.mark.parametrize("method", METHODS)
def test_hands_its_momentum_to_sgd(method, params, loss):
    """As any sampler of the family: `phase_switch` holds one momentum buffer for both phases."""
    tx = ctld_optax.phase_switch(METHODS[method](), optax.sgd(0.01, momentum=0.9), 3)
    state = tx.init(params)
    assert isinstance(state.sampler.momentum, optax.MaskedNode)
    assert_finite(run(tx, loss, params, 6))


def test_a_learning_rate_schedule_leaves_the_gradient_noise_of_anneal_sgd():
    """The variance is that of the gradient, whatever the learning rate."""
    rates = optax.piecewise_constant_schedule(0.3, {1: 0.1})
    tx = baselines.anneal_sgd(rates, 0.6, key=4, decay=0.0)
    flat = jnp.zeros(100_000)
    state = tx.init(flat)
    spreads = []
    for _ in range(3):
        updates, state = tx.update(flat, state, flat)
        spreads.append(np.std(np.asarray(updates)))
    np.testing.assert_allclose(spreads, np.sqrt(0.6) * np.array([0.3, 0.03, 0.03]), rtol=0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be a finite number in"),
        ({"variance": -1.0}, "variance must be a finite number in"),
        ({"momentum": 1.0}, "momentum must be a finite number in"),
        ({"decay": -0.1}, "decay must be a finite number in"),
    ],
)
def test_anneal_sgd_says_what_is_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        baselines.anneal_sgd(**({"learning_rate": 0.1, "variance": 0.3, "key": 0} | arguments))
