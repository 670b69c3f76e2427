"""Two phases, one transformation: the switch, the hand-over, and the shared momentum."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._dynamics.coupling import COUPLINGS
from ctld_optax._handover import hand_over_momentum
from ctld_optax._probe import heavy_ball_decay, sums_gradients
from tests import versions
from tests.helpers import assert_finite, assert_identical, plain, run, signature, stepper

STEPS = 6


@pytest.fixture(scope="module")
def params():
    """Two leaves: what is shown here does not depend on how many there are, the time to compile does."""
    return {"x": jnp.linspace(-1.0, 2.0, 5), "y": jnp.asarray(0.7, jnp.float32)}


@pytest.fixture(scope="module")
def loss():
    return lambda p: jnp.sum(jnp.square(p["x"] ** 2 - p["y"])) + jnp.square(p["y"])


def build_sampler(**changes):
    return ctld_optax.ctld(**({"learning_rate": 0.01, "temperature": 0.01, "key": 0} | changes))


@pytest.fixture(scope="module")
def sampled(params, loss):
    """Parameters and the sampler's state after the sampling phase, without `phase_switch`."""
    return run(build_sampler(), loss, params, STEPS)


def is_shared(state):
    return isinstance(state.sampler.momentum, optax.MaskedNode)


OPTIMIZERS = {
    "sgd": (lambda: optax.sgd(0.02, momentum=0.8), True),
    "sgd, same figures": (lambda: optax.sgd(0.01, momentum=0.9), True),
    "sgd, schedule": (lambda: optax.sgd(optax.linear_schedule(0.05, 0.001, 10), momentum=0.8), True),
    "sgd, decay 0": (lambda: optax.sgd(0.02, momentum=0.0), True),
    "nesterov": (lambda: optax.sgd(0.02, momentum=0.8, nesterov=True), False),
    "without momentum": (lambda: optax.sgd(0.02), False),
    "adam": (lambda: optax.adam(0.01), False),
    "clipped": (lambda: optax.chain(optax.clip(0.1), optax.sgd(0.02, momentum=0.8)), False),
    "clipped after the trace": (lambda: optax.chain(optax.trace(0.8), optax.clip(0.1), optax.scale(-0.02)), True),
    "decayed after the trace": (
        lambda: optax.chain(optax.trace(0.8), optax.add_decayed_weights(0.1), optax.scale(-0.02)),
        True,
    ),
    "injected": (lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.02, momentum=0.8), False),
}


def kept(optimizer_rate):
    """What is taken over of a momentum that is thermal at the sampler's learning rate, 0.01."""
    return min(1.0, np.sqrt(0.01 / optimizer_rate))


def thermal(optimizer_state, sampler_state, params=None, rate=0.02):
    """The hand-over by hand: every trace from the momentum, which is scaled where the learning rate rises."""
    sampler_state = ctld_optax.diagnostics.ctld_state(sampler_state)
    momentum = jax.tree.map(lambda m: kept(rate) * m, sampler_state.momentum)
    return hand_over_momentum(optimizer_state, sampler_state._replace(momentum=momentum))


# Else 0.02. Nesterov's moves the parameters by decay times the trace.
RATES = {"sgd, same figures": 0.01, "sgd, schedule": 0.05, "nesterov": 0.8 * 0.02}


def optimize_by_hand(optimizer, loss, sampled, num_steps, handover=thermal):
    """The second phase from the end of the first, without `phase_switch`: (parameters, state) after each step."""
    params, sampler_state = sampled
    state = handover(optimizer.init(params), sampler_state, params)
    step = stepper(optax.with_extra_args_support(optimizer), loss)
    history = []
    for _ in range(num_steps):
        params, state = step(params, state)
        history.append((params, state))
    return history


