"""`ctld` as an Optax transformation: what it equals, what it keeps, what it survives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import ctld_optax
from ctld_optax._arrays import noise as sources
from tests.helpers import assert_finite, assert_identical, plain, run, signature, stepper

# At temperature 0 this is optax.sgd.


@pytest.mark.parametrize(("momentum", "scheduled"), [(0.9, False), (0.9, True), (0.0, False)])
def test_zero_temperature_is_sgd_bit_for_bit(momentum, scheduled, make, loss, params):
    learning_rate = optax.cosine_decay_schedule(0.05, 80, alpha=0.1) if scheduled else 0.05
    cold = make(learning_rate=learning_rate, temperature=0.0, momentum=momentum)
    sgd = optax.with_extra_args_support(optax.sgd(learning_rate, momentum=momentum))
    ours, theirs = params, params
    state, sgd_state = cold.init(params), sgd.init(params)
    our_step, their_step = stepper(cold, loss), stepper(sgd, loss)
    for _ in range(100):
        ours, state = our_step(ours, state)
        theirs, sgd_state = their_step(theirs, sgd_state)
        assert_identical((ours, state.momentum), (theirs, sgd_state[0].trace))
    assert np.max(np.abs(ours["out"] - params["out"])) > 0.01
    assert state.skipped == 0
    assert state.alpha != 0.0  # alpha lives on: only the noise is off


@pytest.mark.parametrize("coupling", ["hamiltonian", "potential"])
def test_zero_temperature_with_an_exact_coupling_leaves_alpha_where_it_is(coupling, make, loss, params):
    # H = U / T has no meaning there: the scalar half stands still, and the steps are counted.
    ours, state = run(make(temperature=0.0, coupling=coupling), loss, params, 30)
    theirs, _ = run(optax.with_extra_args_support(optax.sgd(0.01, momentum=0.9)), loss, params, 30)
    assert_identical(ours, theirs)
    assert_finite(state)
    assert (state.alpha, state.skipped) == (0.0, 30)


# One step by formula.


def test_one_step_of_the_potential_by_formula(make, params):
    """What another coupling has not: the momentum's scale, the drift, and a force that knows nothing of the momentum."""
    tempering = ctld_optax.GeometricTempering()
    transformation = make(learning_rate=0.2, temperature=0.3, momentum=0.7, alpha_step_size=0.05, alpha_momentum=0.6, bias=None,
                          coupling="potential", tempering=tempering)  # fmt: skip
    variance = 2 * 0.3 * 0.3 / 0.2  # of the noise at beta = 1
    state = transformation.init(params)._replace(
        alpha=jnp.float32(0.9), r_alpha=jnp.float32(0.5), beta=jnp.float32(0.6), noise_variance=jnp.float32(variance / 0.9)
    )

    def step(momentum, value):
        started = state._replace(momentum=jax.tree.map(lambda p: momentum * p, params))
        return jax.jit(transformation.update)(params, started, params, value=jnp.float32(value))

    (updates, after), (_, at_rest), (_, lower) = step(0.3, 2.5), step(0.0, 2.5), step(0.3, 0.7)
    next_beta = tempering.beta(after.alpha + 0.05 * after.r_alpha)
    np.testing.assert_allclose(after.beta, next_beta, rtol=1e-6)
    drift = (1.0 + 0.7 * np.sqrt(0.6 / next_beta)) / 1.7
    for moved, still, update, p in zip(*map(jax.tree.leaves, (after.momentum, at_rest.momentum, updates, params)), strict=True):
        np.testing.assert_allclose(moved - still, 0.7 * np.sqrt(0.9 / 0.6) * 0.3 * p, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(update, -0.2 * drift * moved, rtol=1e-5)
    assert after.r_alpha == at_rest.r_alpha
    slope = tempering.beta_gradient(after.alpha)
    np.testing.assert_allclose(after.r_alpha - lower.r_alpha, -0.05 * slope * (2.5 - 0.7) / 0.3, rtol=1e-4)


@pytest.mark.parametrize(("integrator", "share"), [("euler", 1.0), ("baoab", 0.5)])
def test_one_step_by_formula(integrator, share, make, params):
    """m, the update and alpha of one step, in float64 from the docstring, from a state that is nowhere special.

    The first step has no noise of an earlier one to take in.
    """
    transformation = make(learning_rate=0.2, temperature=0.3, momentum=0.7, alpha_step_size=0.05, alpha_momentum=0.6, bias=None,
                          coupling="hamiltonian", noise="gaussian", integrator=integrator)  # fmt: skip
    state = transformation.init(params)._replace(alpha=jnp.float32(0.9), r_alpha=jnp.float32(0.5), beta=jnp.float32(0.6))
    state = state._replace(momentum=jax.tree.map(lambda p: 0.3 * p, params))
    updates, after = jax.jit(transformation.update)(params, state, params, value=jnp.float32(2.5))

    noise_scale = share * np.sqrt(2 * 0.3 * 0.3 / (0.2 * 0.6))
    noise = jax.tree.map(lambda m, p: (0.7 * 0.3 * p + p - m) / noise_scale, after.momentum, params)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(noise)])
    assert scipy.stats.kstest(flat, "norm").pvalue > 1e-3  # unit variance, whatever the momentum and the gradient
    np.testing.assert_allclose(updates["out"], -0.2 * np.asarray(after.momentum["out"]), rtol=1e-6)

    squares = sum(np.sum(np.asarray(m, np.float64) ** 2) for m in jax.tree.leaves(after.momentum))
    kinetic = 0.2 * squares / 2
    np.testing.assert_allclose(after.kinetic_energy, kinetic, rtol=1e-6)
    np.testing.assert_allclose(after.energy_mean, 2.5 + kinetic, rtol=1e-6)
    alpha = 0.9 + 0.05 * 0.5
    z = (alpha - 0.4) / 1.1
    np.testing.assert_allclose(after.alpha, alpha, rtol=1e-6)
    np.testing.assert_allclose(after.beta, 1 - 0.85 * (3 * z**2 - 2 * z**3), rtol=1e-5)
    force = 0.85 * (6 * z - 6 * z**2) / 1.1 * (2.5 + kinetic) / 0.3
    xi = (after.r_alpha - 0.6 * 0.5 - 0.05 * force) / (share * np.sqrt(2 * 0.4))
    _, _, alpha_key = jax.random.split(state.key, 3)
    np.testing.assert_allclose(xi, sources.standard_normal(alpha_key, jnp.float32), atol=1e-4)


