"""Twelve real posteriors: their densities are those of the reference draws, and every gradient is counted."""

import functools
import json
import math
import os
import pathlib
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import posteriordb
from benchmarks.harness import data, peers, posteriors, table

pytestmark = pytest.mark.usefixtures("x64")
needs_data = pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("CTLD_DATA_DIR", "")) / "posteriordb").is_dir(),
    reason="CTLD_DATA_DIR does not hold posteriordb",
)
each = pytest.mark.parametrize("name", posteriors.NAMES)


def toy(dim=3):
    """N(1, 2^2) in each coordinate; the last natural parameter is the exponential of the last coordinate."""
    mean, sd = np.ones(dim), np.full(dim, 2.0)
    mean[-1], sd[-1] = stats.lognorm(2.0, scale=math.e).stats("m"), stats.lognorm(2.0, scale=math.e).std()
    reference = posteriors.Reference(mean, sd, sd**2 + mean**2, 0.01 * sd, 0.01 * sd)
    potential = lambda x: 0.125 * jnp.sum(jnp.square(x - 1.0))
    return posteriors.Posterior("toy", ("a", "b", "c")[:dim], potential, posteriors.last_positive, reference)


@needs_data
@each
def test_gradients_are_those_of_the_density(name):
    target = posteriors.posterior(name)
    (x,) = posteriors.starts(target, jax.random.key(1), 1, times=0.2)
    h, along = 1e-6, jax.random.normal(jax.random.key(2), (target.dim,))
    at = jnp.stack([x, x + h * along, x - h * along])
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(target.potential)))(at)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose((value[1] - value[2]) / (2 * h), gradient[0] @ along, rtol=1e-4, atol=1e-4)


@needs_data
@each
def test_natural_parameters_are_one_for_one_and_where_they_may_be(name):
    target = posteriors.posterior(name)
    assert target.dim == len(target.reference.mean)
    x = target.centre + 0.5 * jax.random.normal(jax.random.key(0), (20, target.dim))
    natural, jacobian = jax.jit(jax.vmap(lambda one: (target.constrain(one), jax.jacobian(target.constrain)(one))))(x)
    assert natural.shape == x.shape
    assert (np.abs(np.linalg.det(jacobian)) > 0.0).all()  # else a parameter hangs on no coordinate of its own
    positive = [i for i, parameter in enumerate(target.parameters) if parameter.startswith(("sigma", "tau", "rho"))]
    assert (natural[:, positive] > 0.0).all()


def test_a_regression_is_its_likelihood_and_prior():
    rng = np.random.default_rng(0)
    design, response = rng.normal(size=(30, 3)), rng.normal(size=30)
    prior = lambda beta, sigma: posteriors.normal(beta, 0.0, 10.0) + posteriors.student_t(sigma, 3, 0.0, 10.0)
    potential, _ = posteriors.regression(design, response, prior)

    def direct(x):
        beta, sigma = x[:-1], np.exp(x[-1])
        likelihood = stats.norm(design @ beta, sigma).logpdf(response).sum()
        return -(likelihood + stats.norm(0, 10).logpdf(beta).sum() + stats.t(3, 0, 10).logpdf(sigma) + x[-1])

    x = rng.normal(size=(2, 4))
    difference = potential(x[0]) - potential(x[1])
    np.testing.assert_allclose(difference, direct(x[0]) - direct(x[1]), rtol=1e-12)


@needs_data
def test_hares_and_lynxes_are_followed_finely_enough():
    known, moments = posteriors.read("hudson_lynx_hare-lotka_volterra")
    x = jnp.log(jnp.array([one["mean"] for one in moments.values()]))
    default, halved, coarse = (posteriors.lotka_volterra(known, **steps)[0](x) for steps in ({}, {"steps": 60}, {"steps": 10}))
    assert abs(default - halved) < 1e-6
    assert abs(coarse - halved) > 1e-5  # the test can tell


@needs_data
def test_without_an_order_the_mixture_has_two_modes_alike():
    target = posteriors.posterior("low_dim_gauss_mix-low_dim_gauss_mix", ordered=False, num_obs=60)
    x = jnp.array([-2.7, 2.9, 0.1, 0.3, 0.4])
    mirrored = jnp.array([2.9, -2.7, 0.3, 0.1, -0.4])
    between = target.potential(0.5 * (x + mirrored)) - target.potential(x)
    np.testing.assert_allclose(target.potential(mirrored), target.potential(x), rtol=1e-12)
    assert between > 5.0
    ordered = posteriors.posterior("low_dim_gauss_mix-low_dim_gauss_mix", num_obs=60)
    inside = x.at[1].set(jnp.log(x[1] - x[0]))
    np.testing.assert_allclose(ordered.constrain(inside), target.constrain(x), rtol=1e-12)
    np.testing.assert_allclose(ordered.potential(inside) + inside[1], target.potential(x), rtol=1e-12)  # the Jacobian