def assert_close(first, second, atol=1e-5):
    # The same arithmetic in two compiled programs: float32 rounding, over 14 steps.
    for a, b in zip(jax.tree.leaves(plain(first)), jax.tree.leaves(plain(second)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("path", ["default", "two states"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_two_phases_by_hand(name, path, loss, params, sampled):
    build, shares = OPTIMIZERS[name]
    if path == "two states" and not shares:
        pytest.skip("the default is that path")
    by_hand = functools.partial(thermal, rate=RATES.get(name, 0.02))
    handover = None if path == "default" else by_hand
    switched = ctld_optax.phase_switch(build_sampler(), build(), STEPS, handover=handover)
    state = switched.init(params)
    assert is_shared(state) == (shares and path == "default")
    before = signature(state)
    traces = 0

    @jax.jit
    def step(params, state):
        nonlocal traces
        traces += 1
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = switched.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    assert_close(params, sampled[0])
    assert_close(state.sampler._replace(momentum=()), sampled[1]._replace(momentum=()))
    assert_close(state.optimizer[0].trace if is_shared(state) else state.sampler.momentum, sampled[1].momentum)
    at_the_switch = state.sampler

    for number, (expected, optimizer_state) in enumerate(optimize_by_hand(build(), loss, sampled, 8, by_hand), STEPS + 1):
        params, state = step(params, state)
        assert_close(params, expected)
        assert_close(state.optimizer, optimizer_state)
        assert state.count == number
    assert_identical(state.sampler, at_the_switch)  # it stands still
    assert signature(state) == before
    assert traces == 1


def test_the_general_case_copies_no_state():
    params = jnp.zeros(2**18)
    switched = ctld_optax.phase_switch(ctld_optax.ctld(0.1, 1.0, key=0), optax.adam(0.1), 5)
    update = jax.jit(switched.update, donate_argnums=(0, 1))
    memory = update.lower(params, switched.init(params), params, value=jnp.float32(0.0)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * params.nbytes  # branches around the states take four times params.nbytes


METRICS = {"unit mass": None, "second moment": ctld_optax.SecondMoment(), "layer scale": ctld_optax.LayerScale()}


@versions.BARRIER
@pytest.mark.parametrize("shape", [(2**16,), (4, 4, 64, 64)])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["adam", "adamw", "nesterov", "without momentum"])
def test_updates_and_hand_over_need_no_buffer(name, metric, shape):
    """Beside gradients that are not ours to overwrite: neither in their place in a loop, nor made in front of one.

    In front of a loop XLA makes what does not change in it: the places of entries in a leaf of several dimensions, for one.
    """
    params = jnp.zeros(shape)
    optimizer = optax.adamw(0.01) if name == "adamw" else OPTIMIZERS[name][0]()
    switched = ctld_optax.phase_switch(build_sampler(preconditioner=METRICS[metric]), optimizer, 5)

    def step(params, state, grads):
        updates, state = switched.update(grads, state, params, value=jnp.float32(0.0))
        return optax.apply_updates(params, updates), state

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a momentum that is left in its metric is told, and tested elsewhere
        state = switched.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * params.nbytes


@pytest.mark.parametrize("handover", [None, hand_over_momentum], ids=["shared momentum", "two states"])
@pytest.mark.parametrize("sampling_steps", [0, 1, 5])
def test_switch_is_at_that_step_exactly(sampling_steps, handover, params):
    # The sampler moves at all, the optimizer (learning rate 0, after the trace) does not.
    sampler = ctld_optax.ctld(0.1, 1.0, 0.9, key=0)
    switched = ctld_optax.phase_switch(sampler, optax.sgd(0.0, momentum=0.9), sampling_steps, handover=handover)
    state = switched.init(params)
    update = jax.jit(switched.update)
    moved = []
    for _ in range(8):
        updates, state = update(params, state, params, value=jnp.float32(1.0))
        moved.append(bool(jnp.any(updates["x"] != 0.0)))
    assert moved == [t < sampling_steps for t in range(8)]
    assert state.sampler.count == sampling_steps


def test_first_update_after_the_switch_by_formula(loss, params, sampled):
    """The else-branch of the paper: m = 0.8 m + grad, update = -0.02 m, from the momentum that the sampler left.

    That was thermal at the learning rate 0.01.
    """
    momentum = jax.tree.map(lambda m, g: 0.8 * kept(0.02) * m + g, sampled[1].momentum, jax.grad(loss)(sampled[0]))
    for handover in (None, thermal):
        switched = ctld_optax.phase_switch(build_sampler(), optax.sgd(0.02, momentum=0.8), STEPS, handover=handover)
        after, _ = run(switched, loss, params, STEPS + 1)
        assert_close(after, jax.tree.map(lambda p, m: p - 0.02 * m, sampled[0], momentum))


@pytest.mark.parametrize("handover", [None, hand_over_momentum], ids=["shared momentum", "two states"])
def test_schedule_of_the_optimizer_starts_at_the_switch(handover, params):
    optimizer = optax.sgd(lambda count: 1.0 + count, momentum=0.0)
    switched = ctld_optax.phase_switch(build_sampler(), optimizer, 3, handover=handover)
    state, update = switched.init(params), jax.jit(switched.update)
    steps = []
    for _ in range(6):
        updates, state = update(params, state, params, value=jnp.float32(1.0))
        steps.append(-float(updates["y"] / params["y"]))
    np.testing.assert_allclose(steps[3:], [1.0, 2.0, 3.0], rtol=1e-6)


def test_schedule_of_the_sampler_is_read_at_its_own_step(loss, params):
    sampler = build_sampler(learning_rate=optax.linear_schedule(0.001, 0.02, STEPS))
    ours, _ = run(ctld_optax.phase_switch(sampler, optax.sgd(0.02, momentum=0.8), STEPS), loss, params, STEPS)
    expected, _ = run(sampler, loss, params, STEPS)
    assert_close(ours, expected)


@pytest.mark.parametrize(("nesterov", "rate"), [(False, 0.05), (True, 0.9 * 0.05)], ids=["shared momentum", "two states"])
@pytest.mark.parametrize("temperature", [0.01, 0.0])
def test_a_hand_over_to_a_larger_learning_rate_hands_over_no_heat(temperature, nesterov, rate):
    """<r^2> = lr <m^2> / T is no larger behind the switch; at T = 0 the momentum stays as it is."""
    zeros = jnp.zeros(20_000)
    sampler = ctld_optax.ctld(0.001, temperature, 0.9, key=0, tempering=None, initial_momentum="stationary")
    switched = ctld_optax.phase_switch(sampler, optax.sgd(0.05, momentum=0.9, nesterov=nesterov), 40)
    state, update = switched.init(zeros), jax.jit(switched.update)
    for _ in range(40):
        _, state = update(zeros + 1e-3, state, zeros)
    before = state.optimizer[0].trace if is_shared(state) else state.sampler.momentum
    _, state = update(zeros, state, zeros)
    share = np.sqrt(0.001 / rate) if temperature > 0.0 else 1.0
    np.testing.assert_allclose(state.optimizer[0].trace, 0.9 * share * before, rtol=1e-5)


def test_a_run_resumed_with_fewer_sampling_steps_hands_over_at_its_next_step(loss, params):
    """And one resumed with more does not sample again."""
    for build in (lambda: optax.sgd(0.01, momentum=0.9), lambda: optax.sgd(0.01, momentum=0.9, nesterov=True)):
        long, short = (ctld_optax.phase_switch(build_sampler(), build(), steps) for steps in (20, 4))
        parameters, state = run(long, loss, params, 10)
        momentum = state.optimizer[0].trace if is_shared(state) else state.sampler.momentum
        grads = jax.grad(loss)(parameters)
        _, after = short.update(grads, state, parameters, value=loss(parameters))
        assert_close(after.optimizer[0].trace, jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads))
        assert after.switched
        assert after.sampler.count == 10
        _, later = long.update(grads, after, parameters, value=loss(parameters))
        assert later.sampler.count == 10


RESUMED = {
    "SecondMoment onto adamw": (ctld_optax.SecondMoment(decay=0.99), lambda: optax.adamw(0.01)),
    "LayerScale onto what keeps its parameters": (ctld_optax.LayerScale(), lambda: optax.contrib.schedule_free_sgd(0.02)),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_in_a_metric_resumed_with_fewer_sampling_steps_hands_over_at_its_next_step(name, loss, params):
    """The step is the one that a run would have made which was to switch there from the beginning."""
    metric, make = RESUMED[name]
    sampler = build_sampler(preconditioner=metric)
    long, short, due = (ctld_optax.phase_switch(sampler, make(), steps) for steps in (20, 4, 10))
    parameters, state = run(long, loss, params, 10)
    _, same = run(due, loss, params, 10)
    grads = jax.grad(loss)(parameters)
    found = [tx.update(grads, at, parameters, value=loss(parameters)) for tx, at in ((short, state), (due, same))]
    assert_close(*found)
    assert found[0][1].switched
    assert found[0][1].sampler.count == 10


def test_adam_starts_fresh(loss, params):
    switched = ctld_optax.phase_switch(build_sampler(), optax.adam(0.01), 2)
    state, step = switched.init(params), stepper(switched, loss)
    for _ in range(2):
        params, state = step(params, state)
    assert_identical(state.optimizer, optax.adam(0.01).init(params))
    params, state = step(params, state)
    assert state.optimizer[0].count == 1


def test_handover_of_the_caller_replaces_the_rule(loss, params, sampled):
    def handover(optimizer_state, sampler_state, params):
        # Second moments too, or Adam divides by next to nothing and magnifies rounding.
        moments = {"mu": sampler_state.momentum, "nu": jax.tree.map(lambda m: 1.0 + m**2, sampler_state.momentum)}
        return (optimizer_state[0]._replace(**moments), *optimizer_state[1:])

    switched = ctld_optax.phase_switch(build_sampler(), optax.adam(0.01), STEPS, handover=handover)
    ours, state = run(switched, loss, params, STEPS + 4)
    expected, optimizer_state = optimize_by_hand(optax.adam(0.01), loss, sampled, 4, handover)[-1]
    assert_close((ours, state.optimizer), (expected, optimizer_state))
    plainly, _ = optimize_by_hand(optax.adam(0.01), loss, sampled, 4)[-1]
    assert np.max(np.abs(plainly["x"] - ours["x"])) > 1e-4  # the hand-over made a difference


def test_wrong_handover_is_heard_of_at_init(params):
    def handover(optimizer_state, sampler_state, params):
        return optimizer_state._replace(mu=sampler_state.momentum)

    with pytest.raises(AttributeError, match="_replace"):
        ctld_optax.phase_switch(build_sampler(), optax.adam(0.01), 3, handover=handover).init(params)


@pytest.mark.parametrize(
    "handover", [lambda optimizer_state, sampler_state: optimizer_state, lambda optimizer_state: optimizer_state]
)
def test_a_handover_of_too_few_arguments_is_refused(handover):
    message = r"handover must take three arguments, .*Write handover=lambda optimizer_state, sampler_state, params: \.\.\."
    with pytest.raises(TypeError, match=message):
        ctld_optax.phase_switch(build_sampler(), optax.adam(0.01), 3, handover=handover)


def test_handover_of_the_caller_gets_the_parameters_at_the_switch(loss, params, sampled):
    still = optax.GradientTransformation(optax.tree.zeros_like, lambda updates, state, params: (updates, state))
    switched = ctld_optax.phase_switch(build_sampler(), still, STEPS, handover=lambda mine, theirs, params: params)
    _, state = run(switched, loss, params, STEPS + 1)
    assert_close(state.optimizer, sampled[0])


# Optimizers that keep the parameters that they began with.

KEEPERS = {
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.02),
    "dog": optax.contrib.dog,
    "cocob": optax.contrib.cocob,
    "prodigy": optax.contrib.prodigy,
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.02)),
    "injected": lambda: optax.inject_hyperparams(optax.contrib.dog)(learning_rate=0.5),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_what_an_optimizer_keeps_of_its_first_parameters_is_of_those_at_the_switch(name, loss, params, sampled):
    switched = ctld_optax.phase_switch(build_sampler(), KEEPERS[name](), STEPS)
    before = signature(switched.init(params))
    ours, state = run(switched, loss, params, STEPS + 4)
    expected, expected_state = run(optax.with_extra_args_support(KEEPERS[name]()), loss, sampled[0], 4)
    assert_close((ours, state.optimizer), (expected, expected_state))
    assert signature(state) == before


@versions.DOG
def test_it_is_made_anew_at_the_switch_and_only_then(loss, params, sampled):
    switched = ctld_optax.phase_switch(build_sampler(), KEEPERS["dog"](), STEPS)
    start, state, step = params, switched.init(params), stepper(switched, loss)
    for number in range(STEPS + 3):
        assert_close(optax.tree.get(state.optimizer, "init_params"), start if number <= STEPS else sampled[0])
        params, state = step(params, state)


def test_a_hyperparameter_changed_while_sampling_stays_changed(loss, params):
    switched = ctld_optax.phase_switch(build_sampler(), KEEPERS["injected"](), 2)
    params, state = run(switched, loss, params, 1)
    hyperparams = state.optimizer.hyperparams | {"learning_rate": jnp.float32(0.25)}
    state = state._replace(optimizer=state.optimizer._replace(hyperparams=hyperparams))
    step = stepper(switched, loss)
    for _ in range(3):
        params, state = step(params, state)
    assert state.optimizer.hyperparams["learning_rate"] == 0.25


def test_such_an_optimizer_asks_for_the_parameters_at_the_first_step_and_no_other_does(params):
    def first_step(optimizer):
        switched = ctld_optax.phase_switch(build_sampler(), optimizer, 3)
        switched.update(params, switched.init(params), value=jnp.float32(1.0))

    first_step(optax.adam(0.01))
    with pytest.raises(
        ValueError, match=r"needs the parameters at every step, got None: .* Write tx\.update\(grads, state, params"
    ):
        first_step(KEEPERS["schedule_free"]())


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_both_paths_agree(coupling, loss, params):
    # Alpha moves fast enough to matter, and where it does the potential coupling changes momentum and drift.
    tempering = ctld_optax.GeometricTempering(delta=0.0, strength=0.9)
    sampler = build_sampler(coupling=coupling, tempering=tempering, temperature=1.0, alpha_step_size=0.05)
    optimizer = optax.sgd(optax.cosine_decay_schedule(0.02, 20), momentum=0.8)
    shared, shared_state = run(ctld_optax.phase_switch(sampler, optimizer, 20), loss, params, 30)
    two, two_state = run(ctld_optax.phase_switch(sampler, optimizer, 20, handover=thermal), loss, params, 30)
    assert shared_state.sampler.beta < 0.95
    assert is_shared(shared_state)
    assert not is_shared(two_state)
    assert_close(shared, two)
    # Noise of a standard deviation of 14 has been added to the momentum, and rounds to 1e-6 of that.
    assert_close(shared_state.optimizer, two_state.optimizer, atol=1e-4)
    assert_close(shared_state.sampler._replace(momentum=()), two_state.sampler._replace(momentum=()))


def test_one_cosine_given_to_both_phases_makes_no_spike():
    """The optimizer's clock starts at 0, so its learning rate begins a thousand times above the sampler's last one."""
    rates, size, temperature, steps = optax.cosine_decay_schedule(0.05, 300, alpha=1e-3), 2_000, 1e-3, 300
    loss = lambda params: 0.5 * jnp.sum(jnp.square(params))

    def worst_after_the_switch(handover):
        sampler = ctld_optax.ctld(rates, temperature, key=0)
        tx = ctld_optax.phase_switch(sampler, optax.sgd(rates, momentum=0.9), steps, handover=handover)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), value

        params = jnp.zeros(size)
        _, values = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps + 50))((params, tx.init(params)))
        return np.max(values[steps + 1 :]) / values[steps]

    assert worst_after_the_switch(None) < 1.05
    assert worst_after_the_switch(hand_over_momentum) > 10.0  # all of the momentum, as it stands