@pytest.mark.parametrize("beta", [1.0, 0.15])
def test_noise_has_the_variance_of_the_temperature(beta):
    size, key = 400_000, 5
    transformation = ctld_optax.ctld(0.1, 0.02, 0.8, key=key, integrator="euler")
    params = jnp.zeros(size)
    state = transformation.init(params)._replace(beta=jnp.float32(beta))
    updates, after = jax.jit(transformation.update)(params, state, params, value=jnp.float32(0.0))
    variance = 2 * 0.2 * 0.02 / (0.1 * beta)
    # Standard errors sqrt(variance / n) and variance sqrt(2 / n); five of them.
    assert abs(np.mean(after.momentum)) < 5 * np.sqrt(variance / size)
    assert abs(np.var(after.momentum) / variance - 1.0) < 5 * np.sqrt(2 / size)
    np.testing.assert_allclose(updates, -0.1 * after.momentum, rtol=1e-6)


def test_schedules_of_both_are_read_at_the_step(params):
    rates, temperatures = jnp.asarray([0.1, 0.2, 0.4]), jnp.asarray([1.0, 0.0, 4.0])
    transformation = ctld_optax.ctld(lambda t: rates[t], lambda t: temperatures[t], 0.0, key=0, tempering=None)
    zeros = optax.tree.zeros_like({"x": jnp.zeros(200_000)})
    state, update = transformation.init(zeros), jax.jit(transformation.update)
    rest = 0.0  # variance of what the noise of the last step leaves
    for t in range(3):
        updates, state = update(zeros, state, zeros)
        # momentum 0: update = lr/2 (sqrt(2 T / lr) xi + the same of the last step, thermal at the new rate if there is a T)
        if t > 0 and temperatures[t] > 0.0:
            rest = rest * rates[t - 1] / rates[t]
        fresh = 2 * temperatures[t] / rates[t]
        np.testing.assert_allclose(np.std(updates["x"]), rates[t] * np.sqrt(fresh + rest) / 2, rtol=0.01)
        rest = fresh


