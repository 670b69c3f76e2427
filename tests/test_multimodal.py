"""Posteriors with separated modes: the densities are those that are stated, symmetries are exact, every gradient counts."""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from scipy import special, stats

from benchmarks import multimodal
from benchmarks.harness import crossers, files, separated, table
from ctld_optax.checkpoint import locked

pytestmark = pytest.mark.usefixtures("x64")
each = pytest.mark.parametrize("name", separated.NAMES)


def pair(weight=0.8, apart=6.0):
    """Two normal laws in the plane, of standard deviation 1, with N(0, 10) as a prior that hardly matters."""
    centres = np.array([[-0.5 * apart, 0.0], [0.5 * apart, 0.0]])

    def likelihood(x):
        return -jax.nn.logsumexp(jnp.log(jnp.array([1 - weight, weight])) - 0.5 * jnp.sum(jnp.square(x - centres), axis=1))

    return separated.Problem(
        2,
        2,
        likelihood,
        lambda x: separated.square_sum(x, 0.0, 10.0),
        separated.normal_quantile(0.0, 10.0),
        lambda x: (x[0] > 0.0).astype(int),
        separated.itself,
    )


@each
def test_the_prior_is_the_density_of_its_quantiles(name):
    """Each coordinate by itself: the slope of the quantile is one over the density, up to a constant of all."""
    target = separated.problem(name)
    uniform = np.random.default_rng(0).uniform(0.02, 0.98, size=(6, target.dim))
    h = 1e-6
    slope = (target.quantile(uniform + h) - target.quantile(uniform - h)) / (2 * h)
    constant = np.log(slope).sum(1) - np.asarray(jax.vmap(target.prior)(jnp.asarray(target.quantile(uniform))))
    np.testing.assert_allclose(constant, constant[0], atol=1e-5)
    assert target.draws(jax.random.key(0), 5).shape == (5, target.dim)


@each
def test_images_are_places_of_one_likelihood_in_every_mode(name):
    target = separated.problem(name)
    x = target.draws(jax.random.key(1), 3)
    images = jax.vmap(target.images)(x)
    np.testing.assert_array_equal(images[:, 0], x)
    if images.shape[1] > 1:
        likelihood = jax.vmap(jax.vmap(target.likelihood))(images)
        np.testing.assert_allclose(likelihood, np.broadcast_to(likelihood[:, :1], likelihood.shape))
        labels = np.asarray(jax.vmap(jax.vmap(target.label))(images))
        assert all(sorted(row) == list(range(target.modes)) for row in labels.tolist())


def test_weights_of_images_hardly_hang_on_what_was_crossed():
    """Two mirrored laws under a prior that leans: a grid over the line knows. A run that saw one of the two is nearly right."""
    leaning = lambda x: separated.square_sum(x, jnp.array([1.0, 0.0]), 2.0)
    target = pair(0.5)._replace(images=lambda x: jnp.stack([x, -x]), prior=leaning)
    grid = jnp.stack([jnp.linspace(-12.0, 12.0, 4_001), jnp.zeros(4_001)], axis=1)
    density, line = np.exp(-np.asarray(jax.vmap(target.total)(grid))), np.asarray(grid[:, 0])
    known = density @ (line > 0.0) / density.sum()
    for seen, within in ((line > -99.0, 1e-3), (line > 0.0, 0.01)):
        found = multimodal.figures(target, crossers.Found(np.asarray(grid)[None], (density * seen)[None], 0))
        assert found["weights"][1] == pytest.approx(known, abs=within)
        assert found["mean"][0] == pytest.approx(density @ line / density.sum(), abs=10 * within)


def velocities(table):
    """BJD, velocity about the instrument's median, error."""
    at, v, error = np.array([line.split() for line in table.split(",")], float).T
    return np.stack([at, v - np.median(v), error], axis=1)


VELOCITIES = np.vstack([velocities(separated.HARPS_N), velocities(separated.PFS)])


def orbit(x):
    """Mean and standard deviation of each velocity."""
    at, _, error = VELOCITIES.T
    nights = sorted({int(day) for day in at})
    offset = np.array([x[4 + nights.index(int(day))] for day in at])
    angle = 2 * np.pi * (at - at.mean()) / np.exp(x[0])
    return offset + x[2] * np.cos(angle) + x[3] * np.sin(angle), np.hypot(error, np.exp(x[1]))


