"""Which steps count, how much, and the reservoir: jit, fixed size, uniform, thinned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import plotting, posterior


def filled(reservoir, opens, key=0):
    """A reservoir after a scan over steps whose parameters are their own number."""
    start = {"a": jnp.zeros(2), "b": jnp.zeros((), jnp.bfloat16)}

    def step(state, row):
        number, is_open = row
        return reservoir.update(state, {"a": jnp.full(2, number), "b": number.astype(jnp.bfloat16)}, is_open), None

    numbers = jnp.arange(len(opens), dtype=jnp.float32)
    return jax.jit(lambda s: jax.lax.scan(step, s, (numbers, jnp.asarray(opens)))[0])(reservoir.init(start, key=key))


def test_window():
    alpha = jnp.asarray([-1.5, -0.41, -0.4, 0.0, 0.39, 0.7])
    assert posterior.in_window(alpha).tolist() == [False, False, True, True, True, False]
    narrow = ctld_optax.PolynomialTempering(delta=0.1)
    assert posterior.in_window(alpha, narrow).tolist() == [False, False, False, True, False, False]


def test_reservoir_takes_every_open_step_while_it_has_room():
    state = filled(posterior.Reservoir(capacity=5), [True, False, True, True, False, False])
    assert state.samples["a"][:, 0].tolist() == [0.0, 2.0, 3.0, 0.0, 0.0]
    assert state.samples["b"].dtype == jnp.bfloat16
    assert int(state.num_open) == int(state.num_offered) == 3


def test_reservoir_thins_open_steps():
    opens = [True, True, False, True, True, True, True]  # open steps: 0 1 3 4 5 6
    state = filled(posterior.Reservoir(capacity=9, thin=3), opens)
    assert state.samples["a"][:3, 0].tolist() == [0.0, 4.0, 0.0]
    assert (int(state.num_open), int(state.num_offered)) == (6, 2)


def test_reservoir_is_a_uniform_sample():
    """Every one of 40 offers is kept with probability 7/40."""
    reservoir = posterior.Reservoir(capacity=7)
    keys = jax.random.split(jax.random.key(3), 4_000)
    run = jax.vmap(lambda key: filled(reservoir, [True] * 40, key).samples["a"][:, 0])
    kept = np.asarray(run(keys)).astype(int)
    assert all(len(set(row)) == 7 for row in kept[:100])
    share = np.bincount(kept.ravel(), minlength=40) / len(keys)
    error = np.sqrt(7 / 40 * (1 - 7 / 40) / len(keys))
    assert np.max(np.abs(share - 7 / 40)) < 4.5 * error


def test_predict_averages_over_what_is_there():
    state = filled(posterior.Reservoir(capacity=6), [False, True, True, False, True])  # 1, 2, 4

    def model(params, shift):
        return {"mean": params["a"] + shift, "square": params["a"] ** 2}

    for batch_size in (None, 4):
        found = jax.jit(lambda s, b=batch_size: posterior.predict(s, model, 0.5, batch_size=b))(state)
        np.testing.assert_allclose(found["mean"], 7 / 3 + 0.5, rtol=1e-6)
        np.testing.assert_allclose(found["square"], 7.0, rtol=1e-6)


def test_parameters_of_another_shape_are_told_and_not_broadcast():
    reservoir = posterior.Reservoir(capacity=2)
    with pytest.raises(ValueError, match=r"^params must have the shapes that init saw, got \(\) for \(3,\)"):
        reservoir.update(reservoir.init(jnp.ones(3), key=0), jnp.ones(()), True)


def test_predict_from_an_empty_reservoir_is_nan():
    state = posterior.Reservoir(capacity=2).init(jnp.ones(3), key=0)
    assert np.all(np.isnan(posterior.predict(state, lambda p: p)))


def test_the_callers_key_outlives_a_donated_reservoir():
    key = jax.random.key(4)
    reservoir = posterior.Reservoir(capacity=2)
    state = reservoir.init(jnp.ones(3), key=key)
    jax.jit(reservoir.update, donate_argnums=0)(state, jnp.ones(3), jnp.asarray(True))
    assert jax.random.key_data(key).shape == (2,)


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"capacity": 2, "thin": 0}])
def test_reservoir_rejects_empty_sizes(wrong):
    with pytest.raises(ValueError, match="must be >= 1"):
        posterior.Reservoir(**wrong)


def test_weights_are_probabilities_and_need_the_bias():
    bias = ctld_optax.AdaptiveBiasingForce()
    value = jnp.linspace(-2.0, 30.0, 12).reshape(3, 4)
    log = posterior.log_weights(value, 0.7, 3, bias=bias, bias_state=bias.init())
    assert log.shape == (3, 4)
    assert bool(jnp.all(log <= 0.0))
    assert bool(jnp.all(jnp.diff(log.ravel()) < 0.0))  # the higher the energy, the rarer in the window
    with pytest.raises(ValueError, match="bias_state"):
        posterior.log_weights(value, 0.7, 3, bias=bias)
    other = ctld_optax.Metadynamics()  # whose nodes would be read as if they were those of this one
    with pytest.raises(
        ValueError, match=r"^bias_state must be that of a bias of 100 bins, of shape \(2, 101\), got \(2, 376\)"
    ):
        posterior.log_weights(value, 0.7, 3, bias=bias, bias_state=other.init())
    state = ctld_optax.ctld(0.1, 0.1, key=0, bias=other).init(jnp.ones(3))
    stacked = jax.tree.map(lambda leaf: leaf[None], state._replace(key=jax.random.key_data(state.key)))
    shown = (ctld_optax.diagnostics.bias_potential, state), (plotting.bias_filling, stacked)
    for show, found in shown:
        with pytest.raises(ValueError, match=r"^the state's bias must be that of a bias of 100 bins"):
            show(found, bias)


@pytest.mark.parametrize(("coupling", "energy"), [("potential", 1.0), ("hamiltonian", 1.5)])
@pytest.mark.parametrize("tempering", [ctld_optax.PolynomialTempering(), ctld_optax.GeometricTempering()])
def test_weight_of_a_step_is_one_in_an_unbiased_window(coupling, energy, tempering):
    alpha = jnp.asarray([0.0, 0.3, 1.1])
    log = posterior.log_weights_of_step(jnp.ones(3), 0.5 * jnp.ones(3), alpha, 0.3, coupling=coupling, tempering=tempering)
    np.testing.assert_allclose(log, (tempering.beta(alpha) - 1.0) * energy / 0.3, rtol=1e-6)


def test_weights_belong_to_the_preset():
    """Their defaults are its settings: an energy of 0 leaves alpha's free walk, of which the window has delta / delta_prime."""
    kernel = ctld_optax.posterior_sampler(0.1, key=0).kernel
    log = posterior.log_weights(jnp.zeros(()), 1.0, 3)
    tempering = kernel.alpha.tempering
    np.testing.assert_allclose(log, jnp.log(tempering.delta / tempering.delta_prime), rtol=1e-2)
    same = posterior.log_weights(jnp.ones(()), 1.0, 3, tempering=tempering, coupling="potential")
    assert posterior.log_weights(jnp.ones(()), 1.0, 3) == same
    assert posterior.log_weights(jnp.zeros(()), 1.0, 3, coupling="hamiltonian") < log - 0.5  # the momenta's part
