"""Real runs: each deliberately bad one must be named for what it is and nothing else, good ones must have no finding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import ctld_optax
from ctld_optax import AdaptiveBiasingForce, Metadynamics, diagnostics
from ctld_optax.diagnostics._alpha_checks import free_trip
from ctld_optax.diagnostics._run import Run, effective_size
from ctld_optax.recorder import Recorder


def bowl(x, batch=None):
    """Curvature 1 everywhere."""
    del batch
    return 0.5 * jnp.sum(jnp.square(x))


def gaussian(x, batch=None):
    """Three dimensions, three curvatures."""
    del batch
    return 0.5 * jnp.sum(jnp.square(x) * jnp.asarray([1.0, 4.0, 0.25])[: x.size])


@functools.cache
def digits():
    images, labels = load_digits(return_X_y=True)
    return np.asarray(images / 16.0, np.float32), labels


def network(hidden=16):
    rng = np.random.default_rng(0)
    sizes = (64, hidden, 10)
    weights = [rng.normal(size=shape) * np.sqrt(2.0 / shape[0]) for shape in itertools.pairwise(sizes)]
    return [(jnp.asarray(w, jnp.float32), jnp.zeros(w.shape[1])) for w in weights]


def cross_entropy(params, key, size=64):
    images, labels = map(jnp.asarray, digits())
    chosen = jax.random.randint(key, (size,), 0, len(labels))
    (w, b), (v, c) = params
    logits = jax.nn.relu(images[chosen] @ w + b) @ v + c
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()


def plateau_loss(params, key):
    """Eight layers of small weights: all gradients are next to nothing."""
    images, labels = map(jnp.asarray, digits())
    chosen = jax.random.randint(key, (64,), 0, len(labels))
    hidden = images[chosen]
    for w in params[:-1]:
        hidden = jax.nn.relu(hidden @ w)
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params[-1], labels[chosen]).mean()


def plateau():
    rng = np.random.default_rng(0)
    return [jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32) for shape in itertools.pairwise((64, *8 * (20,), 10))]


def spoiled_regression(w, key):
    """Of 400 examples one has no target."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(400, 10)), jnp.float32)
    targets = (inputs @ jnp.ones(10)).at[17].set(jnp.nan)
    chosen = jax.random.randint(key, (2,), 0, 400)
    return jnp.mean(jnp.square(inputs[chosen] @ w - targets[chosen]))


def regression_with_outliers(w, key):
    """Absolute errors, one example a step, of which one in fifty is absurd: values are wild, gradients are not."""
    key_x, key_noise, key_outlier = jax.random.split(key, 3)
    x = jax.random.normal(key_x, (10,))
    noise = jax.random.normal(key_noise) * jnp.where(jax.random.uniform(key_outlier) < 0.02, 1_000.0, 0.1)
    return jnp.abs(x @ (w - 1.0) + noise)


def run(sampler, loss, params, num_steps, *, tx=None):
    """Trajectory, values and last state of a run; `tx` is what steps, if not the sampler itself."""
    tx = tx or sampler

    def step(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), (diagnostics.snapshot(state), value)

    keys = jax.random.split(jax.random.key(7), num_steps)
    (_, state), rows = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, tx.init(params)))
    return (*rows, state)


def report_on(sampler, loss, params, num_steps, *, tx=None):
    trajectory, value, state = run(sampler, loss, params, num_steps, tx=tx)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return diagnostics.report(trajectory, sampler, value=value, num_params=num_params, state=state)


sampler = functools.partial(ctld_optax.ctld, key=0)
exact = functools.partial(sampler, coupling="hamiltonian")
POSTERIOR = {"bias": AdaptiveBiasingForce(), "alpha_step_size": 0.05}

