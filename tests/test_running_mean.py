"""The running mean: weighted, lazy, thinned, as wide as float32, and what averaged networks with batch normalisation need."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctld_optax import posterior

RNG = np.random.default_rng(0)


def averaged(average, weights, *rows):
    """The state after a scan over the steps, compiled."""
    step = lambda state, row: (average.update(state, *row), None)
    begin = average.init(*(row[0] for row in rows))
    return jax.jit(lambda state: jax.lax.scan(step, state, (jnp.asarray(weights), *map(jnp.asarray, rows)))[0])(begin)


def test_it_is_the_weighted_mean_of_every_leaf():
    values, weights = RNG.normal(3.0, 1.0, (500, 2, 3)), RNG.exponential(size=500) * (RNG.uniform(size=500) < 0.7)
    average = posterior.RunningMean(lambda x, shift: {"x": x + shift, "square": x**2})
    state = averaged(average, weights.astype(np.float32), values.astype(np.float32), np.ones(500, np.float32))
    np.testing.assert_allclose(state.mean["x"], np.average(values, axis=0, weights=weights) + 1.0, rtol=2e-6)
    np.testing.assert_allclose(state.mean["square"], np.average(values**2, axis=0, weights=weights), rtol=2e-6)
    np.testing.assert_allclose(state.weight, weights.sum(), rtol=1e-6)
    assert int(state.num_open) == np.count_nonzero(weights)


def test_it_thins_open_steps():
    opens = np.asarray([False, True, True, False, True, True, True, True])  # open steps: 1 2 4 5 6 7
    state = averaged(posterior.RunningMean(thin=3), opens, np.arange(8.0, dtype=np.float32))
    assert (float(state.mean), float(state.weight), int(state.num_open)) == ((1.0 + 5.0) / 2.0, 2.0, 6)


def test_what_does_not_come_in_is_not_computed():
    seen: list[float] = []

    def costly(x):
        jax.debug.callback(lambda value: seen.append(float(value)), x)
        return x

    opens = [False, True, False, True, True, False]
    jax.block_until_ready(averaged(posterior.RunningMean(costly, thin=2), opens, np.arange(6.0, dtype=np.float32)))
    jax.effects_barrier()
    assert seen == [1.0, 4.0]


def test_a_step_of_no_weight_may_be_broken():
    values = np.asarray([np.nan, 2.0, np.inf, 4.0], np.float32)
    assert float(averaged(posterior.RunningMean(), [0.0, 1.0, 0.0, 3.0], values).mean) == 3.5


def test_it_is_nan_while_nothing_has_come_in():
    average = posterior.RunningMean(thin=2)
    state = average.update(average.init(jnp.ones(3)), False, jnp.ones(3))
    assert np.all(np.isnan(state.mean))
    assert float(state.weight) == 0.0


def test_a_narrow_sum_does_not_stick():
    """In bfloat16 a running mean stands still at 256 terms; this one is float32."""
    values = np.concatenate([np.zeros(600), np.ones(600)])
    state = averaged(posterior.RunningMean(), [True] * 1_200, values.astype(jnp.bfloat16))
    assert state.mean.dtype == jnp.float32
    np.testing.assert_allclose(state.mean, 0.5, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_a_float64_mean_is_one():
    """To the last digits: a share of 1/3 in float32 would leave seven of them, and weights in float32 too."""
    values, weights = np.asarray([1.0, 2.0, 4.0]), np.asarray([0.1, 0.2, 0.3])
    state = averaged(posterior.RunningMean(), weights, values)
    assert state.weight.dtype == state.mean.dtype == jnp.float64
    np.testing.assert_allclose(state.mean, np.average(values, weights=weights), rtol=1e-15)
    assert averaged(posterior.RunningMean(), weights, values.astype(np.float32)).weight.dtype == jnp.float32


def test_complex_numbers_have_a_mean():
    values = np.asarray([1.0 + 2.0j, 3.0 - 1.0j], np.complex64)
    assert complex(averaged(posterior.RunningMean(), [True] * 2, values).mean) == 2.0 + 0.5j
    reservoir = posterior.Reservoir(capacity=2)
    state = reservoir.init(values[0], key=0)
    for value in values:
        state = reservoir.update(state, value, True)
    assert complex(posterior.predict(state, lambda x: x)) == 2.0 + 0.5j


def test_counts_and_booleans_have_a_mean():
    state = averaged(posterior.RunningMean(lambda x: x > 2), [True] * 4, np.arange(4))
    assert (state.mean.dtype, float(state.mean)) == (jnp.float32, 0.25)


def test_structure_shapes_and_dtypes_stay():
    average = posterior.RunningMean(lambda params: jax.tree.map(jnp.sin, params))
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(())}
    state = average.init(jax.eval_shape(lambda: params))
    assert jax.eval_shape(average.update, state, jnp.asarray(True), params) == jax.eval_shape(lambda: state)


def test_it_is_what_a_reservoir_with_room_predicts():
    model = lambda params, x: jax.nn.softmax(x @ params)
    x, weights = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32), RNG.normal(size=(12, 4, 3)).astype(np.float32)
    opens = RNG.uniform(size=12) < 0.5
    reservoir = posterior.Reservoir(capacity=12)
    average = posterior.RunningMean(model)
    ensemble, state = reservoir.init(weights[0], key=0), average.init(weights[0], x)
    for params, is_open in zip(weights, opens, strict=True):
        ensemble = reservoir.update(ensemble, params, bool(is_open))
        state = average.update(state, bool(is_open), params, x)
    np.testing.assert_allclose(state.mean, posterior.predict(ensemble, model, x), rtol=1e-6)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training=False):
        hidden = nn.Dense(3, name="below")(x)
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not is_training, momentum=0.0, name="norm")(hidden))


def test_a_network_with_batch_normalisation_is_kept_with_its_own_statistics():
    model, x = Normalised(), jnp.asarray(RNG.normal(size=(40, 2)), jnp.float32)
    members = []
    for seed in range(3):
        variables = model.init(jax.random.key(seed), x)
        _, updated = model.apply(variables, x, is_training=True, mutable=["batch_stats"])
        members.append({"params": variables["params"], **updated})
    reservoir = posterior.Reservoir(capacity=4)
    ensemble = reservoir.init(members[0], key=0)
    for member in members:
        ensemble = reservoir.update(ensemble, member, True)
    found = posterior.predict(ensemble, model.apply, x)
    np.testing.assert_allclose(found, np.mean([model.apply(member, x) for member in members], axis=0), rtol=1e-4, atol=1e-6)


def test_an_averaged_network_gets_the_statistics_that_its_batches_give():
    """As stochastic weight averaging does at its end: the statistics of a mean of networks are no mean of theirs."""
    model, x = Normalised(), jnp.asarray(RNG.normal(2.0, 3.0, (60, 2)), jnp.float32)
    params = model.init(jax.random.key(0), x)["params"]
    blank = {"params": params, "batch_stats": model.init(jax.random.key(0), x)["batch_stats"]}

    def statistics(batch):
        return model.apply(blank, batch, is_training=True, mutable=["batch_stats"])[1]["batch_stats"]

    state = averaged(posterior.RunningMean(statistics), [True] * 6, x.reshape(6, 10, 2))
    hidden = x @ params["below"]["kernel"] + params["below"]["bias"]
    np.testing.assert_allclose(state.mean["norm"]["mean"], hidden.mean(0), rtol=1e-5, atol=1e-6)
    within = hidden.reshape(6, 10, 3).var(1).mean(0)
    np.testing.assert_allclose(state.mean["norm"]["var"], within, rtol=1e-4)
    assert np.all(np.isfinite(model.apply({"params": params, "batch_stats": state.mean}, x)))


@pytest.mark.parametrize(
    ("weight", "error", "said"),
    [
        (-1.0, ValueError, r"weight must be a finite number in \[0, inf\), got -1.0"),
        (np.nan, ValueError, "weight must be a finite number"),
        (jnp.ones(2), ValueError, r"weight must be one number, got an array of shape \(2,\)"),
        (jnp.ones(2, bool), ValueError, "weight must be one boolean, got an array of shape"),
        ("all", TypeError, "weight must be a number or a boolean, got 'all'"),
        (None, TypeError, "weight must be a number or a boolean, got None"),
        (1j, TypeError, "weight must be a number or a boolean, got 1j"),
    ],
)
def test_a_weight_that_is_none_is_refused(weight, error, said):
    average = posterior.RunningMean()
    with pytest.raises(error, match=said):
        average.update(average.init(jnp.ones(3)), weight, jnp.ones(3))


def test_another_structure_is_refused():
    average = posterior.RunningMean()
    with pytest.raises(ValueError, match="must give the structure that it gave at init"):
        average.update(average.init({"a": jnp.ones(3)}), True, {"b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"must give shape \(3,\), as at init, got \(2,\)"):
        average.update(average.init(jnp.ones(3)), True, jnp.ones(2))