def rms_r(rates, *, temperature=0.01, momentum=0.9, size=20_000, integrator="baoab"):
    """<r^2> = lr <m^2> / T after each step of a schedule, without a force."""
    tx = ctld_optax.ctld(rates, temperature, momentum, key=0, tempering=None, integrator=integrator)
    zeros = jnp.zeros(size)

    def step(state, _):
        _, new_state = tx.update(zeros, state, zeros)
        return new_state, rates(state.count) * jnp.mean(jnp.square(new_state.momentum)) / temperature

    return np.asarray(jax.jit(lambda s: jax.lax.scan(step, s, None, length=400)[1])(tx.init(zeros)))


SCHEDULES = {
    "warm restarts": optax.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": 0.05, "warmup_steps": 5, "decay_steps": 100, "end_value": 0.0}] * 4
    ),
    "steps up and down": optax.piecewise_constant_schedule(0.001, {100: 50.0, 200: 0.01, 300: 100.0}),
    "one cycle": optax.cosine_onecycle_schedule(400, 0.05),
}


@pytest.mark.parametrize("integrator", ["baoab", "euler"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_momenta_stay_thermal_when_the_learning_rate_changes(name, integrator):
    """In 20,000 dimensions <r^2> scatters by 1 %. At learning rates near 0 it is hidden: m is large, and moves nothing."""
    found = rms_r(SCHEDULES[name], integrator=integrator)
    heat = 1.0 if integrator == "baoab" else 2.0 / 1.9
    assert np.all(np.isfinite(found))
    assert np.max(found[60:]) < 1.06 * heat
    # A step at learning rate 0 has friction and no noise: the 1/(1 - mu) steps that it takes to recover are left out.
    rates = np.asarray([SCHEDULES[name](step) for step in range(400)])
    moving = np.asarray([np.all(rates[step - 40 : step + 1] > 0.0) for step in range(60, 400)])
    assert np.sum(moving) > 100
    assert np.min(found[60:][moving]) > 0.94 * heat


def test_a_learning_rate_set_by_hand_keeps_the_momenta_thermal():
    tx = optax.inject_hyperparams(ctld_optax.ctld, static_args=("key", "tempering"))(0.001, 0.01, 0.9, key=0, tempering=None)
    zeros = jnp.zeros(20_000)
    state, update = tx.init(zeros), jax.jit(tx.update)
    for rate in (0.001, 0.05, 0.002):
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        for _ in range(60):
            _, state = update(zeros, state, zeros)
            found = rate * jnp.mean(jnp.square(state.inner_state.momentum)) / 0.01
            assert found < 1.06
        assert found > 0.94


def test_at_temperature_zero_nothing_is_rescaled():
    """The trace is that of SGD through a schedule that rises and touches 0."""
    rates = optax.piecewise_constant_schedule(0.01, {3: 20.0, 6: 0.0, 9: 1.0})
    ours, theirs = ctld_optax.ctld(rates, 0.0, 0.9, key=0), optax.sgd(rates, momentum=0.9)
    params = jnp.asarray([0.3, -0.7])
    state, sgd_state = ours.init(params), theirs.init(params)
    for t in range(12):
        updates, state = ours.update(params + t, state, params, value=jnp.float32(1.0))
        expected, sgd_state = theirs.update(params + t, sgd_state, params)
        assert_identical((updates, state.momentum), (expected, sgd_state[0].trace))


def test_warm_up_from_zero_stays_finite(loss, params, make):
    for start in ("zeros", "stationary"):
        transformation = make(learning_rate=optax.linear_schedule(0.0, 0.01, 5), initial_momentum=start)
        assert_finite(transformation.init(params))
        assert_finite(run(transformation, loss, params, 10))


def test_initial_momentum(make):
    params = jnp.zeros(200_000)
    assert not np.any(make().init(params).momentum)
    momentum = np.asarray(make(initial_momentum="stationary", learning_rate=0.05, temperature=0.2).init(params).momentum)
    r = momentum * np.sqrt(0.05 / 0.2)  # up to its sign the paper's r ~ N(0, I)
    assert abs(np.mean(r)) < 5 / np.sqrt(r.size)
    assert abs(np.var(r) - 1.0) < 5 * np.sqrt(2 / r.size)


def test_initial_r_alpha_is_standard_normal():
    draws = jax.vmap(lambda key: ctld_optax.ctld(0.1, 0.1, key=key).init(jnp.zeros(1)).r_alpha)(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert scipy.stats.kstest(draws, "norm").pvalue > 1e-3


def test_without_tempering_alpha_rests_and_no_value_is_needed(make, params):
    transformation = make(tempering=None)
    state, update = transformation.init(params), jax.jit(transformation.update)
    for _ in range(20):
        _, state = update(params, state, params)
    assert (state.alpha, state.beta, state.skipped) == (0.0, 1.0, 0)
    assert state.kinetic_energy > 0.0


def test_alpha_never_leaves_between_reflecting_walls_but_does_between_soft_ones(loss, params, make):
    def trajectory(**changes):
        transformation = make(alpha_step_size=0.3, **changes)
        step = stepper(transformation, loss)

        def body(carry, _):
            carry = step(*carry)
            return carry, carry[1].alpha

        return np.asarray(jax.jit(lambda c: jax.lax.scan(body, c, None, 3000)[1])((params, transformation.init(params))))

    hard = trajectory()
    assert np.max(np.abs(hard)) <= 1.5
    assert np.ptp(hard) > 2.5
    assert np.max(np.abs(trajectory(confinement="force"))) > 1.5


# Input that is not finite.


BAD = {
    "value nan": lambda g: (g, jnp.nan),
    "value inf": lambda g: (g, jnp.inf),
    "value -inf": lambda g: (g, -jnp.inf),
    "gradient nan": lambda g: (g | {"out": g["out"].at[0, 1].set(jnp.nan)}, 1.0),
    "gradient inf": lambda g: (g | {"scale": jnp.asarray(-jnp.inf, g["scale"].dtype)}, 1.0),
    "gradient all nan": lambda g: (optax.tree.full_like(g, jnp.nan), jnp.nan),
    "gradient overflows the square": lambda g: (g | {"out": g["out"].at[0, 0].set(1e30)}, 1.0),
    "value overflows the square": lambda g: (g, 1e30),
}


@pytest.fixture(scope="module")
def guarded():
    """A transformation and its compiled update for either coupling."""
    built = {name: ctld_optax.ctld(1e-3, 0.1, key=0, coupling=name) for name in ("standardized", "hamiltonian")}
    return {name: (transformation, jax.jit(transformation.update)) for name, transformation in built.items()}


@pytest.mark.parametrize("coupling", ["standardized", "hamiltonian"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_leaves_the_scalars_and_is_counted(bad, coupling, guarded, params):
    transformation, update = guarded[coupling]
    state = transformation.init(params)
    for t in range(5):
        _, state = update(params, state, params, value=jnp.float32(t))
    grads, value = BAD[bad](params)
    updates, after = update(grads, state, params, value=jnp.float32(value))
    for name in ("alpha", "r_alpha", "beta", "bias", "energy_mean", "energy_var", "kinetic_energy"):
        np.testing.assert_array_equal(getattr(after, name), getattr(state, name), err_msg=name)
    assert (after.count, after.skipped) == (6, 1)
    assert_finite((updates, after))
    assert np.any(jax.random.key_data(after.key) != jax.random.key_data(state.key))
    # Entries that were good have taken their step.
    assert after.momentum["dense"]["kernel"][0, 0] != state.momentum["dense"]["kernel"][0, 0] or bad == "gradient all nan"

    moved = after
    for t in range(100):
        updates, moved = update(params, moved, params, value=jnp.float32(t % 3))
        assert_finite((updates, moved))
    assert moved.count == 106
    if bad != "gradient overflows the square":  # that one stays in the momentum, finite but too large to square, for some time
        assert moved.skipped == 1
        assert moved.alpha != after.alpha


def test_a_huge_but_finite_gradient_wears_off(make, params):
    transformation = make(momentum=0.5)
    state, update = transformation.init(params), jax.jit(transformation.update)
    _, state = update(optax.tree.full_like(params, 3e38), state, params, value=jnp.float32(1.0))
    _, state = update(optax.tree.full_like(params, 3e38), state, params, value=jnp.float32(1.0))  # the sum overflows
    for _ in range(150):
        updates, state = update(params, state, params, value=jnp.float32(1.0))
        assert_finite((updates, state))
    assert state.alpha != 0.0


def test_bad_first_step(make, params):
    transformation = make()
    state, update = transformation.init(params), jax.jit(transformation.update)
    _, state = update(params, state, params, value=jnp.float32(jnp.nan))
    _, state = update(params, state, params, value=jnp.float32(7.0))
    assert state.skipped == 1
    # The first energy that counts is the mean: the skipped one does not weigh in the bias correction.
    np.testing.assert_allclose(state.energy_mean, 7.0 + state.kinetic_energy, rtol=1e-6)
    assert state.energy_var == 0.0


# State, dtypes, tracing.


VARIANTS = [
    {},
    {"bias": None},
    {"bias": ctld_optax.Metadynamics(bias_factor=None)},
    {"tempering": None},
    {"initial_momentum": "stationary"},
    {"coupling": "hamiltonian", "confinement": "force"},
    {"learning_rate": optax.linear_schedule(0.0, 0.1, 5), "temperature": lambda count: 1.0 / (1.0 + count)},
    {"momentum_dtype": jnp.bfloat16},
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: ", ".join(changes) or "default")
def test_structure_and_dtypes_are_a_fixed_point(dtype, changes, make, params):
    params = optax.tree.cast(params, dtype)
    transformation = make(**changes)
    state = jax.eval_shape(transformation.init, params)
    updates, after = jax.eval_shape(lambda p, s: transformation.update(p, s, p, value=jnp.float32(1.0)), params, state)
    assert signature(after) == signature(state)
    assert signature(updates) == signature(params)
    assert not any(weak for *_, weak in signature(state)[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_structure_dtypes_and_one_compilation(dtype, make, loss, params):
    params = optax.tree.cast(params, dtype)
    transformation = make()
    state = transformation.init(params)
    before, params_before = signature(state), signature(params)
    traces = 0

    @jax.jit
    def step(params, state):
        nonlocal traces
        traces += 1
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
        assert signature(state) == before
        assert signature(params) == params_before
    assert traces == 1
    assert not any(weak for *_, weak in before[1])
    assert {m.dtype for m in jax.tree.leaves(state.momentum)} == {jnp.dtype("float32")}
    floats = (state.alpha, state.r_alpha, state.beta, state.bias, state.kinetic_energy, state.energy_mean, state.energy_var)
    assert all(x.dtype == jnp.float32 for x in floats)
    assert signature(jax.eval_shape(transformation.init, params)) == before
    assert_finite((params, state))


def test_weakly_typed_parameters_do_not_recompile(make):
    params = {"x": jnp.asarray(1.0), "y": jnp.full((2,), 2.0)}
    transformation = make()
    update, state = jax.jit(transformation.update), transformation.init(params)
    before = signature(state)
    _, state = update(params, state, params, value=1.0)
    assert signature(state) == before
    assert not any(weak for *_, weak in before[1])


@pytest.mark.parametrize("momentum_dtype", [jnp.bfloat16, jnp.float16, "float32"])
def test_momentum_dtype(momentum_dtype, make, params):
    transformation = make(momentum_dtype=momentum_dtype, temperature=1.0)
    # Gradients whose squares and their sum exceed what float16 holds, 65,504.
    grads = optax.tree.full_like(params, 300.0)
    state = transformation.init(params)
    updates, state = jax.jit(transformation.update)(grads, state, params, value=jnp.float32(1.0))
    assert {m.dtype for m in jax.tree.leaves(state.momentum)} == {jnp.dtype(momentum_dtype)}
    assert state.skipped == 0
    squares = sum(np.sum(np.asarray(m, np.float64) ** 2) for m in jax.tree.leaves(state.momentum))
    # XLA may square the entries before it rounds them to the momentum's dtype.
    np.testing.assert_allclose(state.kinetic_energy, 0.005 * squares, rtol=1e-3)
    assert updates["out"].dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_float64_parameters_have_float64_scalars(make):
    params = {"x": jnp.ones(3, jnp.float64), "y": jnp.ones(2, jnp.float32)}
    transformation = make()
    state = transformation.init(params)
    before = signature(state)
    updates, state = jax.jit(transformation.update)(params, state, params, value=jnp.float32(1.0))
    assert signature(state) == before
    assert state.alpha.dtype == state.bias.dtype == state.momentum["x"].dtype == updates["x"].dtype == jnp.float64
    assert state.momentum["y"].dtype == updates["y"].dtype == jnp.float32


def test_scan_equals_a_loop(make, loss, params):
    transformation = make()
    step = stepper(transformation, loss)
    looped = run(transformation, loss, params, 20)
    scanned = jax.jit(lambda c: jax.lax.scan(lambda c, _: (step(*c), None), c, None, 20)[0])(
        (params, transformation.init(params))
    )
    for a, b in zip(jax.tree.leaves(plain(looped)), jax.tree.leaves(plain(scanned)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_same_key_same_run_other_key_other_run(make, loss, params):
    step = stepper(make(), loss)  # the key is in the state alone: one program serves all
    first, second, other = (step(*step(params, make(key=key).init(params))) for key in (0, jax.random.key(0), 1))
    assert_identical(first, second)
    assert np.max(np.abs(first[0]["out"] - other[0]["out"])) > 1e-4


def test_vmap_over_keys_gives_independent_replicas(make, loss, params):
    keys = jax.random.split(jax.random.key(0), 3)
    init = jax.jit(lambda key: make(key=key).init(params))
    states = jax.vmap(init)(keys)
    assert len(np.unique(states.r_alpha)) == 3
    step = stepper(make(), loss)
    replicas, states = jax.vmap(step, in_axes=(None, 0))(params, states)
    assert len(np.unique(replicas["out"].reshape(3, -1), axis=0)) == 3
    for number, key in enumerate(keys):
        alone, state = step(params, init(key))
        np.testing.assert_allclose(replicas["out"][number], alone["out"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states.alpha[number], state.alpha, rtol=1e-5)


def test_donating_the_state_leaves_the_callers_key(make, loss, params):
    key = jax.random.key(3)
    step = jax.jit(stepper(make(), loss), donate_argnums=(0, 1))
    for _ in range(2):
        transformation = make(key=key, initial_momentum="stationary")
        copy, state = jax.tree.map(jnp.copy, params), transformation.init(params)
        for _ in range(3):
            copy, state = step(copy, state)
        assert_finite((copy, state))
    assert not key.is_deleted()
    again = transformation.init(params)  # and the transformation can be used again
    assert not again.key.is_deleted()


def test_update_does_not_change_its_arguments(make, params):
    transformation = make()
    state = transformation.init(params)
    before = plain((params, state))
    jax.jit(transformation.update)(params, state, params, value=1.0)
    assert_identical(before, plain((params, state)))


@pytest.mark.parametrize("name", ["standard", "hamiltonian and walls", "plain hills", "constant temperature"])
def test_strict_modes(name, make, loss, params):
    changes = {
        "standard": {"learning_rate": optax.linear_schedule(0.0, 0.01, 5), "initial_momentum": "stationary"},
        "hamiltonian and walls": {"coupling": "hamiltonian", "confinement": "force"},
        "plain hills": {"bias": ctld_optax.Metadynamics(bias_factor=None)},
        "constant temperature": {"tempering": None, "temperature": optax.constant_schedule(0.01)},
    }[name]
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_key_reuse(True),
        jax.debug_nans(True),
        jax.debug_infs(True),
    ):
        transformation = make(**changes)
        result = run(transformation, lambda p: jnp.sum(jnp.square(p["x"])), {"x": jnp.ones((2, 3))}, 4)
        switched = ctld_optax.phase_switch(transformation, optax.sgd(0.01, momentum=0.9), 2)
        result = (result, run(switched, lambda p: jnp.sum(jnp.square(p["x"])), {"x": jnp.ones((2, 3))}, 4))
    assert_finite(result)


def test_empty_tree_moves_alpha_only(make):
    transformation = make()
    state = transformation.init({})
    updates, state = jax.jit(transformation.update)({}, state, {}, value=jnp.float32(1.0))
    assert updates == {}
    assert state.kinetic_energy == 0.0
    assert state.alpha != 0.0


def test_parameters_of_size_zero_and_scalars(make):
    params = {"none": jnp.zeros((0, 3)), "one": jnp.ones(())}
    transformation = make()
    updates, state = jax.jit(transformation.update)(params, transformation.init(params), params, value=jnp.float32(1.0))
    assert updates["none"].shape == (0, 3)
    assert updates["one"] != 0.0
    assert_finite(state)


def test_unknown_extra_arguments_are_let_through(make, params):
    transformation = make()
    jax.eval_shape(lambda p: transformation.update(p, transformation.init(p), p, value=1.0, colour="red"), params)


def test_energy_offset_does_not_change_the_walk_of_alpha(make, params):
    """The standardized coupling sees a loss of 10 and one of 1,010 alike."""

    transformation = make(temperature=0.001)
    noise = np.random.default_rng(0).normal(size=300).astype(np.float32)

    def body(state, value):
        _, state = transformation.update(params, state, params, value=value)
        return state, state.alpha

    walk = jax.jit(lambda values: jax.lax.scan(body, transformation.init(params), values)[1])

    def alpha(offset):
        return np.asarray(walk(jnp.asarray(noise + offset)))

    # 1,010 in float32 is good to 6e-5 of the spread; alpha integrates 300 such errors.
    np.testing.assert_allclose(alpha(1010.0), alpha(10.0), atol=5e-3)


# A neural network.


def test_alpha_is_uniform_over_a_network():
    """Must hold whatever the number of parameters: the share of time at the base temperature is delta / delta_prime = 0.267."""
    rng = np.random.default_rng(0)
    inputs, labels = jnp.asarray(rng.normal(size=(64, 100)), jnp.float32), jnp.asarray(rng.integers(0, 10, 64))
    shapes = [(100, 128), (128, 64), (64, 10)]  # 21,632 parameters
    params = [jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32) for s in shapes]

    def loss(params):
        hidden = inputs
        for matrix in params[:-1]:
            hidden = jnp.tanh(hidden @ matrix)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(hidden @ params[-1], labels))

    transformation = ctld_optax.ctld(0.05, 1e-4 / 64, key=0)
    step = stepper(transformation, loss)

    def body(carry, _):
        carry = step(*carry)
        return carry, (carry[1].alpha, carry[1].beta)

    num_steps = 5000
    (_, state), (alpha, beta) = jax.jit(lambda c: jax.lax.scan(body, c, None, num_steps))((params, transformation.init(params)))
    counts, _ = np.histogram(alpha, bins=15, range=(-1.5, 1.5))
    assert np.sum(counts) == num_steps  # never outside
    share = counts / num_steps
    assert abs(np.mean(np.abs(alpha) <= 0.4) - 0.267) < 0.05
    assert np.sum(share[share > 0] * np.log(15 * share[share > 0])) < 0.03
    assert state.skipped == 0
    assert 0.149 < np.min(beta) < 0.2