# name: (finding, a word of the advice, sampler, loss, params, steps)
BAD = {
    "an example without a target": (
        "steps_skipped",
        "the data",
        sampler(0.001, 1e-3),
        spoiled_regression,
        jnp.zeros(10),
        4_000,
    ),
    "a step size that diverges": ("steps_skipped", "lower learning_rate", sampler(5.0, 1e-3), bowl, jnp.ones(10), 2_000),
    "the literal force": (
        "alpha_outside",
        "standardized",
        exact(0.05, 1e-3, confinement="force"),
        bowl,
        jnp.ones(2_000),
        2_000,
    ),
    "the literal energy": ("alpha_driven", "standardized", exact(0.01, 1e-4), cross_entropy, network(), 2_000),
    "the paper's hills": (
        "alpha_driven",
        "height=0.2",
        sampler(0.01, 1e-4, bias=Metadynamics(height=20.0, bias_factor=None)),
        cross_entropy,
        network(),
        2_000,
    ),
    "no bias in 100 dimensions": ("alpha_stuck", "a bias", exact(0.05, 1.0, bias=None), bowl, jnp.zeros(100), 20_000),
    "200 steps": ("too_short", "sampling_steps of 3,7", sampler(0.05, 1.0), gaussian, jnp.full(3, 4.0), 200),
    "no bias in 2 dimensions": (
        "window_occupation",
        "a bias",
        exact(0.05, 1.0, bias=None, alpha_step_size=0.05),
        gaussian,
        jnp.ones(2),
        20_000,
    ),
    "minibatches of 4": (
        "kinetic_temperature",
        "larger minibatches",
        sampler(0.01, 1e-7),
        functools.partial(cross_entropy, size=4),
        network(),
        3_000,
    ),
    "a hot network": ("temperature_too_hot", "lower temperature", sampler(0.01, 3e-2), cross_entropy, network(), 2_000),
    "a cold plateau": ("loss_not_falling", "three times the temperature", sampler(0.01, 1e-7), plateau_loss, plateau(), 2_000),
    "absurd examples": ("energy_outliers", "robust", sampler(0.001, 0.1), regression_with_outliers, jnp.full(10, 3.0), 6_000),
    "a tiny step size": ("energy_drifting", "higher learning_rate", sampler(1e-5, 1e-3), bowl, jnp.ones(20), 4_000),
    "plain hills for a posterior": (
        "bias_filling",
        "AdaptiveBiasingForce",
        exact(0.05, 1.0, bias=Metadynamics(bias_factor=None)),
        gaussian,
        jnp.ones(3),
        10_000,
    ),
    "a young adaptive force": ("bias_filling", "times the steps", exact(0.05, 1.0, **POSTERIOR), gaussian, jnp.ones(3), 4_000),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_run_is_named(name):
    wanted, advice, *rest = BAD[name]
    report = report_on(*rest)
    assert [finding.name for finding in report.findings] == [wanted], str(report)
    assert advice in report.findings[0].advice
    assert not report.healthy
    assert wanted in str(report)
    assert report.findings[0].figures
    assert all(np.isfinite(figure) for figure in report.figures.values())


def test_every_finding_has_a_bad_run():
    table = diagnostics.report.__doc__.split("=\n")[2]
    named = {wanted for wanted, *_ in BAD.values()} | {wanted for wanted, *_ in ELSEWHERE.values()}
    # Those of samples have theirs in test_report_chains.
    assert {line.split()[0] for line in table.splitlines()[:-1] if "samples:" not in line} == named


GOOD = {
    "a posterior in 3 dimensions": (exact(0.05, 1.0, **POSTERIOR), gaussian, jnp.ones(3), 20_000),
    "a network on digits": (sampler(0.01, 1e-4), cross_entropy, network(), 4_000),
    "20,000 parameters": (sampler(0.05, 1e-4), bowl, jnp.full(20_000, 0.04), 3_000),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_run_has_no_finding(name):
    report = report_on(*GOOD[name])
    assert report.healthy, str(report)
    assert not report.findings
    assert str(report).startswith("healthy: no finding")
    assert [reason for reason in report.unchecked if "loss" not in reason] == []


def handed_over(learning_rate):
    explorer, loss, params, _ = GOOD["20,000 parameters"]
    tx = ctld_optax.phase_switch(explorer, optax.sgd(learning_rate, momentum=0.9), 3_000)
    return report_on(explorer, loss, params, 3_200, tx=tx)


def replicas(sampler_of, loss, starts, num_steps):
    """The report on chains that start at `starts`, each with its sampler."""
    states = jax.vmap(lambda index, start: sampler_of(index).init(start))(jnp.arange(len(starts)), starts)
    one = sampler_of(0)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = one.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), (diagnostics.snapshot(state), value)

    def chain(params, state):
        (_, state), rows = jax.lax.scan(step, (params, state), length=num_steps)
        return (*rows, state)

    trajectory, value, state = jax.jit(jax.vmap(chain))(starts, states)
    return diagnostics.report(trajectory, one, value=value, num_params=starts[0].size, state=state)


def two_wells(x):
    """Two deep wells, one higher than the other."""
    return 8.0 * jnp.sum(jnp.square(jnp.square(x) - 1.0)) + 0.5 * jnp.sum(x)


def own_key(index, **changes):
    return ctld_optax.posterior_sampler(0.005, 0.1, key=jax.random.fold_in(jax.random.key(0), index), **changes)


def with_gradient(head):
    trajectory, value, state = run(*GOOD["a posterior in 3 dimensions"])
    grads = {"body": jnp.ones(2), "head": jnp.asarray([head])}
    explorer = exact(0.05, 1.0, **POSTERIOR)
    return diagnostics.report(trajectory, explorer, value=value, num_params=3, state=state, grads=grads)


# finding: a word of it, the bad run, a good one of the same kind
ELSEWHERE = {
    "after the switch": ("diverged_after_switch", "clip", lambda: handed_over(5.0), lambda: handed_over(0.05)),
    "one key": (
        "replicas_share_noise",
        "jax.vmap(lambda key, params: ctld(..., key=key).init(params))",
        lambda: replicas(lambda _: own_key(0), gaussian, jnp.ones((3, 2)), 8_000),
        lambda: replicas(own_key, gaussian, jnp.ones((3, 2)), 8_000),
    ),
    "two wells": (
        "replicas_disagree",
        "a larger strength",
        lambda: replicas(own_key, two_wells, jnp.asarray([[1.0], [-1.0]]), 20_000),
        lambda: replicas(own_key, two_wells, jnp.asarray([[1.0], [1.0]]), 20_000),
    ),
    "a head that is not used": ("leaves_without_gradient", "partition", lambda: with_gradient(0.0), lambda: with_gradient(1.0)),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_more_than_one_phase_or_chain_shows_is_named(name):
    wanted, advice, bad, good = ELSEWHERE[name]
    (found,) = [finding for finding in bad().findings if finding.name == wanted]
    assert advice in found.advice
    assert wanted not in {finding.name for finding in good().findings}


@pytest.mark.parametrize(("ratio", "is_found"), [(1.09, False), (1.11, True)])
def test_replicas_disagree_from_a_deviation_of_a_tenth_more_on(ratio, is_found):
    """Losses of two chains with mean and variance known: all together deviate `ratio` times as much as within one."""
    constant = ctld_optax.posterior_sampler(0.1, key=0, tempering=None)
    trajectory, *_ = run(constant, gaussian, jnp.ones(3), 2_000)
    both = jax.tree.map(lambda row: np.stack([row, row]), trajectory)
    value = np.random.default_rng(0).normal(size=(2, 2_000))
    settled = value[:, 400:]
    value = (value - settled.mean(axis=1, keepdims=True)) / settled.std(axis=1, keepdims=True)
    value[1] += np.sqrt(2.0 * (ratio**2 - 1.0))  # the variance of two means is half the square of their difference
    report = diagnostics.report(both, constant, value=value)
    assert report.figures["deviation of the loss, all replicas over one"] == pytest.approx(ratio)
    assert [finding.name for finding in report.findings] == ["replicas_disagree"] * is_found


def test_a_loss_that_is_finite_and_higher_than_ever_has_diverged_too():
    explorer, loss, params, _ = GOOD["20,000 parameters"]
    tx = ctld_optax.phase_switch(explorer, optax.sgd(0.05, momentum=0.9), 1_000)
    trajectory, value, _ = run(explorer, loss, params, 1_100, tx=tx)

    def names(end):
        return {finding.name for finding in diagnostics.report(trajectory, explorer, value=value.at[-30:].set(end)).findings}

    highest = float(value[:1_000].max())
    assert "diverged_after_switch" in names(1.1 * highest)
    assert "diverged_after_switch" not in names(0.9 * highest)


def test_a_leaf_without_gradient_is_named():
    assert "['head']" in str(with_gradient(0.0))


def test_a_temperature_of_zero_is_not_called_a_value_that_is_not_finite():
    report = report_on(exact(0.05, 0.0), gaussian, jnp.ones(3), 500)
    assert [finding.name for finding in report.findings] == ["steps_skipped"]
    assert "the temperature is 0, and an exact coupling divides by it" in report.findings[0].says
    assert 'coupling="standardized"' in report.findings[0].advice
    assert report_on(exact(0.05, 0.0, tempering=None), gaussian, jnp.ones(3), 500).healthy


def test_steps_after_the_hand_over_do_not_count():
    explorer, loss, params, num_steps = GOOD["a network on digits"]
    tx = ctld_optax.phase_switch(explorer, optax.sgd(0.01, momentum=0.9), num_steps)
    report = report_on(explorer, loss, params, 2 * num_steps, tx=tx)
    assert report.healthy, str(report)
    assert report.figures["steps"] == num_steps


@pytest.fixture(scope="module")
def posterior_run():
    return run(*GOOD["a posterior in 3 dimensions"])


def test_a_thinned_record_is_enough_for_all_but_round_trips(posterior_run):
    trajectory, value, state = posterior_run
    chosen = slice(63, None, 64)
    thin = jax.tree.map(lambda row: row[chosen], trajectory)
    report = diagnostics.report(thin, exact(0.05, 1.0, **POSTERIOR), value=value[chosen], num_params=3, state=state)
    assert report.healthy, str(report)
    assert report.unchecked == ("round trips: rows are 64 steps apart, and a free alpha takes 59 for one.",)
    assert report.figures["steps"] == pytest.approx(20_000, abs=64)


def test_a_recorder_feeds_it():
    explorer, loss, params, _ = GOOD["20,000 parameters"]
    state = explorer.init(params)
    recorder = Recorder({"loss": 0.0, "sampler": diagnostics.snapshot(state)}, 512)

    def step(carry, _):
        params, state, log = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = explorer.update(grads, state, params, value=value)
        log = recorder.record(log, {"loss": value, "sampler": diagnostics.snapshot(state)})
        return (optax.apply_updates(params, updates), state, log), None

    (_, _, log), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=3_000))((params, state, recorder.init()))
    kept = recorder.read(log).values
    start = float(loss(params))
    report = diagnostics.report(kept["sampler"], explorer, value=kept["loss"], num_params=20_000, initial_value=start)
    assert report.healthy, str(report)
    assert not report.unchecked