def direct(name, x):
    """The likelihood from its statement, by scipy, up to a constant."""
    rng = {"phase_retrieval": 2013, "gaussian_process": 49, "neural_network": 1995, "sensor_network": 1}
    if name == "exoplanet":
        mean, sd = orbit(x)
        return stats.norm(mean, sd).logpdf(VELOCITIES[:, 1]).sum()
    if name == "galaxies":
        mu, log_square, log_v = x.reshape(3, 3)
        y = np.array(separated.GALAXIES.split(), float)[:, None]
        return np.log(stats.norm(mu, np.exp(0.5 * log_square)).pdf(y) @ special.softmax(log_v)).sum()
    rng = np.random.default_rng(rng[name])
    if name == "phase_retrieval":
        design = rng.normal(size=(30, 10)) / math.sqrt(10)
        y = (design @ rng.normal(size=10)) ** 2 + 0.5 * rng.normal(size=30)
        return stats.norm((design @ x) ** 2, 0.5).logpdf(y).sum()
    if name == "sensor_network":
        places = rng.uniform(size=(11, 2))
        pairs = [(i, j) for i in range(8) for j in range(i + 1, 11)]
        between = lambda where: np.array([math.dist(where[i], where[j]) for i, j in pairs])
        hears = rng.uniform(size=len(pairs)) < np.exp(-(between(places) ** 2) / 0.18)
        y = between(places) + 0.02 * rng.normal(size=len(pairs))
        r = between(np.vstack([x.reshape(8, 2), places[8:]]))
        heard = stats.norm(r, 0.02).logpdf(y) - r**2 / 0.18
        return np.where(hears, heard, np.log(1 - np.exp(-(r**2) / 0.18))).sum()
    if name == "gaussian_process":
        at = np.sort(rng.uniform(-7.5, 7.5, size=20))
        kernel = np.exp(-((at[:, None] - at) ** 2) / 2)
        y = np.linalg.cholesky(kernel + 0.01 * np.eye(20)) @ rng.normal(size=20)
        f = 0.0
        for j, z in enumerate(x[2:], start=1):
            w, length = np.pi * j / 20, np.exp(x[0])
            density = np.sqrt(2 * np.pi) * length * np.exp(-((length * w) ** 2) / 2)
            f = f + np.sqrt(density) * z * np.sin(w * (at + 10)) / np.sqrt(10)
        return stats.norm(f, np.exp(x[1])).logpdf(y).sum()
    at = np.linspace(-2.0, 2.0, 30)
    y = np.tanh(4 * (at + 1.2)) - np.tanh(4 * at) + np.tanh(4 * (at - 1.2)) + 0.2 * rng.normal(size=30)
    w, b, v = x[:9].reshape(3, 3)
    return stats.norm(x[9] + sum(v[k] * np.tanh(w[k] * at + b[k]) for k in range(3)), 0.2).logpdf(y).sum()


@each
def test_the_likelihood_is_the_one_that_is_stated(name):
    target = separated.problem(name)
    x = np.asarray(target.draws(jax.random.key(2), 4))
    sums = np.asarray(jax.vmap(target.likelihood)(jnp.asarray(x))) + [direct(name, one) for one in x]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in separated.NAMES if separated.problem(name).exact is None])
def test_what_is_told_of_a_posterior_is_what_another_sampler_says(name):
    """Of a population of 10,000 and of nested sampling with 500 points, the better; the rest of the orbit is exact."""
    found, truth = json.loads(separated.TRUTH.read_text())[name], separated.truth(name)
    apart = lambda one: np.abs((truth.mean - one["mean"]) / truth.sd).max() + np.abs(np.log(truth.sd / one["sd"])).max()
    other = min((found[way] for way in ("tempered SMC", "nested sampling")), key=apart)
    assert apart(other) < 0.15
    assert 0.5 * np.abs(truth.weights - other["weights"]).sum() < 0.05
    assert truth.weights.sum() == pytest.approx(1.0)
    if len(separated.problem(name).images(jnp.zeros(separated.problem(name).dim))) == len(truth.weights) > 2:
        np.testing.assert_allclose(truth.weights, 1 / len(truth.weights), rtol=1e-6)


