"""A mixture whose two components have no order: two mirrored modes of 60 observations, a barrier of some 23 k_B T between them.

`python -m tests.laws.test_exchanged_names` prints the weight that each of eight seeds finds, which is 1/2 in truth.
"""

import jax
import numpy as np
import pytest

import ctld_optax
from benchmarks.harness import posteriors
from ctld_optax import posterior
from tests.test_posteriordb import needs_data

pytestmark = needs_data
OBSERVATIONS, SAMPLES = 60, 40_000


def prior(x):
    return posteriors.gauss_mix_prior(x, x[:2])


def is_first(seed, *, tempering, num_samples):
    """Of each sample, whether the first component is the one to the left: shape (chains, draws)."""
    target = posteriors.posterior("low_dim_gauss_mix-low_dim_gauss_mix", ordered=False, num_obs=OBSERVATIONS)
    data = posterior.sample(
        lambda x: target.potential(x) - prior(x),
        lambda key: jax.random.normal(key, (5,)),
        seed,
        prior_fn=prior,
        tempering=tempering,
        num_samples=num_samples,
    )
    x = data.posterior["x"].to_numpy()
    return x[..., 0] < x[..., 1]


HOT = ctld_optax.GeometricTempering(strength=0.95)


@pytest.mark.slow
def test_tempered_chains_cross_and_weigh_both_modes():
    """About 160 crossings of each chain make an error of 0.02."""
    found = is_first(0, tempering=HOT, num_samples=SAMPLES)
    assert np.all(np.abs(np.diff(found.astype(int), axis=1)).sum(axis=1) > 40)
    assert abs(found.mean() - 0.5) < 0.05


def test_at_a_constant_temperature_each_chain_stays_in_its_mode():
    found = is_first(0, tempering=None, num_samples=4_000)
    assert not np.any(np.diff(found.astype(int), axis=1))


if __name__ == "__main__":
    for seed in range(8):
        found = is_first(seed, tempering=HOT, num_samples=SAMPLES)
        print(f"seed {seed}: {found.mean():.3f}, of each chain {found.mean(axis=1).round(2)}", flush=True)