def test_replicas_are_pooled(posterior_run):
    trajectory, value, _ = posterior_run
    halves = jax.tree.map(lambda row: row.reshape(2, -1), trajectory._replace(count=jnp.tile(jnp.arange(1, 10_001), 2)))
    report = diagnostics.report(halves, exact(0.05, 1.0, **POSTERIOR), value=value.reshape(2, -1), num_params=3)
    whole = diagnostics.report(trajectory, exact(0.05, 1.0, **POSTERIOR), value=value, num_params=3)
    assert report.figures["runs"] == 2
    assert report.figures["round trips of a free alpha"] == pytest.approx(whole.figures["round trips of a free alpha"])
    assert report.figures["share in the window"] == pytest.approx(whole.figures["share in the window"], abs=0.05)
    assert report.healthy


def test_what_is_not_given_is_said(posterior_run):
    report = diagnostics.report(posterior_run[0], exact(0.05, 1.0, **POSTERIOR))
    assert report.healthy
    assert [reason.split(":")[0] for reason in report.unchecked] == ["the energy", "the kinetic temperature", "the bias"]
    assert "not checked: the bias" in str(report)
    without_sampler = diagnostics.report(posterior_run[0])
    assert [reason.split(":")[0] for reason in without_sampler.unchecked] == [
        "the loss",
        "the energy",
        "the kinetic temperature",
    ]
    constant = sampler(0.05, 1.0, tempering=None)
    report = diagnostics.report(run(constant, gaussian, jnp.ones(3), 2_000)[0], constant, num_params=3)
    assert report.healthy
    assert report.figures["kinetic temperature / target"] == pytest.approx(1.0, abs=0.15)