def test_the_grid_of_the_gaussian_process_is_that_of_its_marginal_likelihood():
    """By the covariance of the data, a coarser grid, and the mean of z given the hyperparameters as regression has it."""
    rng = np.random.default_rng(49)
    at = np.sort(rng.uniform(-7.5, 7.5, size=20))
    y = np.linalg.cholesky(np.exp(-((at[:, None] - at) ** 2) / 2) + 0.01 * np.eye(20)) @ rng.normal(size=20)
    w = np.pi * np.arange(1, 21) / 20
    basis = np.sin(w * (at[:, None] + 10)) / np.sqrt(10)
    lengths, noises = np.linspace(-7.0, 9.0, 97), np.linspace(-6.0, 3.0, 46)
    density, means = np.empty((97, 46)), np.empty((97, 46, 22))
    for i, a in enumerate(lengths):
        root = np.sqrt(np.sqrt(2 * np.pi) * np.exp(a - (np.exp(a) * w) ** 2 / 2))
        for j, b in enumerate(noises):
            covariance = (basis * root**2) @ basis.T + np.exp(2 * b) * np.eye(20)
            prior = stats.norm(1.0, 2.0).logpdf(a) + stats.norm(-1.5, 1.5).logpdf(b)
            density[i, j] = stats.multivariate_normal(np.zeros(20), covariance).logpdf(y) + prior
            means[i, j] = [a, b, *(root * (basis.T @ np.linalg.solve(covariance, y)))]
    share = np.exp(density - density.max())
    share /= share.sum()
    truth = separated.truth("gaussian_process")
    assert truth.weights[0] == pytest.approx(share[lengths < 0.41].sum(), abs=0.02)  # the border lies between two nodes
    np.testing.assert_allclose(truth.mean, np.einsum("ij,ijm->m", share, means), atol=0.02)


def test_the_grid_of_the_exoplanet_is_that_of_its_marginal_likelihood():
    """By the covariance of the velocities, a coarser grid, and offsets and wave given the two as regression has them."""
    at, y, error = VELOCITIES.T
    nights = np.array(sorted({int(day) for day in at}))
    of_night = (nights == np.floor(at)[:, None]).astype(float)
    prior = np.concatenate([[10.0, 10.0], np.full(len(nights), 30.0)])

    def of(periods, noise):
        """Log densities, and means of all coordinates."""
        angle = 2 * np.pi * (at - at.mean()) / np.exp(periods)[:, None]
        waves = np.stack([np.cos(angle), np.sin(angle)], axis=2)
        design = np.concatenate([waves, np.broadcast_to(of_night, (len(periods), *of_night.shape))], axis=2) * prior
        covariance = design @ design.swapaxes(1, 2) + np.diag(error**2 + np.exp(2 * noise))
        solved = np.linalg.solve(covariance, np.broadcast_to(y[:, None], (len(periods), len(y), 1)))[..., 0]
        density = -0.5 * (np.linalg.slogdet(covariance)[1] + solved @ y)
        density += stats.norm(np.log(0.4), 0.3).logpdf(periods) + stats.norm(0.5, 0.75).logpdf(noise)
        linear = np.einsum("ptk,pt->pk", design, solved) * prior
        return density, np.hstack([periods[:, None], np.full((len(periods), 1), noise), linear])

    periods = np.linspace(np.log(0.4) - 1.5, np.log(0.4) + 1.5, 7_501)  # peaks are as wide as a step or wider
    density, _ = of(periods, 1.2)
    periods = periods[density > density.max() - 12.0]
    found = [of(periods, noise) for noise in np.arange(-2.1, 3.0, 0.3)]
    share = np.exp([density - max(one.max() for one, _ in found) for density, _ in found])
    share /= share.sum()
    truth = separated.truth("exoplanet")
    modes = (np.exp(-periods) < 2.54).astype(int) + (np.exp(-periods) < 2.04)
    np.testing.assert_allclose(truth.weights, np.bincount(modes, share.sum(0), 3), atol=2e-3)
    means = sum(weights @ mean for weights, (_, mean) in zip(share, found, strict=True))
    np.testing.assert_allclose((truth.mean - means) / truth.sd, 0.0, atol=0.01)


def test_the_mixture_of_galaxies_has_the_evidence_that_is_published():
    """-226.8, in Neal's note of 1999 and by brute force; the likelihood leaves out the constants of 82 normal laws."""
    nested = json.loads(separated.TRUTH.read_text())["galaxies"]["nested sampling"]
    assert nested["log_evidence"] - 41.0 * math.log(2.0 * math.pi) == pytest.approx(-226.8, abs=0.5)


