"""Minibatches on real data: Bayesian logistic regression on the Wisconsin breast cancer data, against NUTS on full batches.

Ten principal components and an intercept, prior N(0, I). Both noise and posterior are correlated, and only the diagonal of the
noise is compensated, so the run takes coordinates in which the Laplace approximation is the identity and the noise
is diagonal; the variances are compared in the original ones.
"""

import dataclasses

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

import ctld_optax

BATCH, MOMENTUM, STIFFNESS = 128, 0.9, 0.015  # stiffness: learning rate times curvature, which is 1/N in these coordinates


@pytest.fixture(scope="module")
def data():
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    left, _, _ = np.linalg.svd(inputs, full_matrices=False)
    features = np.column_stack([np.ones(len(inputs)), left[:, :10] * np.sqrt(len(inputs))])
    return features, labels.astype(np.float64)


@pytest.fixture(scope="module")
def reference(data):
    """Posterior variances from 8 x 8,000 draws of NUTS."""
    features, labels = (jnp.asarray(array, jnp.float32) for array in data)

    def log_density(w):
        logits = features @ w
        return jnp.sum(labels * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum(w * w)

    adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
    (state, parameters), _ = adaptation.run(jax.random.key(0), jnp.zeros(features.shape[1]), num_steps=800)
    kernel = blackjax.nuts(log_density, **parameters)

    def step(state, key):
        state, _ = kernel.step(key, state)
        return state, state.position

    keys = jax.random.split(jax.random.key(1), (8, 8_000))
    draws = jax.jit(jax.vmap(lambda chain: jax.lax.scan(step, state, chain)[1]))(keys)
    return np.asarray(draws, np.float64).reshape(-1, features.shape[1]).var(axis=0)


def coordinates(features, labels):
    """w = mode + basis @ u."""
    mode = np.zeros(features.shape[1])
    for _ in range(50):
        probability = 1.0 / (1.0 + np.exp(-features @ mode))
        hessian = (features.T * (probability * (1.0 - probability))) @ features + np.eye(len(mode))
        mode = mode - np.linalg.solve(hessian, features.T @ (probability - labels) + mode)
    probability = 1.0 / (1.0 + np.exp(-features @ mode))
    noise = np.cov((features * (probability - labels)[:, None]).T) * len(labels)
    root = np.linalg.cholesky(np.linalg.inv(hessian))
    return mode, root @ np.linalg.eigh(root.T @ noise @ root)[1]


def variances(data, gradient_noise, *, steps=100_000, chains=16, thin=20):
    features, labels = data
    mode, basis = coordinates(features, labels)
    size, dimension = features.shape
    inputs, offsets = jnp.asarray(features @ basis, jnp.float32), jnp.asarray(features @ mode, jnp.float32)
    targets, start = jnp.asarray(labels, jnp.float32), jnp.zeros(dimension)
    matrix, centre = jnp.asarray(basis, jnp.float32), jnp.asarray(mode, jnp.float32)
    transformation = ctld_optax.ctld(STIFFNESS * size, 1 / size, MOMENTUM, key=0, tempering=None, gradient_noise=gradient_noise)

    def loss(u, batch):
        logits = inputs[batch] @ u + offsets[batch]
        w = centre + matrix @ u
        return jnp.mean(jax.nn.softplus(logits) - targets[batch] * logits) + 0.5 * jnp.sum(w * w) / size

    def step(carry, key):
        u, state = carry
        value, grads = jax.value_and_grad(loss)(u, jax.random.randint(key, (BATCH,), 0, size))
        updates, state = transformation.update(grads, state, u, value=value)
        return (u + updates, state), None

    def record(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, centre + matrix @ carry[0]

    @jax.jit
    @jax.vmap
    def chain(key):
        init_key, key = jax.random.split(key)
        state = dataclasses.replace(transformation.kernel, key=init_key).init(start)
        return jax.lax.scan(record, (start, state), jax.random.split(key, (steps // thin, thin)))[1]

    draws = np.asarray(chain(jax.random.split(jax.random.key(2), chains)), np.float64)
    return draws[:, steps // thin // 10 :].reshape(-1, dimension).var(axis=0)


@pytest.mark.slow
def test_variances_with_and_without_compensation(data, reference):
    compensated = variances(data, ctld_optax.RunningNoise(decay=0.9995)) / reference - 1.0
    plain = variances(data, None) / reference - 1.0
    for name, error in (("compensated", compensated), ("not compensated", plain)):
        print(f"{name}: mean error {error.mean():+.3f}, largest {np.abs(error).max():.3f}")
    assert np.abs(compensated).max() < 0.05
    assert plain.mean() > 0.1
    assert np.abs(plain).max() > 0.15
