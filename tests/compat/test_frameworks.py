"""One small convolutional network in Flax linen, Flax NNX and Equinox: the same trajectory from the same key."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import ctld_optax
from tests import versions

STEPS = 12  # six of them sampling
IMAGES = jax.random.normal(jax.random.key(10), (16, 8, 8, 1))
LABELS = jax.random.randint(jax.random.key(11), (16,), 0, 3)


def transformation(coupling="standardized"):
    # A clock fast enough for alpha to leave the window in which the loss does not act on it.
    sampler = ctld_optax.ctld(0.05, 1e-3, key=5, alpha_step_size=0.5, coupling=coupling)
    return ctld_optax.phase_switch(sampler, optax.sgd(0.05, momentum=0.9), STEPS // 2)


def weights():
    """Leaves in one order for all three, since noise goes by order: kernels as Flax lays them out."""
    keys = jax.random.split(jax.random.key(0), 2)
    convolution, dense = jax.random.normal(keys[0], (3, 3, 1, 4)), jax.random.normal(keys[1], (256, 3))
    return {
        "conv": {"bias": jnp.zeros((4,)), "kernel": 0.3 * convolution},
        "dense": {"bias": jnp.zeros((3,)), "kernel": 0.1 * dense},
    }


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def plain():
    """Without a framework."""
    tx, params = transformation(), weights()
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: cross_entropy(Linen().apply({"params": p}, IMAGES)))(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    losses, alphas = [], []
    for _ in range(STEPS):
        params, state, loss = step(params, state)
        losses.append(loss)
        alphas.append(state.sampler.alpha)
    return np.asarray(losses), jax.tree.leaves(params), state, np.asarray(alphas)


class Linen(nn.Module):
    def setup(self):
        self.conv = nn.Conv(4, (3, 3))
        self.dense = nn.Dense(3)

    def __call__(self, images):
        hidden = nn.relu(self.conv(images))
        return self.dense(hidden.reshape((hidden.shape[0], -1)))


class TrainState(train_state.TrainState):
    """Flax's own `apply_gradients` keeps the loss to itself; this one hands it on."""

    def apply_gradients(self, *, grads, value, **kwargs):
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params, value=value)
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **kwargs)


def linen():
    state = TrainState.create(apply_fn=Linen().apply, params=weights(), tx=transformation())

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(lambda p: cross_entropy(state.apply_fn({"params": p}, IMAGES)))(state.params)
        return state.apply_gradients(grads=grads, value=loss), loss

    losses = []
    for _ in range(STEPS):
        state, loss = step(state)
        losses.append(loss)
    return np.asarray(losses), jax.tree.leaves(state.params)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(256, 3, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.conv(images))
        return self.dense(hidden.reshape((hidden.shape[0], -1)))


def nnx_module():
    model = Nnx(nnx.Rngs(0))
    for layer, leaves in weights().items():
        for name, leaf in leaves.items():
            getattr(getattr(model, layer), name)[...] = leaf
    optimizer = nnx.Optimizer(model, transformation(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(IMAGES)))(model)
        optimizer.update(model, grads, value=loss)
        return loss

    losses = [step(model, optimizer) for _ in range(STEPS)]
    return np.asarray(losses), jax.tree.leaves(nnx.state(model, nnx.Param))


class Affine(eqx.Module):
    # Fields in the order of Flax's sorted names.
    bias: jax.Array
    kernel: jax.Array


class Equinox(eqx.Module):
    conv: Affine
    dense: Affine
    activation: object = eqx.field(static=True, default=jax.nn.relu)

    def __call__(self, images):
        dimensions = ("NHWC", "HWIO", "NHWC")
        hidden = jax.lax.conv_general_dilated(images, self.conv.kernel, (1, 1), "SAME", dimension_numbers=dimensions)
        hidden = self.activation(hidden + self.conv.bias)
        return hidden.reshape((hidden.shape[0], -1)) @ self.dense.kernel + self.dense.bias


def equinox():
    model = Equinox(**{name: Affine(**leaves) for name, leaves in weights().items()})
    tx = transformation()
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, opt_state):
        loss, grads = eqx.filter_value_and_grad(lambda model: cross_entropy(model(IMAGES)))(model)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array), value=loss)
        return eqx.apply_updates(model, updates), opt_state, loss

    losses = []
    for _ in range(STEPS):
        model, opt_state, loss = step(model, opt_state)
        losses.append(loss)
    return np.asarray(losses), jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


@pytest.fixture(scope="module")
def reference():
    return plain()


@pytest.mark.parametrize("framework", [linen, pytest.param(nnx_module, marks=versions.NNX), equinox])
def test_same_trajectory_in_every_framework(framework, reference):
    # Three programs for one network: sums in different orders, amplified by some over twelve steps. Measured 1e-6 at most.
    losses, leaves = framework()
    expected_losses, expected_leaves, *_ = reference
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    for leaf, expected in zip(leaves, expected_leaves, strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=0.0, atol=1e-4)


def test_the_network_trains_and_alpha_moves(reference):
    losses, leaves, state, alphas = reference
    assert losses[-1] < 0.7 * losses[0]
    assert np.max(np.abs(alphas)) > 0.4  # it leaves the window: there the loss acts on it
    assert int(state.count) == STEPS
    start = jax.tree.leaves(weights())
    assert all(not np.allclose(a, b, atol=1e-3) for a, b in zip(leaves, start, strict=True))


def test_a_forgotten_loss_is_explained():
    # The bare TrainState, the mistake everyone makes first.
    state = train_state.TrainState.create(apply_fn=None, params=weights(), tx=transformation())
    with pytest.raises(TypeError, match=r'flax\.training\.train_state\.TrainState(.|\n)*coupling="kinetic"'):
        state.apply_gradients(grads=weights())


def test_without_the_loss_flax_s_own_loop_stands_as_it_is():
    tx = transformation(coupling="kinetic")
    state = train_state.TrainState.create(apply_fn=Linen().apply, params=weights(), tx=tx)
    opt_state, params = tx.init(weights()), weights()

    @jax.jit
    def train_step(state):
        loss, grads = jax.value_and_grad(lambda p: cross_entropy(state.apply_fn({"params": p}, IMAGES)))(state.params)
        return state.apply_gradients(grads=grads), loss, grads

    losses, alphas = [], []
    for _ in range(STEPS):
        state, loss, grads = train_step(state)
        # A loss that is passed all the same is not looked at.
        updates, opt_state = jax.jit(tx.update)(grads, opt_state, params, value=jnp.float32(jnp.nan))
        params = optax.apply_updates(params, updates)
        losses.append(loss)
        alphas.append(float(state.opt_state.sampler.alpha))
    assert losses[-1] < 0.7 * losses[0]
    assert np.max(np.abs(alphas)) > 0.4
    assert bool(state.opt_state.switched)
    assert int(opt_state.sampler.skipped) == 0
    for leaf, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=0.0, atol=1e-5)


@versions.NNX
def test_a_forgotten_loss_is_explained_with_nnx():
    model = Nnx(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation(), wrt=nnx.Param)
    with pytest.raises(TypeError, match=r"With flax\.nnx: `optimizer\.update"):
        optimizer.update(model, nnx.state(model, nnx.Param))


@versions.NNX
def test_snapshot_of_an_nnx_optimizer_holds_plain_arrays():
    optimizer = nnx.Optimizer(Nnx(nnx.Rngs(0)), transformation(), wrt=nnx.Param)
    snapshot = ctld_optax.diagnostics.snapshot(optimizer.opt_state)
    assert all(isinstance(scalar, jax.Array) and scalar.shape == () for scalar in snapshot)