def test_what_two_processes_find_of_the_truth_is_kept(tmp_path, monkeypatch):
    """Another one writes while this one is finding, and none while this one writes."""
    path, found = tmp_path / "truth.json", {"weights": [1.0], "mean": [0.0], "sd": [1.0]}

    def find(*_):
        known = multimodal.truth_in(path)
        known.setdefault("other", {})[str(len(known.get("other", {})))] = found
        path.write_text(json.dumps(known))
        return found

    def replace(path, data):
        folder = os.open(path.parent, os.O_RDONLY)
        assert not locked(folder)
        os.close(folder)
        path.write_bytes(data)

    monkeypatch.setattr(multimodal, "told", find)
    monkeypatch.setattr(multimodal, "nested", find)
    monkeypatch.setattr(files, "replace", replace)
    multimodal.find_truth(["galaxies"], path, Console(quiet=True))
    known = json.loads(path.read_text())
    assert known["galaxies"].keys() == {"parallel tempering", "tempered SMC", "nested sampling"}
    assert known["other"].keys() == {"0", "1", "2"}


def toy_truth():
    return separated.Truth(np.array([0.2, 0.8]), np.array([1.8, 0.0]), np.array([math.sqrt(1 + 36 * 0.16), 1.0]))


def toy_found(weight=0.8, chains=4, draws=5_000):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(chains, draws, 2))
    samples[..., 0] += np.where(rng.uniform(size=(chains, draws)) < weight, 3.0, -3.0)
    return crossers.Found(samples, np.ones((chains, draws)), 1_000)


def test_independent_draws_have_hardly_an_error():
    found = multimodal.score(pair(), toy_truth(), toy_found())
    assert found["variation"] < 0.015  # 20,000 draws: three standard errors are 0.0085
    assert found["chain_variation"] < 0.02
    assert found["error"] < 0.03
    assert found["error_square"] < 0.05
    assert found["found"] == 2


def test_weights_that_are_wrong_are_told():
    assert multimodal.score(pair(), toy_truth(), toy_found(0.5))["variation"] == pytest.approx(0.3, abs=0.02)
    one = multimodal.score(pair(), toy_truth(), toy_found(1.0))
    assert one["found"] == 1
    assert one["variation"] == pytest.approx(0.2, abs=0.01)
    assert one["error"] == pytest.approx(1.2 / 2.6, abs=0.03)


def test_chains_that_never_cross_are_seen_although_all_together_are_right():
    whole = toy_found()
    order = np.argsort(whole.samples[..., 0].ravel())
    stuck = whole._replace(samples=whole.samples.reshape(-1, 2)[order].reshape(5, 4_000, 2), weights=np.ones((5, 4_000)))
    found = multimodal.score(pair(), toy_truth(), stuck)
    assert found["variation"] < 0.015
    assert found["chain_variation"] == pytest.approx(0.8 * 0.2 + 0.2 * 0.8, abs=0.02)


def test_weighted_draws_count_by_their_weights_and_lost_chains_not_at_all():
    half = toy_found(0.5)
    weighted = half._replace(weights=np.where(half.samples[..., 0] > 0, 0.8, 0.2))
    assert multimodal.score(pair(), toy_truth(), weighted)["variation"] < 0.02
    lost = toy_found()
    lost.samples[0, 1_000:] = np.nan
    assert multimodal.score(pair(), toy_truth(), lost)["variation"] < 0.02
    lost.samples[...] = np.inf
    assert multimodal.score(pair(), toy_truth(), lost)["error"] == math.inf


def row(method="NUTS", seed=0, stage="report", **changes):
    figures = {"variation": 0.1, "chain_variation": 0.2, "found": 2, "modes": 2, "error": 0.1, "error_square": 0.1}
    more = {"round_trips": math.nan, "seconds": 1.0, "by": "blackjax 1"}
    return multimodal.Row("galaxies", method, "{}", stage, seed, 100, 4, 10, 100, **figures | more | changes)


