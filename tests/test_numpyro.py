"""Models of NumPyro, sampled as the page on posterior samples says, against NumPyro's own NUTS."""

import pathlib
import re

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctld_optax
from ctld_optax import posterior

numpyro = pytest.importorskip("numpyro")  # its releases need a newer JAX than we do
dist = numpyro.distributions
pytestmark = pytest.mark.usefixtures("x64")
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "posterior_samples.md"
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
# Hits of 18 batters in their first 45 times at bat in 1970 (Efron and Morris 1975).
HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])


def schools(effects, errors):
    """A scale that is positive, and a parameter that is a function of others."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(effects)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        school = numpyro.deterministic("school", mu + tau * z)
        numpyro.sample("effect", dist.Normal(school, errors), obs=effects)


def batters(hits, at_bat):
    """Shares between 0 and 1, and a positive concentration, which these data do not bound from above: its prior does."""
    mean = numpyro.sample("mean", dist.Uniform(0.0, 1.0))
    concentration = numpyro.sample("concentration", dist.Gamma(8.0, 0.1))
    with numpyro.plate("batters", len(hits)):
        share = numpyro.sample("share", dist.Beta(mean * concentration, (1.0 - mean) * concentration))
        numpyro.sample("hits", dist.Binomial(at_bat, probs=share), obs=hits)


MODELS = {"schools": (schools, (EFFECTS, ERRORS)), "batters": (batters, (HITS, 45))}


def recipe(number):
    """The blocks of code under the page's heading."""
    section = PAGE.read_text().partition("## A model of NumPyro\n")[2].partition("\n## ")[0]
    return re.findall(r"```text\n(.*?)```", section, re.DOTALL)[number]


def run(model, arguments, *, blocks):
    """What the page's code leaves behind, for another model."""
    scope = {"model": model, "jax": jax, "posterior": posterior, "ctld_optax": ctld_optax, "arguments": arguments}
    for number in blocks:
        exec(recipe(number), scope)  # noqa: S102 - our own page
    return scope


def by_nuts(model, arguments):
    kernel = numpyro.infer.NUTS(model, dense_mass=True, target_accept_prob=0.95)
    sampler = numpyro.infer.MCMC(
        kernel, num_warmup=1_000, num_samples=4_000, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    sampler.run(jax.random.key(0), *arguments)
    return {name: np.asarray(value) for name, value in sampler.get_samples(group_by_chain=True).items()}


def farthest(ours, theirs, function=lambda x: x):
    """The largest difference of two means, over all parameters, beyond four standard errors, in standard deviations."""
    far = []
    for name, reference in theirs.items():
        sides = [function(x) for x in (ours[name].values, reference)]
        errors = [np.asarray(arviz.mcse(arviz.convert_to_dataset({"x": x}))["x"]) for x in sides]
        means = [x.mean((0, 1)) for x in sides]
        far.append(np.max((np.abs(means[0] - means[1]) - 4.0 * np.hypot(*errors)) / sides[1].std((0, 1))))
    return max(far)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_page_samples_what_nuts_samples(name):
    """Means within 4 standard errors and 3 % of a standard deviation (the error of the step), also of logarithms."""
    model, arguments = MODELS[name]
    data, theirs = run(model, arguments, blocks=[0])["data"], by_nuts(model, arguments)
    assert set(data.posterior) >= set(theirs)
    assert float(arviz.rhat(data).max().to_array().max()) < 1.02
    assert farthest(data.posterior, theirs) < 0.03
    positive = {name: x for name, x in theirs.items() if (x > 0.0).all()}
    assert positive
    assert farthest(data.posterior, positive, np.log) < 0.03
    # Negative control: in other units.
    other = {name: x * 1.3 for name, x in positive.items()}
    assert farthest(data.posterior, other, np.log) > 0.03


@pytest.mark.parametrize("name", MODELS)
def test_prior_and_likelihood_are_split_by_sites(name):
    model, arguments = MODELS[name]
    scope = run(model, arguments, blocks=[1])
    info, prior, misfit = scope["info"], scope["prior"], scope["misfit"]
    for number in range(3):
        place = numpyro.infer.util.initialize_model(jax.random.key(number), model, model_args=arguments).param_info.z
        natural = info.postprocess_fn(place)
        np.testing.assert_allclose(prior(place) + misfit(place), info.potential_fn(place), rtol=1e-9)
        if name == "schools":
            direct = -dist.Normal(natural["school"], ERRORS).log_prob(EFFECTS).sum()
        else:
            direct = -dist.Binomial(45, probs=natural["share"]).log_prob(HITS).sum()
        np.testing.assert_allclose(misfit(place), direct, rtol=1e-6)


def test_the_split_is_taken_by_sample():
    scope = run(*MODELS["schools"], blocks=[1])
    short = {"num_warmup": 250, "num_samples": 50, "num_chains": 2}
    data = posterior.sample(scope["misfit"], scope["start"], 0, prior_fn=scope["prior"], constrain=scope["constrain"], **short)
    assert jnp.all(data.posterior.tau.values > 0.0)