@pytest.mark.slow
@needs_data
@each
def test_nuts_finds_the_moments_of_the_reference(name, monkeypatch):
    monkeypatch.setattr(peers, "DRAWS", 2_000)
    target = posteriors.posterior(name)
    draws = peers.METHODS["NUTS, dense"].sample(target, jax.random.key(1), peers.mode(target, jax.random.key(0), 4))
    found = posteriordb.score(target, draws.samples)
    assert found["rhat"] < 1.02
    assert found["error_mc"] < 4.0
    assert abs(found["sd_ratio"] - 1.0) < 0.05


def test_starts_overflow_nowhere():
    target = toy()._replace(potential=lambda x: jnp.where(x[0] > 0.0, jnp.inf, 0.0) + jnp.sum(x))
    begin = posteriors.starts(target, jax.random.key(0), 64)
    assert (begin[:, 0] <= 0.0).all()
    assert begin.std() == pytest.approx(2.0, abs=0.5)
    assert len(jnp.unique(begin[:, 0])) == 64


def test_the_mode_is_where_the_potential_is_lowest():
    np.testing.assert_allclose(peers.mode(toy(), jax.random.key(0), 2), np.ones((2, 3)), atol=1e-4)


@pytest.fixture
def short(monkeypatch):
    for name, value in {"WARMUP": 300, "DRAWS": 200, "MCLMC_STEPS": 1_000}.items():
        monkeypatch.setattr(peers, name, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, method in peers.METHODS.items() if method.is_compilable]
)  # ours: test_sample.py
def test_every_gradient_is_counted(name, short):
    """A callback in the gradient itself counts too. Chains alone are run alone: side by side the faster ones idle along."""
    method = peers.METHODS[name]
    sample, chains = method.sample, 1 if method.chains == 4 else method.chains
    calls = []

    @jax.custom_jvp
    def counted(x):
        return toy().potential(x)

    @counted.defjvp
    def counted_jvp(primals, tangents):
        jax.debug.callback(calls.append, primals[0][0])
        return jax.jvp(toy().potential, primals, tangents)

    begin = posteriors.starts(toy(), jax.random.key(1), chains)
    draws = jax.jit(functools.partial(sample, toy()._replace(potential=counted)))(jax.random.key(0), begin)
    jax.effects_barrier()
    assert draws.samples.shape[::2] == (chains, 3)
    told = int(draws.gradients + draws.warmup_gradients)
    idle = 300 * 32 // 4 if name == "MEADS" else 0  # computed for chains that stand still
    assert told <= len(calls) - idle <= told + 2 * chains + 2  # those that a state begins with


def test_independent_draws_have_the_score_of_independent_draws():
    samples = 1.0 + 2.0 * jax.random.normal(jax.random.key(0), (4, 5_000, 2))
    target = toy(2)
    found = posteriordb.score(target, samples)
    assert found["ess"] == pytest.approx(20_000, rel=0.1)
    assert found["rhat"] < 1.01
    assert found["error_mc"] < 4.0
    first = posteriordb.score(target, samples + jnp.array([0.2, 0.0]))
    assert first["error"] == pytest.approx(0.1, abs=0.03)
    assert first["error_mc"] > 5.0
    wider = posteriordb.score(target, 1.0 + 1.5 * (samples - 1.0) * jnp.array([1.0, 1e-2]) / jnp.array([1.0, 1.5e-2]))
    assert wider["sd_ratio"] == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize(
    "spoil", [lambda x: x.at[0, 0, 0].set(jnp.nan), lambda x: x.at[0].add(5.0), lambda x: 0 * x + x[:, :1]]
)
def test_what_went_wrong_has_no_price(spoil):
    samples = spoil(1.0 + 2.0 * jax.random.normal(jax.random.key(0), (4, 500, 2)))
    assert row(**posteriordb.score(toy(2), samples)).price == math.inf


def test_chains_that_stand_still_do_not_agree():
    assert posteriordb.score(toy(2), jnp.ones((4, 500, 2)))["rhat"] == math.inf