@pytest.mark.usefixtures("x64")
def test_both_paths_agree_in_float64():
    def loss(params):
        return jnp.sum(jnp.square(params["x"] ** 2 - 1.0))

    params = {"x": jnp.linspace(-1.0, 1.0, 7)}
    sampler = ctld_optax.ctld(0.01, 0.1, key=0, coupling="hamiltonian")
    optimizer = optax.sgd(0.003, momentum=1.0 - 1.0 / 7.0)
    shared, _ = run(ctld_optax.phase_switch(sampler, optimizer, 20), loss, params, 60)
    two, _ = run(ctld_optax.phase_switch(sampler, optimizer, 20, handover=hand_over_momentum), loss, params, 60)
    np.testing.assert_allclose(shared["x"], two["x"], rtol=1e-12)


# Recognising heavy-ball SGD.


def written_out():
    trace = optax.trace(0.9)

    def update(updates, state, params=None):
        updates, state = trace.update(updates, state[0], params)
        return optax.tree.scale(-0.1, updates), (state, ())

    return optax.GradientTransformation(lambda params: (trace.init(params), ()), update)


def not_quite(change):
    """A trace in the first place whose step is not the heavy ball's."""
    trace = optax.trace(0.9)

    def update(updates, state, params=None):
        updates, state = change(trace, updates, state[0], params)
        return optax.tree.scale(-0.1, updates), (state,)

    return optax.GradientTransformation(lambda params: (trace.init(params),), update)


