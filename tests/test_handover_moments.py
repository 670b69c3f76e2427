"""From a second-moment metric to Adam and its family: the optimizer goes on where the sampler is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import ctld_optax
from ctld_optax._handover import take_over
from ctld_optax._probe import averages
from tests.helpers import assert_identical, run

PARAMS = {"w": jnp.asarray([[1.2, 0.5, -0.3], [0.4, 2.0, 3.0]]), "b": jnp.asarray([2.0])}
B1, B2, RATE, STEPS = 0.9, 0.999, 3e-3, 60
METRIC = ctld_optax.SecondMoment(decay=B2)


def loss_fn(params):
    curvature = jnp.geomspace(1.0, 1e3, 6).reshape(2, 3)
    return 0.5 * jnp.sum(curvature * (params["w"] - 1.0) ** 2) + jnp.sum((params["b"] - 1.0) ** 4)


def sampler(temperature=0.0, rate=RATE, **changes):
    settings = {"tempering": None, "preconditioner": METRIC} | changes
    return ctld_optax.ctld((1.0 - B1) * rate, temperature, B1, key=0, **settings)


def agree(ours, theirs, rtol):
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=rtol * np.abs(other).max())


@functools.cache
def sampled(temperature, steps=STEPS):
    """Parameters, gradient and state after some steps of the sampler."""
    tx = sampler(temperature)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))((PARAMS, tx.init(PARAMS)))
    return params, jax.grad(loss_fn)(params), state


def handed_over(optimizer, temperature):
    """The state with which the optimizer begins."""
    params, _, state = sampled(temperature)
    return take_over(
        optax.with_extra_args_support(optimizer), PARAMS, optimizer.init(params), state, sampler(temperature).kernel
    )


def test_cold_the_run_is_one_of_adamw():
    """Its state at the switch is that of an AdamW that made all the steps, but for the bias correction of its first moment."""
    adamw = optax.adamw(RATE, B1, B2, weight_decay=0.1)
    switched = ctld_optax.phase_switch(sampler(), adamw, STEPS)
    ours, state = run(switched, loss_fn, PARAMS, STEPS + 20)

    uncorrected = optax.chain(optax.adam(RATE, B1, B2), optax.scale_by_schedule(lambda count: 1.0 - B1 ** (count + 1)))
    params, other = run(uncorrected, loss_fn, PARAMS, STEPS)
    other = (other[0][0], *adamw.init(params)[1:])
    for _ in range(20):
        updates, other = adamw.update(jax.grad(loss_fn)(params), other, params)
        params = optax.apply_updates(params, updates)
    agree(ours, params, 1e-6)
    assert int(state.optimizer[0].count) == int(other[0].count) == STEPS + 20
    agree(state.optimizer[0].nu, other[0].nu, 1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_warm_the_first_step_continues_the_last(clip):
    """With equal learning rates: from (1 - b1) m_z / s, with nu and its count those of the metric."""
    adam = optax.adam(RATE, B1, B2)
    optimizer = optax.chain(optax.clip_by_global_norm(1e6), adam) if clip else adam
    (params, grads, state), count = sampled(1e-4), STEPS + 1
    updates, _ = optimizer.update(grads, handed_over(optimizer, 1e-4), params)
    scale = METRIC.scale_of(state.coordinates.num_seen, jnp.float32(1e-4))

    def expected(g, m, v):
        mu, nu = B1 * (1.0 - B1) * m / scale(v) + (1.0 - B1) * g, B2 * v + (1.0 - B2) * g**2
        return -RATE * mu / (1.0 - B1**count) / (jnp.sqrt(nu / (1.0 - B2**count)) + 1e-8)

    agree(updates, jax.tree.map(expected, grads, state.momentum, state.coordinates.nu), 1e-5)


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_leaves_of_fewer_dimensions_than_the_first_are_taken_over_too(order):
    """A matrix before its bias and a scalar: each goes on as in a tree of its own."""
    leaves = [PARAMS["w"], PARAMS["b"], jnp.float32(1.5)]
    tx = sampler(1e-4)

    def begun(params):
        state = tx.init(params)
        for _ in range(3):
            _, state = tx.update(params, state, params)
        adam = optax.adam(RATE, B1, B2)
        return take_over(optax.with_extra_args_support(adam), params, adam.init(params), state, tx.kernel)[0], state

    (filled, state) = begun(dict(zip(order, leaves, strict=True)))
    scale = METRIC.scale_of(state.coordinates.num_seen, jnp.float32(1e-4))
    means = jax.tree.map(lambda m, v: (1.0 - B1) * m / scale(v), state.momentum, state.coordinates.nu)
    agree(filled.mu, means, 1e-5)
    agree(filled.nu, state.coordinates.nu, 1e-5)


def test_other_decays_keep_what_is_estimated():
    (*_, state), adam = sampled(1e-4), handed_over(optax.adam(RATE, 0.8, 0.99), 1e-4)[0]
    same = handed_over(optax.adam(RATE, B1, B2), 1e-4)[0]
    assert int(adam.count) == int(state.count) == STEPS
    for found, kept, decays in ((adam.nu, same.nu, (0.99, B2)), (adam.mu, same.mu, (0.8, B1))):
        estimates = [jax.tree.map(lambda x, d=d: x / (1.0 - d**STEPS), x) for x, d in zip((found, kept), decays, strict=True)]
        agree(*estimates, 1e-5)
    agree(same.nu, state.coordinates.nu, 1e-6)


def test_a_larger_rate_takes_over_the_share_that_is_thermal():
    equal, smaller, larger = (handed_over(optax.adam(factor * RATE, B1, B2), 1e-4)[0].mu for factor in (1.0, 0.25, 4.0))
    agree(smaller, equal, 1e-6)
    agree(larger, jax.tree.map(lambda mu: 0.5 * mu, equal), 1e-5)
    assert_identical(handed_over(optax.adam(RATE), 0.0)[0].mu, handed_over(optax.adam(4.0 * RATE), 0.0)[0].mu)


UNDERSTOOD = {
    "adam": (optax.adam(RATE), [(0.9, 0.999)]),
    "nadam": (optax.nadam(RATE, 0.8), [(0.8, 0.999)]),
    "adam, narrow first moment": (optax.adam(RATE, 0.5, mu_dtype=jnp.bfloat16), [(0.5, 0.999)]),
    "adamw, injected": (optax.inject_hyperparams(optax.adamw)(RATE), [(0.9, 0.999)]),
    "behind a clip": (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)), [(0.9, 0.999)]),
    "rmsprop": (optax.rmsprop(RATE, 0.95), [(None, 0.95)]),
    "lion": (optax.lion(RATE), [(0.99, None)]),
    "muon": (contrib.muon(RATE), [(0.9, 0.999), (0.95, None)]),
    "rmsprop, centered": (optax.rmsprop(RATE, centered=True), [None]),  # mu is no direction there
    "behind a scale": (optax.chain(optax.normalize_by_update_norm(), optax.adam(RATE)), [None]),
    "adabelief": (optax.adabelief(RATE), [None]),
    "amsgrad": (optax.amsgrad(RATE), [None]),
    "adamax": (optax.adamax(RATE), [None]),
    "novograd": (optax.novograd(RATE), [None]),
    "sgd": (optax.sgd(RATE, 0.9), []),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_what_a_state_remembers_is_found_out(name):
    optimizer, expected = UNDERSTOOD[name]
    found = averages(optax.with_extra_args_support(optimizer), PARAMS)
    assert [node is None for node in found] == [node is None for node in expected]
    for node, decays in zip(found, expected, strict=True):
        for ours, theirs in zip(node or (), decays or (), strict=True):
            assert ours is theirs is None or abs(ours - theirs) < 1e-7


@pytest.mark.parametrize("name", [name for name, (_, expected) in UNDERSTOOD.items() if expected in ([], [None])])
def test_what_is_not_understood_starts_fresh(name):
    optimizer, _ = UNDERSTOOD[name]
    assert_identical(handed_over(optimizer, 1e-4), optimizer.init(sampled(1e-4)[0]))


def test_without_a_step_there_is_nothing_to_hand_over():
    adam = optax.adam(RATE)
    ours, _ = run(ctld_optax.phase_switch(sampler(), adam, 0), loss_fn, PARAMS, 3)
    agree(ours, run(adam, loss_fn, PARAMS, 3)[0], 1e-6)
