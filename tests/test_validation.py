"""Errors by their messages: what came, why it is wrong, what to write instead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._arrays import compat
from tests.helpers import assert_finite

BASE = {"learning_rate": 0.1, "temperature": 0.1, "momentum": 0.9, "key": 0}


def build(**changes):
    return ctld_optax.ctld(**(BASE | changes))


def trace_update(transformation, value, params=None):
    """Traces one update without compiling it."""
    params = {"x": jnp.ones(3)} if params is None else params
    return jax.eval_shape(lambda p, v: transformation.update(p, transformation.init(p), p, value=v), params, value)


def test_missing_value_says_what_to_write():
    transformation = build()
    params = {"x": jnp.ones(3)}
    with pytest.raises(TypeError) as caught:
        transformation.update(params, transformation.init(params), params)
    message = str(caught.value)
    for recipe in (
        "tx.update(grads, opt_state, params, value=loss)",
        'ctld_optax.ctld(learning_rate, temperature, key=0, coupling="kinetic")',
        "optimizer.update(model, grads, value=loss)",
    ):
        assert recipe in message


@pytest.mark.parametrize("value", [jnp.ones(3), jnp.ones((1,)), jnp.zeros((2, 0))])
def test_value_must_be_a_scalar(value):
    with pytest.raises(ValueError, match=r"needs `value` to be a scalar .*got shape \(.*value=loss.mean\(\)"):
        trace_update(build(), value)


@pytest.mark.parametrize("value", [jnp.complex64(1.0), jnp.int32(1), jnp.asarray(True)])
def test_value_must_be_real(value):
    with pytest.raises(TypeError, match=r"needs `value` to be a real floating-point scalar, got dtype"):
        trace_update(build(), value)


@pytest.mark.parametrize("value", [(1.0, {"logits": 0.0}), [1.0], {"loss": 1.0}])
def test_a_loss_with_auxiliary_output_is_told_apart(make, params, value):
    tx = make()
    with pytest.raises(
        TypeError, match=r"got a (tuple|list|dict)\. If the loss function has an auxiliary output: .* `value=loss`"
    ):
        tx.update(params, tx.init(params), params, value=value)


@pytest.mark.parametrize("value", [1.0, np.float64(1.0), np.float32(1.0), jnp.bfloat16(1.0), jnp.float16(1.0)])
def test_any_real_scalar_is_a_value(value):
    _, state = trace_update(build(), value)
    assert state.energy_mean.dtype == jnp.float32


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "wrong", "interval"),
    [
        ("learning_rate", (0.0, -0.1, NAN, INF, np.float32(-1.0)), r"\(0, inf\)"),
        # Of an array, which may be a step of a schedule, 0 is a learning rate too.
        ("learning_rate", (jnp.float32(-0.1), np.asarray(NAN), jnp.asarray(INF)), r"\[0, inf\)"),
        ("temperature", (-0.1, NAN, INF, -INF, np.float64(-1.0), -1, jnp.float32(-1.0), jnp.asarray(NAN)), r"\[0, inf\)"),
        ("momentum", (-0.1, 1.0, 1.5, NAN, jnp.float32(1.0), np.asarray(-0.1)), r"\[0, 1\)"),
        ("alpha_step_size", (0.0, -0.02, NAN, INF), r"\(0, inf\)"),
        ("alpha_momentum", (-0.1, 1.0, NAN), r"\[0, 1\)"),
    ],
)
def test_hyperparameters_out_of_range(name, wrong, interval):
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{name} must be a finite number in {interval}, got "):
            build(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "temperature", "momentum", "alpha_step_size", "alpha_momentum"])
@pytest.mark.parametrize("wrong", [True, np.True_, "0.1", b"1", None, 0.1j, [0.1], (0.1,), {"lr": 0.1}])
def test_hyperparameters_that_are_no_numbers(name, wrong):
    with pytest.raises(TypeError, match=rf"^{name} must be a number(, |, a function or a PerLayer, )got "):
        build(**{name: wrong})


def test_an_array_that_is_known_is_looked_at_inside_jit_too():
    temperature = jnp.float32(-1.0)
    with pytest.raises(ValueError, match=r"^temperature must be a finite number"):
        jax.jit(lambda: build(temperature=temperature).init(jnp.ones(2)))()


def test_edges_of_the_ranges_are_allowed():
    build(temperature=0.0, momentum=0.0, alpha_momentum=0.0)
    build(learning_rate=1, temperature=np.float32(2.0))
    build(learning_rate=jnp.float32(0.0))
    build(learning_rate=jnp.float32(0.1), temperature=optax.constant_schedule(0.1))


@pytest.mark.parametrize(
    ("name", "known"), [("coupling", "'standardized', 'hamiltonian', "), ("confinement", "'reflect' or 'force'"),
                        ("initial_momentum", "'zeros' or 'stationary'"), ("noise", "'gaussian'")]
)  # fmt: skip
def test_unknown_options_list_the_known_ones(name, known):
    with pytest.raises(ValueError, match=rf"{name} must be {known}.*, got 'other'"):
        build(**{name: "other"})


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_momentum_dtype_must_be_real(dtype):
    with pytest.raises(TypeError, match="momentum_dtype must be a real floating-point dtype"):
        build(momentum_dtype=dtype)


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.zeros(2, jnp.complex64), jnp.asarray(True), np.arange(2)])
def test_parameters_must_be_real(leaf):
    with pytest.raises(TypeError, match=r"parameter \['a'\]\['b'\] must have a real floating-point dtype, got .*optax.masked"):
        build().init({"a": {"b": leaf}, "c": jnp.ones(2)})


@pytest.mark.parametrize("params", [[1.0, 2.0], {"x": 1.0}, 3.0, {"x": "text"}])
def test_parameters_must_be_arrays(params):
    with pytest.raises(TypeError, match=r"must be a jax array, got (float|str) .*Write jnp.asarray"):
        build().init(params)


def test_numpy_parameters_are_fine_and_count_as_float32_without_x64():
    state = build().init({"x": np.zeros(3), "y": np.zeros(2, np.float32)})
    assert {m.dtype for m in jax.tree.leaves(state.momentum)} == {jnp.dtype("float32")}
    assert state.alpha.dtype == jnp.float32


@pytest.mark.parametrize(
    "key", [1.5, "0", None, True, jnp.ones(2), jnp.zeros((3, 2), jnp.uint32), jnp.zeros(2, jnp.int32), [0, 1]]
)
def test_key_of_the_wrong_kind(key):
    with pytest.raises(TypeError, match=r"key must be .*, got"):
        build(key=key)


def test_batch_of_keys_shows_vmap():
    with pytest.raises(
        ValueError, match=r"key must be one key, got an array of keys of shape \(3,\).*jax.vmap\(lambda key: ctld"
    ):
        build(key=jax.random.split(jax.random.key(0), 3))


def test_keys_of_all_kinds_mean_the_same():
    params = {"x": jnp.ones(2)}
    first = build(key=7).init(params)
    for key in (np.int64(7), jax.random.key(7), jax.random.PRNGKey(7), np.asarray(jax.random.PRNGKey(7)), jnp.int32(7)):
        other = build(key=key).init(params)
        assert jnp.all(jax.random.key_data(other.key) == jax.random.key_data(first.key))
        assert other.r_alpha == first.r_alpha
    assert build(key=-1).init(params).r_alpha != first.r_alpha


def test_seeds_of_any_size_are_told_apart(x64_or_not):
    # JAX itself takes 2^32 and 2^40 for 0, and 2^64 for too large.
    params = {"x": jnp.ones(2)}
    seeds = (0, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**40, 2**64, 2**64 + 2**32, -1, -(2**31) - 1, -(2**40))
    states = [build(key=seed).init(params) for seed in (*seeds, np.uint64(2**40 + 1))]
    assert len({tuple(np.asarray(jax.random.key_data(state.key)).tolist()) for state in states}) == len(states)
    expected = jax.random.split(jax.random.fold_in(jax.random.key(0), 256), 3)[0]
    assert jnp.all(jax.random.key_data(states[seeds.index(2**40)].key) == jax.random.key_data(expected))


@pytest.fixture(params=[False, True])
def x64_or_not(request):
    with compat.enable_x64(request.param):
        yield


def test_a_large_seed_goes_through_inject_hyperparams_as_a_static_argument():
    params = {"x": jnp.ones(2)}
    injected = optax.inject_hyperparams(ctld_optax.ctld, static_args="key")(0.1, 0.1, key=2**40)
    state = injected.init(params)
    expected = build(key=2**40).init(params)
    assert jnp.all(jax.random.key_data(state.inner_state.key) == jax.random.key_data(expected.key))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_hyperparameters_in_a_narrow_dtype_are_refused_and_the_cure_works(dtype):
    params = {"x": jnp.ones(2, dtype)}
    settings = {"learning_rate": 0.1, "temperature": 1e-8, "momentum": 0.999, "key": 0}
    with pytest.raises(TypeError, match=rf"must be float32 or wider, got {jnp.dtype(dtype)}.*hyperparam_dtype=jnp.float32"):
        optax.inject_hyperparams(ctld_optax.ctld)(**settings).init(params)
    injected = optax.inject_hyperparams(ctld_optax.ctld, hyperparam_dtype=jnp.float32)(**settings)
    plain = ctld_optax.ctld(**settings)
    results = [jax.jit(tx.update)(params, tx.init(params), params, value=jnp.float32(1.0)) for tx in (injected, plain)]
    variance = results[0][1].inner_state.noise_variance
    np.testing.assert_allclose(variance, results[1][1].noise_variance, rtol=1e-3)  # 1 - 0.999 is one of float32's differences
    assert variance > 0.0


def test_key_keeps_its_implementation():
    state = build(key=jax.random.key(0, impl="rbg")).init({"x": jnp.ones(2)})
    assert jax.random.key_impl(state.key) == "rbg"


@pytest.mark.parametrize("name", ["learning_rate", "temperature"])
@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (optax.linear_schedule(0.1, -0.1, 1_000), "at step 1000 of its schedule, must be a finite number in"),
        (lambda count: jnp.sqrt(50.0 - count), "at step 100 of its schedule, must be a finite number in .*got .*nan"),
        (lambda count: jnp.ones(2), r"at step 0 of its schedule, must be one number, got an array of shape \(2,\)"),
        (lambda count: None, "at step 0 of its schedule, must be a number, got None"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda build: build(), lambda build: jax.jit(lambda: build().init(jnp.ones(2)))()])
def test_a_schedule_is_looked_at_when_the_sampler_is_made(name, schedule, words, wrap):
    with pytest.raises((TypeError, ValueError), match=f"^{name}, {words}"):
        wrap(lambda: build(**{name: schedule}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"integrator": "euler"}, {"coupling": "hamiltonian", "confinement": "force"}, {"tempering": None},
     {"gradient_noise": ctld_optax.RunningNoise()}, {"bias": ctld_optax.AdaptiveBiasingForce()}],
)  # fmt: skip
@pytest.mark.parametrize("wild", [float("nan"), float("inf")])
def test_a_temperature_that_is_not_a_number_is_a_step_skipped(changes, wild):
    tx = build(temperature=lambda count: jnp.where(count == 3, wild, 0.1), **changes)
    params = jnp.ones(3)
    state, update = tx.init(params), jax.jit(tx.update)
    for count in range(6):
        updates, state = update(params, state, params, value=jnp.sum(jnp.square(params)))
        params = optax.apply_updates(params, updates)
        assert_finite((params, state))
        assert int(state.skipped) == (count >= 3)


def test_a_traced_negative_temperature_counts_as_zero():
    def step(temperature):
        tx = build(temperature=temperature)
        return tx.update(jnp.ones(3), tx.init(jnp.ones(3)), value=1.0)[0]

    assert jnp.all(jax.jit(step)(-1.0) == jax.jit(step)(0.0))
    assert not jnp.all(jax.jit(step)(1.0) == jax.jit(step)(0.0))


def test_traced_hyperparameters_pass():
    def init(learning_rate, temperature, momentum, alpha_step_size):
        transformation = build(
            learning_rate=learning_rate, temperature=temperature, momentum=momentum, alpha_step_size=alpha_step_size
        )
        return transformation.init(jnp.ones(2))

    assert jax.eval_shape(init, 0.1, 0.1, 0.9, 0.02).alpha.shape == ()


EXAMPLES = {"w": jnp.ones((8, 2, 3)), "b": jnp.ones((8, 3))}  # the gradients of eight examples, of which no mean was taken
PARAMS = jax.tree.map(lambda g: g[0], EXAMPLES)
SGD = optax.sgd(0.1, momentum=0.9)
TRANSFORMATIONS = {
    "ctld": build,
    "phase_switch": lambda: ctld_optax.phase_switch(build(), SGD, 3),
    "accumulate": lambda: ctld_optax.accumulate(build(), 2),
    "santa": lambda: ctld_optax.baselines.santa(0.1, 0.1, key=0, exploration_steps=3),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_gradients_of_another_shape_are_told_and_not_broadcast(name):
    tx = TRANSFORMATIONS[name]()
    state = tx.init(PARAMS)
    for wrong, said in ((EXAMPLES, r"\(8, 3\)"), (jax.tree.map(jnp.sum, PARAMS), r"\(\)")):
        with pytest.raises(
            ValueError, match=rf"^updates, the gradients, must have the shapes .*\(3,\) for \['b'\]; got {said}"
        ):
            tx.update(wrong, state, PARAMS, value=1.0)


# Samplers of which no two have a state in common, by the field that tells them apart.
SAMPLERS = {
    "plain": {},
    "bias": {"bias": ctld_optax.AdaptiveBiasingForce()},
    "gradient_noise": {"gradient_noise": ctld_optax.RunningNoise()},
    "coordinates": {"preconditioner": ctld_optax.FixedMetric(2.0)},
    "coordinates, running": {"preconditioner": ctld_optax.SecondMoment()},
    "coordinates, of layers": {"preconditioner": ctld_optax.LayerScale()},
}


@pytest.mark.parametrize("ours", SAMPLERS)
@pytest.mark.parametrize("theirs", SAMPLERS)
def test_the_state_of_another_sampler_is_told(ours, theirs):
    """As after unpickling, or with a state that was kept while the sampler was changed."""
    tx, state = build(**SAMPLERS[ours]), build(**SAMPLERS[theirs]).init(PARAMS)
    if ours == theirs:
        tx.update(PARAMS, state, PARAMS, value=1.0)
        return
    with pytest.raises(ValueError, match=r"^state must be one of this sampler: its (bias|gradient_noise|coordinates) has"):
        tx.update(PARAMS, state, PARAMS, value=1.0)


def test_the_state_of_another_phase_switch_is_told():
    def switched(optimizer, **changes):
        return ctld_optax.phase_switch(build(**changes), optimizer, 3)

    for optimizer, other in ((SGD, optax.adam(0.1)), (optax.adam(0.1), SGD)):
        with pytest.raises(ValueError, match=r"^state is of a phase_switch with another sampler or onto another optimizer"):
            switched(optimizer).update(PARAMS, switched(other).init(PARAMS), PARAMS, value=1.0)
        with pytest.raises(ValueError, match=r"^state must be one of this sampler: its bias has"):
            switched(optimizer).update(PARAMS, switched(optimizer, **SAMPLERS["bias"]).init(PARAMS), PARAMS, value=1.0)