HEAVY_BALLS = {
    "sgd": (lambda: optax.sgd(0.1, momentum=0.9), 0.9),
    "sgd, schedule": (lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 5), momentum=0.95), 0.95),
    "sgd, a third": (lambda: optax.sgd(0.1, momentum=1.0 / 3.0), 1.0 / 3.0),
    "sgd, zero": (lambda: optax.sgd(0.1, momentum=0.0), 0.0),
    "sgd, zero learning rate": (lambda: optax.sgd(0.0, momentum=0.9), 0.9),
    "written out": (written_out, 0.9),
    "trace, clip": (lambda: optax.chain(optax.trace(0.9), optax.clip(1.0)), 0.9),
    "trace, plateau": (lambda: optax.chain(optax.trace(0.9), optax.contrib.reduce_on_plateau()), 0.9),
}
OTHERS = {
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "no momentum": lambda: optax.sgd(0.1),
    "bare trace": lambda: optax.trace(0.9),
    "ema": lambda: optax.chain(optax.ema(0.9), optax.scale(-0.1)),
    "adam": lambda: optax.adam(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.9),
    "lion": lambda: optax.lion(0.1),
    "clip": lambda: optax.chain(optax.clip(1.0), optax.trace(0.9), optax.scale(-0.1)),
    "clip, nested": lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
    "nested": lambda: optax.chain(optax.sgd(0.1, momentum=0.9), optax.clip(1.0)),
    "clip by norm": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9)),
    "weight decay first": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9)),
    "two traces": lambda: optax.chain(optax.trace(0.9), optax.trace(0.5)),
    "trace, adam": lambda: optax.chain(optax.trace(0.9), optax.scale_by_adam()),
    "masked": lambda: optax.masked(optax.sgd(0.1, momentum=0.9), mask=True),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
    "multi steps": lambda: optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 2),
    "if finite": lambda: optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 3),
    "partition": lambda: optax.partition({"a": optax.sgd(0.1, momentum=0.9)}, lambda p: jax.tree.map(lambda _: "a", p)),
    "bfloat16 trace": lambda: optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16),
    "clipped inside": lambda: not_quite(lambda t, g, s, p: t.update(jax.tree.map(lambda x: jnp.clip(x, -1e9, 1e9), g), s, p)),
    "normalised inside": lambda: not_quite(
        lambda t, g, s, p: t.update(optax.normalize_by_update_norm().update(g, ())[0], s, p)
    ),
    "damped inside": lambda: not_quite(lambda t, g, s, p: t.update(optax.tree.scale(0.1, g), s, p)),
    "sign of the gradient": lambda: not_quite(lambda t, g, s, p: t.update(jax.tree.map(jnp.sign, g), s, p)),
    "update of the gradient": lambda: not_quite(lambda t, g, s, p: (g, t.update(g, s, p)[1])),
    "decay of the parameters": lambda: not_quite(
        lambda t, g, s, p: t.update(jax.tree.map(lambda x, w: x + 1e-4 * w, g, p), s, p)
    ),
    "scalar of the parameters": lambda: optax.chain(
        optax.trace(0.9), optax.GradientTransformation(optax.tree.norm, lambda updates, state, params=None: (updates, state))
    ),
    "positive traces only": lambda: not_quite(
        lambda t, g, s, p: t.update(g, jax.tree.map(lambda x: jnp.where(x > 0, x, 0.0), s), p)
    ),
}


