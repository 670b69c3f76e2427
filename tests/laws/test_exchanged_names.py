"""A mixture whose two components have no order: two mirrored modes of 60 observations, a barrier of some 23 k_B T between them.

`python -m tests.laws.test_exchanged_names` prints the weight that each of eight seeds finds, which is 1/2 in truth; with a
number after it, that of so many observations: the barrier of all 1,000 is 386 k_B T.
"""

import sys

import jax
import numpy as np
import pytest

from benchmarks.harness import posteriors
from ctld_optax import posterior
from tests.test_posteriordb import needs_data

pytestmark = needs_data
OBSERVATIONS, SAMPLES = 60, 40_000


def prior(x):
    return posteriors.gauss_mix_prior(x, x[:2])


def run(seed, *, tempering, num_samples, num_obs=OBSERVATIONS):
    target = posteriors.posterior("low_dim_gauss_mix-low_dim_gauss_mix", ordered=False, num_obs=num_obs)
    return posterior.sample(
        lambda x: target.potential(x) - prior(x),
        lambda key: jax.random.normal(key, (5,)),
        seed,
        prior_fn=prior,
        tempering=tempering,
        num_samples=num_samples,
    )


def is_first(data):
    """Of each sample, whether the first component is the one to the left: shape (chains, draws)."""
    x = data.posterior["x"].to_numpy()
    return x[..., 0] < x[..., 1]


@pytest.mark.slow
def test_tempered_chains_cross_and_weigh_both_modes():
    """About 160 crossings of each chain make an error of 0.02."""
    found = is_first(run(0, tempering="auto", num_samples=SAMPLES))
    assert np.all(np.abs(np.diff(found.astype(int), axis=1)).sum(axis=1) > 40)
    assert abs(found.mean() - 0.5) < 0.05


def test_at_a_constant_temperature_each_chain_stays_in_its_mode():
    found = is_first(run(0, tempering=None, num_samples=4_000))
    assert not np.any(np.diff(found.astype(int), axis=1))


if __name__ == "__main__":
    for seed in range(8):
        number = int(sys.argv[1]) if len(sys.argv) > 1 else OBSERVATIONS
        data = run(seed, tempering="auto", num_samples=SAMPLES, num_obs=number)
        found, told = is_first(data), data.sample_stats.attrs
        crossings = np.abs(np.diff(found.astype(int), axis=1)).sum()
        gradients = told["gradients"] + told["warmup_gradients"]
        print(
            f"seed {seed}: {found.mean():.3f}, of each chain {found.mean(axis=1).round(2)}, {crossings} crossings, "
            f"hottest {told['hottest']:g}, {gradients:,} gradients",
            flush=True,
        )