def test_a_wrong_number_of_parameters_shows(posterior_run):
    trajectory, value, state = posterior_run
    report = diagnostics.report(trajectory, exact(0.05, 1.0, **POSTERIOR), value=value, num_params=30, state=state)
    assert [finding.name for finding in report.findings] == ["kinetic_temperature"]
    assert "num_params" in report.findings[0].advice


def test_a_temperature_that_changes_is_followed():
    # Kinetic temperatures against a schedule that falls tenfold; against its first value they would be a quarter.
    cooling = sampler(0.05, optax.linear_schedule(1e-3, 1e-4, 3_000))
    trajectory, value, _ = run(cooling, bowl, jnp.full(2_000, 0.1), 3_000)
    report = diagnostics.report(trajectory, cooling, value=value, num_params=2_000)
    assert report.figures["kinetic temperature / target"] == pytest.approx(1.0, abs=0.1)


def test_a_first_row_that_comes_late_needs_the_initial_value():
    explorer, loss, params, num_steps = GOOD["20,000 parameters"]
    trajectory, value, _ = run(explorer, loss, params, num_steps)
    late = jax.tree.map(lambda row: row[500:], trajectory)
    judge = functools.partial(diagnostics.report, late, explorer, value=value[500:], num_params=20_000)
    assert any("initial_value" in reason for reason in judge().unchecked)
    assert judge(initial_value=float(value[0])).healthy
    assert [finding.name for finding in judge(initial_value=0.1).findings] == ["temperature_too_hot"]