@pytest.mark.parametrize("name", HEAVY_BALLS)
def test_heavy_ball_is_recognised(name):
    build, decay = HEAVY_BALLS[name]
    assert heavy_ball_decay(optax.with_extra_args_support(build())) == decay


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_are_not_taken_for_heavy_ball(name):
    optimizer = OTHERS[name]()
    optimizer = optimizer.gradient_transformation() if isinstance(optimizer, optax.MultiSteps) else optimizer
    assert heavy_ball_decay(optax.with_extra_args_support(optimizer)) is None


def test_recognition_is_silent_and_leaves_x64_alone():
    heavy_ball_decay(optax.sgd(0.1, momentum=0.9))
    assert jnp.ones(()).dtype == jnp.float32


# Which traces are sums of raw gradients.

DECAYED = optax.add_decayed_weights(0.1)
SUMS = {
    "sgd": (lambda: optax.sgd(0.1, momentum=0.9), [True]),
    "nesterov": (lambda: optax.sgd(0.1, momentum=0.9, nesterov=True), [True]),
    "decay 1": (lambda: optax.trace(1.0), [True]),
    "weight decay first": (lambda: optax.chain(DECAYED, optax.trace(0.9)), [True]),
    "clip first": (lambda: optax.chain(optax.clip(0.1), optax.trace(0.9)), [True]),
    "clip by norm first": (lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9)), [True]),
    "adaptive clip first": (lambda: optax.chain(optax.adaptive_grad_clip(0.01), optax.trace(0.9)), [True]),
    "noise first": (lambda: optax.chain(optax.add_noise(1e-3, 0.5, 0), optax.trace(0.9)), [True]),
    "bfloat16 trace": (lambda: optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16), [True]),
    "injected": (lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9), [True]),
    "masked": (lambda: optax.masked(optax.sgd(0.1, momentum=0.9), {"x": True, "y": False}), [True]),
    "if finite": (lambda: optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), 3), [True]),
    "adam behind": (lambda: optax.chain(optax.trace(0.9), optax.scale_by_adam()), [True]),
    "in parts": (
        lambda: optax.partition({"a": optax.sgd(0.1, 0.9), "b": optax.rmsprop(0.1, momentum=0.9)}, {"x": "a", "y": "b"}),
        [True, False],
    ),
    "two traces": (lambda: optax.chain(optax.trace(0.4), optax.trace(0.5)), [True, False]),
    "decay 0": (lambda: optax.sgd(0.1, momentum=0.0), [None]),
    "no trace": (lambda: optax.adam(0.1), []),
    "growing": (lambda: optax.trace(1.1), [False]),
    "rmsprop": (lambda: optax.rmsprop(0.1, momentum=0.9), [False]),
    "lars": (lambda: optax.lars(0.1), [False]),
    "trust ratio of 1": (lambda: optax.chain(optax.scale_by_trust_ratio(), optax.trace(0.9)), [False]),
    "adam first": (lambda: optax.chain(optax.scale_by_adam(), optax.trace(0.9)), [False]),
    "mean first": (lambda: optax.chain(optax.ema(0.9), optax.trace(0.9)), [False]),  # the first step alone does not tell it
    "schedule first": (lambda: optax.chain(optax.scale_by_schedule(lambda t: 0.5**t), optax.trace(0.9)), [False]),
    "learning rate first": (lambda: optax.chain(optax.scale(-0.1), optax.trace(0.9)), [False]),
    "sign changed": (lambda: optax.chain(optax.scale(-1.0), optax.trace(0.9)), [False]),
    "sign alone": (lambda: optax.chain(optax.scale_by_sign(), optax.trace(0.9)), [False]),
    "normalised": (lambda: optax.chain(optax.normalize_by_update_norm(), optax.trace(0.9)), [False]),
    "every second": (lambda: optax.chain(optax.apply_every(2), optax.trace(0.9)), [False]),
    "no probe": (lambda: optax.chain(optax.stateless(lambda *_: 1 / 0), optax.trace(0.9)), [False]),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_raw_gradients_are_told_from_other_traces(name, params):
    build, expected = SUMS[name]
    assert sums_gradients(optax.with_extra_args_support(build()), params) == expected