def test_the_command_runs_what_is_missing_and_draws(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setenv("COLUMNS", "200")

    def independent(target, key, budget, *, weight):
        ran.append((weight, budget))
        return toy_found(weight)

    monkeypatch.setattr(separated, "problem", lambda _: pair())
    monkeypatch.setattr(separated, "truth", lambda _: toy_truth())
    monkeypatch.setitem(crossers.METHODS, "NUTS", crossers.Method(independent, crossers.among(weight=(0.5, 0.8)), "blackjax"))
    places = ["--methods", "NUTS", "--csv", str(tmp_path / "results.csv"), "--out", str(tmp_path)]
    multimodal.main(["--small", *places])
    quarter = multimodal.SMALL // 4
    assert ran == [(0.5, quarter), (0.8, quarter), (0.8, multimodal.SMALL)]  # the pilots, and the better setting
    assert "weight 0.8" in capsys.readouterr().out
    assert (tmp_path / "multimodal.png").stat().st_size > 5_000
    first = table.read(tmp_path / "results.csv", multimodal.Row)
    multimodal.main(["--small", *places])
    assert len(ran) == 3
    assert str(table.read(tmp_path / "results.csv", multimodal.Row)) == str(first)
    with pytest.raises(SystemExit):
        multimodal.main(["--seeds", "0"])


def test_every_method_has_a_colour():
    assert set(crossers.METHODS) == set(multimodal.COLORS)


def test_walkers_are_followed_through_the_ladder():
    """Equal temperatures: each exchange is accepted and walkers go round. Temperatures far apart: none is, and none does."""
    places = pair().draws(jax.random.key(0), 9).reshape(3, 3, 2)
    begin = jnp.broadcast_to(jnp.arange(3)[:, None], (3, 3))
    sizes, key = 0.1 * jnp.ones((3, 1, 2)), jax.random.key(1)
    equal = crossers.exchanging(pair(), jnp.ones(3), places, begin, sizes, key)
    apart = crossers.exchanging(pair(apart=1e4), jnp.array([1.0, 1e-9, 1e-12]), places, begin, sizes, key)
    ranks = [np.asarray(equal.rank)]
    assert (np.argsort(np.asarray(equal.walker), axis=0) == ranks[0][-1]).all()
    for block in range(3):
        equal = crossers.exchanging(pair(), jnp.ones(3), equal.last, equal.walker, sizes, jax.random.fold_in(key, block))
        ranks.append(np.asarray(equal.rank))
    rank = np.concatenate(ranks)
    assert (np.sort(rank, axis=1) == np.arange(3)[:, None]).all()  # at any time each rank is somebody's
    assert (np.ptp(rank, axis=0) == 2).all()
    assert (np.abs(np.diff(rank, axis=0)) <= 1).all()  # neighbours only, from block to block too
    assert (np.asarray(apart.rank)[:, 0] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "setting"), [("parallel tempering", {"replicas": 4, "hottest": 0.1}), ("tempered SMC", {})])
def test_samplers_weigh_two_modes_and_count_every_gradient(method, setting):
    """Calls of the gradient and of the energy alone, counted by callbacks in the likelihood."""
    gradients, energies, target = [], [], pair()

    @jax.custom_jvp
    def counted(x):
        jax.debug.callback(energies.append, x[0])
        return target.likelihood(x)

    @counted.defjvp
    def counted_jvp(primals, tangents):
        jax.debug.callback(gradients.append, primals[0][0])
        return jax.jvp(target.likelihood, primals, tangents)

    how = crossers.METHODS[method]
    setting = {**how.settings[0], **setting}
    found = how.sample(target._replace(likelihood=counted), jax.random.key(0), 12_000, **setting)
    jax.effects_barrier()
    assert found.gradients == pytest.approx(len(gradients) + 0.5 * len(energies), rel=0.05)
    assert found.gradients == pytest.approx(12_000, rel=0.5)
    more = how.sample(target, jax.random.key(1), 100_000, **setting)
    assert multimodal.score(target, toy_truth(), more)["variation"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["parallel tempering", "CTLD"])
def test_the_smallest_run_ends_in_a_table_and_a_figure(method, tmp_path, capsys):
    multimodal.main(["--small", "--methods", method, "--csv", str(tmp_path / "results.csv"), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "galaxies" in printed
    report = table.read(tmp_path / "results.csv", multimodal.Row)[-1]
    assert report.stage == "report"
    assert report.found >= 5
    assert report.variation < 0.4  # one mode of six alone: 0.83
    assert report.round_trips > 0.0
    assert report.gradients == pytest.approx(multimodal.SMALL, rel=0.1)