def test_bad_input_is_refused(posterior_run):
    trajectory, value, _ = posterior_run
    with pytest.raises(ValueError, match=r"value must have the shape of the trajectory, \(20000,\), got \(7,\)"):
        diagnostics.report(trajectory, value=value[:7])
    with pytest.raises(ValueError, match=r"alpha has shape \(\)"):
        diagnostics.report(jax.tree.map(lambda row: row[0], trajectory))
    switch = ctld_optax.phase_switch(sampler(0.1, 0.1), optax.sgd(0.1, momentum=0.9), 5)
    with pytest.raises(TypeError, match="the one that was given to `phase_switch`"):
        diagnostics.report(trajectory, switch)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_effective_size_of_a_known_process(correlation):
    # An AR(1) process has the autocorrelation time (1 + c) / (1 - c). Of eight runs of 5,000 it is known to 3 %, for c = 0.9.
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 5_000))
    for step in range(1, rows.shape[1]):
        rows[:, step] = correlation * rows[:, step - 1] + np.sqrt(1.0 - correlation**2) * rows[:, step]
    np.testing.assert_allclose(effective_size(rows), rows.size * (1 - correlation) / (1 + correlation), rtol=0.15)
    assert effective_size(np.zeros((2, 10))) == 20.0


@pytest.mark.parametrize(("step_size", "momentum"), [(0.02, 0.9), (0.1, 0.5)])
def test_a_free_alpha_makes_the_trips_that_are_due(step_size, momentum):
    # strength = 0: no force at all. 500 trips are due, each about as variable as it is long: 4.5 % of scatter. The walk is not
    # Brownian over the memory of r_alpha, in which it moves by 0.2 and 0.2: it makes about a third less.
    tempering = ctld_optax.PolynomialTempering(strength=0.0)
    free = sampler(0.05, 1.0, bias=None, tempering=tempering, alpha_step_size=step_size, alpha_momentum=momentum)
    trip = free_trip(Run(_one_row(), free, None, None, None, None, None), tempering)
    num_steps = int(500 * trip)
    trajectory, _, _ = run(free, gaussian, jnp.ones(1), num_steps)
    assert 275 < diagnostics.round_trips(trajectory.alpha) < 600


def _one_row():
    return diagnostics.Snapshot(*(np.ones(1) for _ in diagnostics.Snapshot._fields))