def test_the_answer_is_the_same_under_jit_and_for_traced_hyperparameters(params):
    answers = []

    @jax.jit
    def ask(params, decay):
        for scale in (optax.identity(), optax.scale(decay)):
            optimizer = optax.chain(scale, optax.trace(decay))
            answers.append(sums_gradients(optax.with_extra_args_support(optimizer), params))

    ask(params, 0.9)
    assert answers == [[True], [False]]


@pytest.mark.parametrize("name", ["rmsprop", "lars", "adam first", "learning rate first"])
def test_a_trace_in_other_units_starts_from_zeros_and_says_so(name, loss, params):
    build, _ = SUMS[name]
    switched = ctld_optax.phase_switch(build_sampler(), build(), STEPS)
    with pytest.warns(UserWarning, match=r"a trace of this optimizer is no sum of raw gradients .*pass handover="):
        state = switched.init(params)
    step = stepper(switched, loss)
    for _ in range(STEPS):
        params, state = step(params, state)
    expected, expected_state = stepper(optax.with_extra_args_support(build()), loss)(params, build().init(params))
    params, state = step(params, state)
    assert_close((params, state.optimizer), (expected, expected_state))


def test_parts_take_over_what_is_theirs_at_their_own_learning_rate(params):
    """In one step without a gradient: decay times the share of the momentum that stays thermal."""
    parts = {"a": optax.sgd(0.04, momentum=0.9), "b": optax.sgd(0.01, momentum=0.5)}
    switched = ctld_optax.phase_switch(build_sampler(), optax.partition(parts, {"x": "a", "y": "b"}), STEPS)
    zeros, update = optax.tree.zeros_like(params), jax.jit(switched.update)
    state = switched.init(params)
    for _ in range(STEPS + 1):
        updates, state = update(zeros, state, params, value=jnp.float32(1.0))
    momentum = state.sampler.momentum
    np.testing.assert_allclose(updates["x"], -0.04 * 0.9 * np.sqrt(0.01 / 0.04) * momentum["x"], rtol=1e-5)
    np.testing.assert_allclose(updates["y"], -0.01 * 0.5 * momentum["y"], rtol=1e-5)


# The default hand-over.


def test_masked_leaves_keep_their_nodes(loss, params):
    mask = {"x": True, "y": False}
    optimizer = optax.masked(optax.sgd(0.02, momentum=0.8), mask)
    _, state = run(ctld_optax.phase_switch(build_sampler(), optimizer, 3), loss, params, 3)
    filled = hand_over_momentum(state.optimizer, state.sampler).inner_state[0].trace
    np.testing.assert_array_equal(filled["x"], state.sampler.momentum["x"])
    assert isinstance(filled["y"], optax.MaskedNode)


def test_handover_casts_to_the_dtype_of_the_trace(loss, params):
    optimizer = optax.sgd(0.02, momentum=0.8, accumulator_dtype=jnp.bfloat16)
    _, state = run(ctld_optax.phase_switch(build_sampler(), optimizer, 3), loss, params, 5)
    assert state.optimizer[0].trace["x"].dtype == jnp.bfloat16
    assert state.sampler.momentum["x"].dtype == jnp.float32


def test_a_parameter_called_momentum_is_no_momentum():
    params = {"momentum": jnp.ones(3), "x": jnp.ones(2)}
    optimizer = optax.sgd(0.02, momentum=0.8, nesterov=True)

    def loss(p):
        return jnp.sum(p["momentum"] ** 2) + jnp.sum(p["x"] ** 2)

    _, sampler_state = run(build_sampler(), loss, params, 3)
    filled = hand_over_momentum(optimizer.init(params), sampler_state)
    assert_identical(filled[0].trace, sampler_state.momentum)


def test_injected_hyperparameters_hand_over_the_momentum(loss, params):
    sampler = optax.inject_hyperparams(ctld_optax.ctld)(learning_rate=0.01, temperature=0.01, momentum=0.9, key=0)
    _, state = run(ctld_optax.phase_switch(sampler, optax.sgd(0.0, momentum=1.0), 3), loss, params, 3)
    filled = hand_over_momentum(state.optimizer, state.sampler)
    assert_identical(filled[0].trace, state.sampler.inner_state.momentum)


def test_sampler_in_a_chain_hands_over_its_momentum(loss, params):
    sampler, optimizer = optax.chain(optax.clip(0.5), build_sampler()), optax.sgd(0.02, momentum=0.8)
    ours, _ = run(ctld_optax.phase_switch(sampler, optimizer, STEPS), loss, params, STEPS + 5)
    expected, _ = optimize_by_hand(optimizer, loss, run(sampler, loss, params, STEPS), 5)[-1]
    assert_close(ours, expected)


