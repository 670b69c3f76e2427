"""What a step makes, made late: of its new state, or not at all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._arrays.inplace import either
from ctld_optax._arrays.late import made_late

# One of them of a weak type, of which some optimizers make casts to float32.
PARAMS = {"w": jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), "b": jnp.full(2, 0.7)}


def step(tx, state, params=PARAMS):
    return optax.with_extra_args_support(tx).update(params, state, params, value=jnp.float32(1.0))  # of |params|^2 / 2


def sampler(**changes):
    return ctld_optax.ctld(0.01, 1e-3, key=0, **changes)


LATE = {
    "ctld": sampler(),
    "second moment": sampler(preconditioner=ctld_optax.SecondMoment(power=1.0)),
    "layer scale": sampler(preconditioner=ctld_optax.LayerScale()),
    "clipped ctld": optax.chain(optax.clip_by_global_norm(0.1), sampler()),
    "adam": optax.adam(0.1),
    "adamw, schedule": optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "nadam": optax.nadam(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "without memory": optax.sgd(0.1),
}


@pytest.mark.parametrize("under_jit", [False, True])
@pytest.mark.parametrize("name", LATE)
def test_it_is_what_the_step_makes(name, under_jit):
    tx = LATE[name]

    def both(state):
        late = made_late(functools.partial(step, tx), state)
        assert late is not None
        made, new_state = step(tx, state)
        return made, late(state, new_state)

    fresh = tx.init(PARAMS)
    for state in (fresh, step(tx, fresh)[1]):
        made, late = (jax.jit(both) if under_jit else both)(state)
        # The same arithmetic, compiled with what comes before it or apart.
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), late, made)


NOT_LATE = {
    "of the old momentum": (optax.lion(0.1), PARAMS),
    "of a momentum that is kept in fewer bits": (optax.adam(0.1, mu_dtype=jnp.bfloat16), PARAMS),
    "a reduction": (optax.lamb(0.1), PARAMS),
    "random bits": (sampler(), optax.tree.cast(PARAMS, jnp.bfloat16)),
    "a product of matrices": (optax.contrib.muon(0.1), {"w": PARAMS["w"]}),
}


@pytest.mark.parametrize("name", NOT_LATE)
def test_what_needs_more_than_the_new_state_is_not_made_late(name):
    tx, params = NOT_LATE[name]
    assert made_late(functools.partial(step, tx, params=params), tx.init(params)) is None


def test_what_is_heard_outside_is_not_made_late():
    """A callback would be called in both turns."""

    def step(x):
        new = 2.0 * x
        jax.debug.callback(lambda _: None, new)
        return jax.pure_callback(np.sin, new, new), new

    assert made_late(step, jnp.ones(3)) is None


def test_either_is_the_one_or_the_other_and_so_is_its_derivative():
    """Also where the other one is a division by 0."""

    def chosen(x, condition):
        return either(condition, lambda: {"y": 3.0 * x}, lambda: {"y": jnp.sqrt(x - 1.0) / (x - 1.0)})["y"]

    x = jnp.asarray([1.0, 1.0])
    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_array_equal(wrap(chosen)(x, jnp.asarray(True)), 3.0 * x)
        np.testing.assert_array_equal(wrap(chosen)(x + 4.0, jnp.asarray(False)), 0.5)
        np.testing.assert_array_equal(wrap(jax.jacrev(chosen))(x, jnp.asarray(True)), 3.0 * jnp.eye(2))
        np.testing.assert_array_equal(wrap(jax.jacfwd(chosen))(x, jnp.asarray(True)), 3.0 * jnp.eye(2))