def row(method="NUTS, dense", posterior="toy", seed=0, **changes):
    figures = {"ess": 100.0, "ess_square": 50.0, "rhat": 1.0, "error": 0.01, "error_mc": 1.0, "sd_ratio": 1.0} | changes
    return posteriordb.Row(posterior, method, "wide", seed, 4, 100, 1_000, 500, **figures, seconds=1.0, by="blackjax 1")


def test_a_price_is_gradients_over_independent_samples():
    assert (row().price, row().price_square) == (10.0, 20.0)
    assert row(error_mc=6.0).price == 10.0  # a bias that is small beside the spread
    assert row(error_mc=6.0, error=0.2).price == row(rhat=1.2).price == math.inf
    rows = [row(seed=0), row(seed=1), row(seed=2, rhat=2.0)]
    assert posteriordb.cell(rows) == "10; 20 (0) \\[2 of 3]"


def test_the_command_runs_what_is_missing_and_draws(tmp_path, monkeypatch, capsys):
    def independent(target, key, begin):
        draws = 1.0 + 2.0 * jax.random.normal(key, (len(begin), 300, target.dim))
        return peers.Draws(draws, jnp.asarray(2_400), jnp.asarray(5_000))

    monkeypatch.setattr(posteriors, "posterior", lambda _: toy())
    monkeypatch.setitem(peers.METHODS, "NUTS, dense", peers.Method(independent))
    places = ["--csv", str(tmp_path / "results.csv"), "--out", str(tmp_path)]
    posteriordb.main(["--small", *places])
    assert re.search(r"arK +│ [12]\.\d+; [12]\.\d+ \(5\) │", capsys.readouterr().out)
    assert (tmp_path / "posteriordb.png").stat().st_size > 10_000
    first = table.read(tmp_path / "results.csv", posteriordb.Row)
    assert [one.run for one in first] == [(name, "NUTS, dense", "wide", 0) for name in posteriordb.SMALL[0]]
    posteriordb.main(["--small", "--seeds", "2", *places])
    again = table.read(tmp_path / "results.csv", posteriordb.Row)
    assert again[:2] == first
    assert [one.seed for one in again] == [0, 0, 1, 1]
    assert again[0].ess != again[2].ess
    with pytest.raises(SystemExit):
        posteriordb.main(["--seeds", "0"])


def test_every_method_has_a_colour():
    assert set(peers.METHODS) <= set(posteriordb.COLORS)


def test_archives_give_what_the_reduction_gives(tmp_path, monkeypatch):
    """From posteriordb's own archives: the data as they are, the reference from its draws."""
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(10, 1_000))
    files = {"toy": {"N": 3}, "toy-model": [{"mu": chain.tolist()} for chain in draws]}
    for name, content in files.items():
        with zipfile.ZipFile(tmp_path / f"{name}.json.zip", "w") as archive:
            archive.writestr(f"{name}.json", json.dumps(content))
    monkeypatch.setattr(data, "fetch", lambda name: tmp_path / name)
    monkeypatch.setenv("CTLD_DATA_DIR", str(tmp_path))
    known, found = posteriors.read("toy-model")
    assert known == {"N": 3}
    (mu,) = found.values()
    assert mu["mean"] == pytest.approx(draws.mean())
    assert mu["mean_of_square"] == pytest.approx(np.square(draws).mean())
    assert mu["mcse_mean"] == pytest.approx(2.0 / 100.0, rel=0.1)
    assert mu["mcse_sd"] == pytest.approx(2.0 / math.sqrt(2.0) / 100.0, rel=0.1)
    reduced = tmp_path / "posteriordb"
    reduced.mkdir()
    (reduced / "toy.data.json").write_text('{"N": 4}')
    (reduced / "toy-model.reference.json").write_text('{"parameters": {"mu": {"mean": 1.0}}}')
    assert posteriors.read("toy-model") == ({"N": 4}, {"mu": {"mean": 1.0}})


def test_every_archive_has_a_checksum():
    for name in posteriors.NAMES:
        for file in (name, name.partition("-")[0]):
            url, checksum = data._SOURCES[f"{file}.json.zip"]
            assert url.startswith("https://raw.githubusercontent.com/stan-dev/posteriordb/")
            assert len(checksum) == 64


def test_data_that_is_nowhere_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CTLD_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match=r"^arK.json.zip is not in CTLD_DATA_DIR .* set CTLD_DATA_DIR to that folder\.$"):
        posteriordb.main(["--small", "--csv", str(tmp_path / "results.csv"), "--out", str(tmp_path)])
