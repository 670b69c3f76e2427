"""Learning rates and temperatures per layer: the same law in another metric, the same noise by another number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax import PerLayer, diagnostics
from ctld_optax._dynamics.layers import as_knob, at
from tests.helpers import assert_identical, run

PARAMS = {"a": jnp.asarray([[0.5, -0.3], [0.2, 0.9]]), "b": {"w": jnp.asarray([0.7, 0.1]), "z": jnp.asarray(-0.4)}}
RATES = {"a": 0.02, "b": {"w": 0.05, "z": 0.1}}
STEPS = 30


def loss_fn(params):
    """Every layer acts on every other."""
    parts = [jnp.sum(leaf) for leaf in jax.tree.leaves(params)]
    return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)) + 0.1 * sum(parts) ** 2


def apart(params):
    return 0.5 * sum(jnp.sum((leaf - 1.0) ** 2) for leaf in jax.tree.leaves(params))


def agree(ours, theirs, rtol=1e-4):
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=rtol)


def test_cold_each_layer_is_sgd_to_the_bit():
    falling = optax.linear_schedule(0.1, 0.01, 20)
    ours, _ = run(ctld_optax.ctld(PerLayer({"a": 0.02, "b": falling}), 0.0, key=0), loss_fn, PARAMS, STEPS)
    groups = {"a": optax.sgd(0.02, 0.9), "b": optax.sgd(falling, 0.9)}
    theirs, _ = run(optax.partition(groups, {"a": "a", "b": "b"}), loss_fn, PARAMS, STEPS)
    assert_identical(ours, theirs)


@pytest.mark.parametrize("coupling", ["standardized", "kinetic", "hamiltonian", "potential"])
def test_rates_per_layer_are_a_metric(coupling):
    """Of mass 1 / rate: alpha, the kinetic energy and the path are the same, so that the law is that of the metric."""

    def end(rates, mass):
        metric = None if mass is None else ctld_optax.FixedMetric(mass)
        tx = ctld_optax.ctld(rates, 0.02, key=3, coupling=coupling, preconditioner=metric, alpha_step_size=0.1)
        params, state = run(tx, loss_fn, PARAMS, STEPS)
        return params, diagnostics.snapshot(state)

    ours = end(PerLayer(RATES), None)
    agree(ours, end(1.0, jax.tree.map(lambda rate: 1.0 / rate, RATES)))
    with pytest.raises(AssertionError):
        agree(ours, end(1.0, {"a": 50.0, "b": {"w": 20.0, "z": 9.0}}))


def test_one_number_for_all_is_that_number():
    plain, _ = run(ctld_optax.baselines.sghmc(0.05, 0.1, key=0), loss_fn, PARAMS, STEPS)
    rule = PerLayer({"a": 0.05, "b": 0.05})
    layered, state = run(ctld_optax.baselines.sghmc(rule, PerLayer(lambda _: 0.1), key=0), loss_fn, PARAMS, STEPS)
    assert_identical(layered, plain)
    assert state.noise_variance.shape == (3,)


def test_a_function_of_the_name_is_that_prefix():
    names = []

    def rule(name):
        names.append(name)
        return {"a": 0.02, "b/w": 0.05, "b/z": 0.1}[name]

    by_name = run(ctld_optax.ctld(PerLayer(rule), 0.1, key=0), loss_fn, PARAMS, STEPS)
    assert_identical(by_name, run(ctld_optax.ctld(PerLayer(RATES), 0.1, key=0), loss_fn, PARAMS, STEPS))
    assert set(names) == {"a", "b/w", "b/z"}


def test_a_schedule_that_several_leaves_share_is_looked_at_once():
    calls = []

    def schedule(count):
        calls.append(count)
        return 0.1 / (1.0 + count)

    knob = as_knob("learning_rate", PerLayer({"a": 1.0, "b": schedule}), minimum_open=True)
    calls.clear()
    np.testing.assert_allclose(at(knob, jnp.int32(1), PARAMS), [1.0, 0.05, 0.05], rtol=1e-6)
    assert len(calls) == 1


def test_a_layer_without_temperature_is_sgd_among_hot_ones():
    heat = PerLayer({"a": 0.0, "b": 0.1})
    ours, _ = run(ctld_optax.ctld(0.05, heat, key=0), apart, PARAMS, STEPS)
    theirs, _ = run(optax.sgd(0.05, 0.9), apart, PARAMS, STEPS)
    assert_identical(ours["a"], theirs["a"])
    assert not np.allclose(ours["b"]["w"], theirs["b"]["w"], atol=1e-3)


def test_layers_are_as_warm_as_they_are_told():
    """<m^2> is T / l, of 4,000 entries a layer: a standard error of 2.2 %, half a per cent over 20 looks."""
    params = {"a": jnp.zeros(4_000), "b": jnp.zeros(4_000)}
    rates, heats = {"a": 0.01, "b": 0.04}, {"a": 0.3, "b": 0.02}
    tx = ctld_optax.baselines.sghmc(PerLayer(rates), PerLayer(heats), key=0, initial_momentum="stationary")

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), jax.tree.map(lambda m: jnp.mean(m**2), state.momentum)

    begun = tx.init(params)
    for name, momentum in begun.momentum.items():
        np.testing.assert_allclose(jnp.mean(momentum**2) * rates[name] / heats[name], 1.0, atol=0.1)
    _, squares = jax.lax.scan(step, (params, begun), length=400)
    for name, square in squares.items():
        np.testing.assert_allclose(square[::20].mean() * rates[name] / heats[name], 1.0, atol=0.03)
    with pytest.raises(AssertionError):  # as warm as the other one is told
        np.testing.assert_allclose(square[::20].mean() * rates["b"] / heats["a"], 1.0, atol=0.03)


def test_a_rise_of_one_layers_rate_heats_nothing():
    rise = lambda count: jnp.where(count < 10, 0.001, 0.1)
    tx = ctld_optax.ctld(PerLayer({"a": 0.01, "b": rise}), 1e-9, key=0, tempering=None)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    state, kept = tx.init(PARAMS), None
    for number in range(11):
        kept, (_, state) = state.momentum, tx.update(grads, state, PARAMS)
        assert state.learning_rate.shape == (3,), number
    change = jax.tree.map(lambda new, old: jnp.mean((new - 1.0) / old), state.momentum, kept)
    agree(change, {"a": 0.9, "b": {"w": 0.09, "z": 0.09}}, rtol=1e-3)


@pytest.mark.parametrize("coupling", ["hamiltonian", "potential", ctld_optax.Hamiltonian()])
def test_exact_couplings_refuse_a_temperature_per_layer(coupling):
    heat = PerLayer(lambda name: 0.1)
    with pytest.raises(ValueError, match="temperature must be one for all layers beside the coupling"):
        ctld_optax.ctld(0.1, heat, key=0, coupling=coupling)
    ctld_optax.ctld(0.1, heat, key=0, coupling=coupling, tempering=None)


@pytest.mark.parametrize(
    ("rule", "error", "words"),
    [
        ({"a": 0.1}, ValueError, "learning_rate must be a PerLayer of a prefix of the parameters"),
        ({"a": 0.1, "b": {"w": 0.1}}, ValueError, "learning_rate must be a PerLayer of a prefix"),
        ({"a": 0.1, "b": {"w": 0.0, "z": 0.1}}, ValueError, r"learning_rate of b/w must be a finite number in \(0, inf\)"),
        ({"a": "fast", "b": 0.1}, TypeError, "rule must be a pytree prefix .*; got 'fast'"),
        ({"a": jnp.ones(2), "b": 0.1}, ValueError, "learning_rate of a must be one number"),
        ({"a": lambda count: -1.0, "b": 0.1}, ValueError, "learning_rate of a, at step 0 of its schedule,"),
        (lambda name: None, TypeError, "learning_rate of a must be a number, got None"),
        (lambda name: -0.1, ValueError, "learning_rate of a must be a finite number"),
        ({}, TypeError, "rule must be a pytree prefix"),
        (None, TypeError, "rule must be a pytree prefix"),
    ],
)
def test_a_rule_that_does_not_fit_is_told(rule, error, words):
    with pytest.raises(error, match=words):
        ctld_optax.ctld(PerLayer(rule), 0.1, key=0).init(PARAMS)


def test_a_bare_pytree_is_told():
    with pytest.raises(TypeError, match=r"learning_rate must be .*PerLayer.*Write learning_rate=PerLayer\(...\)"):
        ctld_optax.ctld(RATES, 0.1, key=0)


def test_onto_groups_each_takes_its_own_momentum():
    """The first step after the switch continues the last, and where a group is faster only a thermal share is taken."""
    sampler = ctld_optax.ctld(PerLayer({"a": 0.02, "b": 0.05}), 0.1, 0.9, key=0)
    labels = {"a": "a", "b": "b"}
    onto = optax.partition({"a": optax.sgd(0.08, 0.9), "b": optax.sgd(0.05, 0.9)}, labels)
    params, alone = run(sampler, loss_fn, PARAMS, 5)
    grads = jax.grad(loss_fn)(params)
    after, _ = run(ctld_optax.phase_switch(sampler, onto, 5), loss_fn, PARAMS, 6)
    share = {"a": (0.08, 0.5), "b": (0.05, 1.0)}
    for name, (rate, kept) in share.items():
        expected = jax.tree.map(
            lambda p, g, m, rate=rate, kept=kept: p - rate * (g + 0.9 * kept * m),
            params[name], grads[name], alone.momentum[name],
        )  # fmt: skip
        agree(after[name], expected, rtol=1e-6)


def test_onto_one_sgd_with_a_shared_buffer_each_layer_keeps_its_share():
    sampler = ctld_optax.ctld(PerLayer({"a": 0.1, "b": 0.025}), 0.1, 0.9, key=0)
    tx = ctld_optax.phase_switch(sampler, optax.sgd(0.1, 0.9), 5)
    assert isinstance(tx.init(PARAMS).sampler.momentum, optax.MaskedNode)
    params, alone = run(sampler, loss_fn, PARAMS, 5)
    grads = jax.grad(loss_fn)(params)
    after, _ = run(tx, loss_fn, PARAMS, 6)
    for name, kept in (("a", 1.0), ("b", 0.5)):
        expected = jax.tree.map(
            lambda p, g, m, kept=kept: p - 0.1 * (g + 0.9 * kept * m), params[name], grads[name], alone.momentum[name]
        )
        agree(after[name], expected, rtol=1e-6)


def test_onto_adam_each_layer_continues_at_its_own_rate():
    """In Adam's metric a layer at the rate of its own Adam keeps all of its momentum, one at a quarter of it a half."""
    sampler = ctld_optax.ctld(
        PerLayer({"a": 1e-3, "b": 4e-3}), 1e-3, 0.9, key=0, preconditioner=ctld_optax.SecondMoment(), tempering=None
    )
    half, equal = (ctld_optax.phase_switch(sampler, optax.adam(rate), 20) for rate in (4e-2, 1e-2))
    ends = [run(tx, loss_fn, PARAMS, 21)[1].optimizer[0].mu for tx in (half, equal)]
    params, _ = run(sampler, loss_fn, PARAMS, 20)
    fresh = jax.tree.map(lambda g: 0.1 * g, jax.grad(loss_fn)(params))
    taken = [jax.tree.map(jnp.subtract, mu, fresh) for mu in ends]
    agree(taken[0]["b"], taken[1]["b"], rtol=1e-5)
    agree(taken[0]["a"], jax.tree.map(lambda mu: 0.5 * mu, taken[1]["a"]), rtol=1e-5)


def test_a_report_does_not_ask_for_one_temperature():
    tx = ctld_optax.ctld(PerLayer(RATES), PerLayer({"a": 0.1, "b": 0.2}), key=0)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), (value, diagnostics.snapshot(state))

    _, (value, trajectory) = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=400)
    report = diagnostics.report(trajectory, tx, value=value, num_params=7)
    assert any("one temperature for all layers" in line for line in report.unchecked)
