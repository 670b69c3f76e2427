"""Samples from a few rows at a time have the law of the whole data, and the noise that the rows bring is what was measured.

A linear regression with weights: its posterior is normal, and what a control variate leaves of noise is a quadratic form of the
distance from the anchor, so that the variances are exact if its average is compensated.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctld_optax import _batches as batches
from ctld_optax import _sample
from ctld_optax import _warmup as warmup
from ctld_optax._chains import Target, Trace
from ctld_optax._dynamics.minibatch import Variances
from ctld_optax.posterior import sample
from tests.laws.chains import SIGMAS, deviation

NUM_ROWS, DIMENSION, BATCH = 400, 5, 8
_rng = np.random.default_rng(0)
DESIGN = _rng.normal(size=(NUM_ROWS, DIMENSION)) @ _rng.normal(size=(DIMENSION, DIMENSION))
RESPONSE = DESIGN @ np.ones(DIMENSION) + _rng.normal(size=NUM_ROWS)
ROWS = {"x": jnp.asarray(DESIGN, jnp.float32), "y": jnp.asarray(RESPONSE, jnp.float32)}
HESSIAN = DESIGN.T @ DESIGN + np.eye(DIMENSION)
MEAN, ROOT = np.linalg.solve(HESSIAN, DESIGN.T @ RESPONSE), np.linalg.cholesky(HESSIAN)


def misfit(params, rows):
    return 0.5 * jnp.sum(jnp.square(rows["y"] - rows["x"] @ params["w"]))


def prior(params):
    return 0.5 * jnp.sum(jnp.square(params["w"]))


def run(**changes):
    """Samples in units of the posterior, and what the run tells. `BATCH` rows bring a fifth of the noise."""
    settings = {"data": ROWS, "batch_size": BATCH, "prior_fn": prior, "num_warmup": 250, "num_samples": 8_000} | changes
    found = sample(misfit, {"w": jnp.zeros(DIMENSION)}, 0, **settings)
    return (found.posterior.w.values - MEAN) @ ROOT, found.sample_stats


def worst(z):
    """In standard errors; a share f of the noise that is white makes the variance too large by some f l / (2 (1 + mu)): 1 %."""
    return max(deviation(z, 0.0), deviation(z**2, 1.0, slack=0.02))


def test_variances_are_those_of_all_rows():
    z, stats = run()
    assert worst(z) < SIGMAS
    attrs = stats.attrs
    assert 0.1 < attrs["brought"] < 0.4
    assert attrs["learning_rate"] == pytest.approx(0.1)
    # 40,000 steps of four chains, each at two gradients of BATCH rows.
    assert attrs["gradients"] == pytest.approx(4 * 40_000 * 2 * BATCH / NUM_ROWS)
    assert "energy_error" not in stats
    energy = 0.5 * np.sum(np.square(z), axis=-1)
    offset = float(misfit({"w": jnp.asarray(MEAN)}, ROWS) + prior({"w": jnp.asarray(MEAN)}))
    assert abs(np.mean(-stats.lp.values - offset - energy)) < 0.1  # an estimate, right on average


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        lambda self, state, coordinates=None: Variances(0.0 * self.gradient, 0.0),
        lambda self, state, coordinates=None: Variances(2.0 * self.gradient, 0.0),
    ],
    ids=["not compensated", "twice"],
)
def test_without_the_noise_that_is_brought_the_law_is_another(wrong, monkeypatch):
    monkeypatch.setattr(batches.Measured, "variances", wrong)
    jax.clear_caches()
    z, _ = run()
    jax.clear_caches()
    assert worst(z) > SIGMAS


@pytest.mark.parametrize("is_dense", [True, False])
def test_the_noise_of_a_batch_is_what_was_measured(is_dense):
    """Against the covariance of the gradients themselves, over many batches at the same places."""
    likelihood = _sample.OnFlat(lambda w, rows: misfit({"w": w}, rows), jnp.asarray, ROWS)
    target = Target(likelihood, _sample.OnFlat(_sample.nothing, jnp.asarray))
    coordinates = warmup.Dense(jnp.asarray(np.linalg.inv(ROOT).T, jnp.float32)) if is_dense else None
    coordinates = coordinates or warmup.Diagonal(jnp.asarray(1.0 / np.sqrt(np.diag(HESSIAN)), jnp.float32))
    places = MEAN + np.random.default_rng(1).normal(size=(2, 64, DIMENSION)) @ np.linalg.inv(ROOT)
    window = Trace(jnp.asarray(places, jnp.float32), *[jnp.zeros(())] * 8)
    anchors = batches.anchored(target, window)
    metric, variances = batches.measured(
        target, warmup.Metric(coordinates, jnp.asarray(0.1)), window, anchors, BATCH, 0.8, jax.random.key(0)
    )
    change = lambda x, anchor: (DESIGN @ (x - anchor))[:, None] * DESIGN  # of the gradient of each row
    of_place = [
        np.cov(change(x, np.asarray(anchor)).T, bias=True) * NUM_ROWS**2 / BATCH
        for number, (chain, anchor) in enumerate(zip(places, anchors.position, strict=True))
        for x in chain[number::2]
    ]
    scale = np.asarray(metric.coordinates.factor) if is_dense else np.diag(metric.coordinates.scale)
    noise = scale.T @ np.mean(of_place, axis=0) @ scale
    # Of the same 64 places, which take turns among the chains; there with 256 rows each.
    np.testing.assert_allclose(np.diag(noise), variances, rtol=0.1)
    if is_dense:  # the same metric, turned until the noise is diagonal
        assert np.abs(noise - np.diag(np.diag(noise))).max() < 0.1 * np.diag(noise).max()
        np.testing.assert_allclose(scale @ scale.T, np.linalg.inv(HESSIAN), rtol=1e-3, atol=1e-6)


def test_the_learning_rate_falls_until_batches_bring_no_more_than_half():
    _, stats = run(batch_size=1, num_samples=100)
    assert stats.attrs["brought"] == pytest.approx(batches.SHARE, rel=1e-3)
    assert stats.attrs["learning_rate"] < 0.09