@pytest.mark.parametrize(("sampler", "count"), [(optax.sgd(0.1), 0), (None, 2)])
def test_no_or_two_momenta_are_refused_with_the_way_out(sampler, count, params):
    sampler = optax.chain(build_sampler(), build_sampler()) if sampler is None else sampler
    message = rf"looks for one `momentum` of a parameter in sampler_state and found {count} .*Pass handover="
    with pytest.raises(ValueError, match=message):
        ctld_optax.phase_switch(sampler, optax.sgd(0.1, momentum=0.9), 3).init(params)


# State, arguments, tracing.


@pytest.mark.parametrize("name", ["sgd, schedule", "nesterov", "adam"])
def test_bfloat16_parameters_in_both_phases(name, loss, params):
    params = optax.tree.cast(params, jnp.bfloat16)
    switched = ctld_optax.phase_switch(build_sampler(), OPTIMIZERS[name][0](), 2)
    before = signature(switched.init(params))
    params, state = run(switched, loss, params, 5)
    assert signature(state) == before
    assert params["x"].dtype == jnp.bfloat16
    assert_finite((params, state))


@pytest.mark.parametrize("handover", [None, hand_over_momentum], ids=["shared momentum", "two states"])
def test_runs_in_scan_vmap_and_with_donation(handover, loss, params):
    switched = ctld_optax.phase_switch(build_sampler(), optax.sgd(0.02, momentum=0.8), 4, handover=handover)
    step = stepper(switched, loss)
    expected, expected_state = run(switched, loss, params, 9)

    scanned, scanned_state = jax.jit(lambda c: jax.lax.scan(lambda c, _: (step(*c), None), c, None, 9)[0])(
        (params, switched.init(params))
    )
    assert_close((scanned, scanned_state), (expected, expected_state))

    batched = jax.vmap(step)(*jax.tree.map(lambda x: jnp.stack([x, x]), (params, switched.init(params))))
    assert_close(jax.tree.map(lambda x: x[1], batched), step(params, switched.init(params)))

    donating = jax.jit(step, donate_argnums=(0, 1))
    copy, state = jax.tree.map(jnp.copy, params), switched.init(params)
    for _ in range(9):
        copy, state = donating(copy, state)
    assert_close((copy, state), (expected, expected_state))


@pytest.mark.parametrize("handover", [None, hand_over_momentum], ids=["shared momentum", "two states"])
def test_extra_arguments_reach_both_phases(handover, params):
    seen = {"sampler": [], "optimizer": []}

    def spy(name, inner):
        inner = optax.with_extra_args_support(inner)

        def update(updates, state, params=None, **extra):
            seen[name].append((sorted(extra), extra["value"] is not None, params is not None))
            return inner.update(updates, state, params, **extra)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    optimizer = optax.chain(optax.trace(0.9), spy("optimizer", optax.scale(-0.1)))
    sampler = ctld_optax.ctld(0.01, 0.01, key=0)
    if handover is not None:
        sampler = spy("sampler", sampler)
    switched = ctld_optax.phase_switch(sampler, optimizer, 2, handover=handover)
    assert is_shared(switched.init(params)) == (handover is None)
    seen["optimizer"].clear()
    jax.eval_shape(lambda p: switched.update(p, switched.init(p), p, value=1.0, colour="red"), params)
    assert seen["optimizer"]
    for calls in seen.values():
        assert all(call == (["colour", "value"], True, True) for call in calls)
    assert bool(seen["sampler"]) == (handover is not None)


def test_reduce_on_plateau_sees_the_value_after_the_switch_only(params):
    optimizer = optax.chain(optax.trace(0.9), optax.contrib.reduce_on_plateau(factor=0.5, patience=2), optax.scale(-0.1))
    for handover in (None, hand_over_momentum):
        switched = ctld_optax.phase_switch(build_sampler(), optimizer, 10, handover=handover)
        state = switched.init(params)
        update = jax.jit(switched.update)
        scales = []
        for _ in range(16):
            _, state = update(params, state, params, value=jnp.float32(1.0))
            scales.append(float(state.optimizer[1].scale))
        assert scales[:12] == [1.0] * 12
        assert scales[-1] < 1.0


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)], ids=["shared momentum", "two states"])
def test_value_is_asked_for(optimizer, params):
    switched = ctld_optax.phase_switch(build_sampler(), optimizer, 3)
    with pytest.raises(TypeError, match="needs the loss at every step"):
        switched.update(params, switched.init(params), params)


@pytest.mark.parametrize("settings", [{"tempering": None}, {"coupling": "kinetic"}], ids=["constant", "kinetic"])
@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)], ids=["shared momentum", "two states"])
def test_constant_temperature_and_kinetic_coupling_need_no_value(optimizer, settings, loss, params):
    switched = ctld_optax.phase_switch(build_sampler(**settings), optimizer, 3)
    state, update = switched.init(params), jax.jit(switched.update)
    for _ in range(5):
        _, state = update(jax.grad(loss)(params), state, params)
    assert_finite(state)
    assert state.sampler.count == 3


SGD = optax.sgd(0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SGD, build_sampler(), 3), "optimizer is a sampler, and sampler is none"),
        ((build_sampler(), 3, SGD), "optimizer must be a GradientTransformation.*, got 3"),
        ((3, build_sampler(), SGD), "sampler must be a GradientTransformation.*, got 3"),
        ((build_sampler(), SGD, SGD), "sampling_steps must be a Python integer .*got GradientTransformation"),
        ((build_sampler(), optax.sgd, 3), "optimizer must be a GradientTransformation.*, got <function sgd"),
    ],
)
def test_refuses_another_order(arguments, message):
    with pytest.raises(TypeError, match=rf"{message}.* The order is phase_switch\(sampler, optimizer, sampling_steps\)"):
        ctld_optax.phase_switch(*arguments)


