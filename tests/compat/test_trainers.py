"""Trainers of other packages, called as their own users call them: with `coupling="kinetic"` the optimizer is all that changes.

Some of them hand the loss on and some do not, which differs between their versions. Flax's own loop is in test_frameworks.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import optimistix
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro

import ctld_optax

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it says of itself that it is no longer maintained
    import jaxopt

STEPS, SAMPLING_STEPS = 400, 200
TRUTH = jnp.asarray([1.0, -2.0, 0.5])
INPUTS = jax.random.normal(jax.random.key(0), (64, 3))
TARGETS = INPUTS @ TRUTH


def optimizer(coupling="kinetic"):
    sampler = ctld_optax.ctld(0.05, 1e-3, key=0, coupling=coupling)
    return ctld_optax.phase_switch(sampler, optax.sgd(0.05, momentum=0.9), SAMPLING_STEPS)


def loss_fn(params, _=None):
    return jnp.mean(jnp.square(INPUTS @ params["w"] - TARGETS))


def with_optimistix(tx):
    solver = optimistix.OptaxMinimiser(tx, rtol=0.0, atol=0.0)
    found = optimistix.minimise(loss_fn, solver, {"w": jnp.zeros(3)}, max_steps=STEPS, throw=False)
    return found.value["w"], found.state.opt_state


def with_numpyro(tx):
    """A point estimate: SVI with a Delta guide."""

    def model():
        w = numpyro.param("w", jnp.zeros(3))
        numpyro.factor("likelihood", -loss_fn({"w": w}))

    found = SVI(model, lambda: None, optax_to_numpyro(tx), Trace_ELBO()).run(jax.random.key(0), STEPS, progress_bar=False)
    return found.params["w"], found.state.optim_state[1][1]


def with_jaxopt(tx):
    solver = jaxopt.OptaxSolver(loss_fn, tx, maxiter=STEPS, tol=0.0)
    params, state = solver.run({"w": jnp.zeros(3)})
    return params["w"], state.internal_state


TRAINERS = [with_optimistix, with_numpyro, with_jaxopt]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_takes_it_as_it_is(trainer):
    found, state = trainer(optimizer())
    # SGD-M fits exactly in what is left after the switch; at the base temperature alone w is off by 0.03.
    np.testing.assert_allclose(found, TRUTH, atol=1e-3)
    assert int(state.count) == STEPS
    assert bool(state.switched)
    assert int(state.sampler.count) == SAMPLING_STEPS
    assert int(state.sampler.skipped) == 0
    assert float(state.sampler.energy_var) > 0.0
    assert float(state.sampler.alpha) != 0.0


def test_a_trainer_without_the_loss_says_what_to_write():
    with pytest.raises(TypeError, match='coupling="kinetic"'):
        with_jaxopt(optimizer("standardized"))