MASK = {"x": True, "y": False}


@pytest.mark.parametrize("wrap", [lambda tx: optax.chain(optax.clip(1.0), tx), lambda tx: optax.masked(tx, MASK)])
def test_a_wrapped_sampler_in_the_second_place_is_found_at_init(wrap, params):
    with pytest.raises(TypeError, match="optimizer is a sampler, and sampler is none"):
        ctld_optax.phase_switch(optax.adam(0.1), wrap(build_sampler()), 3).init(params)


def test_multi_steps_gets_the_loss(loss, params):
    """In both places, as the class that Optax makes of it, which is no transformation itself."""
    optimizer = optax.chain(optax.sgd(0.01), optax.contrib.reduce_on_plateau())
    switched = ctld_optax.phase_switch(optax.MultiSteps(build_sampler(), 2), optax.MultiSteps(optimizer, 2), 4)
    _, state = run(switched, loss, params, 8)
    assert (state.sampler.gradient_step, state.optimizer.gradient_step) == (2, 2)
    assert state.optimizer.inner_opt_state[1].best_value < np.inf


def test_from_one_sampler_to_another(loss, params):
    explorer, sampler = build_sampler(), build_sampler(tempering=None)
    params, state = run(ctld_optax.phase_switch(explorer, sampler, 3), loss, params, 5)
    assert (state.sampler.count, state.optimizer.count) == (3, 2)


def sampler_of(*names):
    """A sampler of each of these parameters, with a key of its own; the others stand still."""
    samplers = {name: build_sampler(key=number) for number, name in enumerate(names)}
    return optax.partition(samplers | {"none": optax.set_to_zero()}, {n: n if n in names else "none" for n in ("x", "y")})


PARTIAL = {
    "masked": lambda: optax.masked(build_sampler(), MASK),
    "one of two": lambda: sampler_of("x"),
    "two samplers": lambda: sampler_of("x", "y"),
}


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam", "masked otherwise"])
@pytest.mark.parametrize("name", PARTIAL)
def test_samplers_of_some_parameters_hand_over_what_they_have(name, optimizer, loss, params):
    build = {"masked otherwise": lambda: optax.masked(optax.sgd(0.02, momentum=0.8), {"x": False, "y": True})}
    build = {name: build for name, (build, _) in OPTIMIZERS.items()} | build
    switched = ctld_optax.phase_switch(PARTIAL[name](), build[optimizer](), STEPS)
    state, step = switched.init(params), stepper(switched, loss)
    for _ in range(STEPS):
        params, state = step(params, state)
    found = [tree for _, tree in optax.tree.get_all_with_path(state.sampler, "momentum")]
    momenta = {leaf: tree[leaf] for tree in found for leaf in tree if jax.tree.leaves(tree[leaf])}
    value, grads = jax.value_and_grad(loss)(params)
    _, after = switched.update(grads, state, params, value=value)
    for _, trace in optax.tree.get_all_with_path(after.optimizer, "trace"):
        for leaf in [leaf for leaf in trace if jax.tree.leaves(trace[leaf])]:
            share = kept(RATES.get(optimizer, 0.02))
            assert_close(trace[leaf], grads[leaf] + 0.8 * share * momenta.get(leaf, 0.0))


def test_a_trace_of_another_shape_begins_from_zeros():
    """That of `optax.flatten` is one vector, here at the very path of the one parameter."""
    params = jnp.ones((2, 3))
    switched = ctld_optax.phase_switch(build_sampler(), optax.flatten(optax.sgd(0.1, momentum=0.9)), 2)
    _, state = run(switched, jnp.sum, params, 3)
    assert_identical(state.optimizer[0].trace, jnp.ones(6))  # the gradient of the first step alone


def test_a_phase_switch_as_sampler(loss, params):
    inner = ctld_optax.phase_switch(build_sampler(), optax.sgd(0.01, momentum=0.9), 2)
    params, state = run(ctld_optax.phase_switch(inner, optax.adam(0.01), 4), loss, params, 6)
    assert (state.sampler.sampler.count, state.sampler.count, state.optimizer[0].count) == (2, 4, 2)
    with pytest.raises(ValueError, match=r"the sampler is itself a phase_switch, .*Pass handover="):
        ctld_optax.phase_switch(inner, optax.sgd(0.01, momentum=0.9), 4).init(params)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (-1, ValueError, r"sampling_steps must be >= 0, got -1"),
        (3.0, TypeError, r"sampling_steps must be a Python integer .*got 3.0"),
        (True, TypeError, r"sampling_steps must be a Python integer .*got True"),
        (None, TypeError, r"sampling_steps must be a Python integer .*got None"),
        ("10", TypeError, r"sampling_steps must be a Python integer"),
    ],
)
def test_refuses_a_wrong_number_of_steps(steps, error, message):
    with pytest.raises(error, match=message):
        ctld_optax.phase_switch(build_sampler(), optax.sgd(0.1, momentum=0.9), steps)


def test_numpy_integers_are_integers(params):
    assert ctld_optax.phase_switch(build_sampler(), optax.sgd(0.1, momentum=0.9), np.int64(3)).init(params).count == 0


def test_empty_tree():
    for optimizer in (optax.sgd(0.1, momentum=0.9), optax.adam(0.1)):
        switched = ctld_optax.phase_switch(build_sampler(), optimizer, 2)
        state, update = switched.init({}), jax.jit(switched.update)
        for _ in range(4):
            updates, state = update({}, state, {}, value=jnp.float32(1.0))
            assert updates == {}
        assert_finite(state)
