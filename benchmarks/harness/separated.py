"""Posteriors whose modes are far apart, in two parts: what tempering heats, the likelihood, and the prior it leaves alone.

Each density is written here from its statement, in coordinates without bounds and with the Jacobian of that change: logarithms
of what is positive. Constants are left out. N(m, s) has the standard deviation s.

What is known of each without a sampler that crosses: an exact symmetry of the likelihood carries modes onto each other, so that
the weights of all follow from what is seen in one of them, and are equal where the prior has the symmetry too; or the
dimensions that matter are two, and a grid sums over them. What is left, two samplers with nothing in common tell; they have to
agree.
"""

import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

Potential = Callable[[jax.Array], jax.Array]
TRUTH = pathlib.Path(__file__).parents[1] / "results" / "multimodal_truth.json"


class Truth(NamedTuple):
    """Weights of the modes, and mean and standard deviation of each coordinate."""

    weights: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


class Problem(NamedTuple):
    """A posterior with separated modes.

    Attributes:
      dim: d, of its coordinates.
      modes: how many labels there are.
      likelihood, prior: negative log densities of a vector of shape (d,).
      quantile: the prior as a map from the unit cube, shapes (n, d) to (n, d), in NumPy.
      label: of a vector of shape (d,), to which mode it belongs, an integer in [0, modes).
      images: of such a vector, all places of the same likelihood that a symmetry carries it to, shape (group, d), itself first.
      exact: what a grid knows, or None.
    """

    dim: int
    modes: int
    likelihood: Potential
    prior: Potential
    quantile: Callable[[np.ndarray], np.ndarray]
    label: Callable[[jax.Array], jax.Array]
    images: Callable[[jax.Array], jax.Array]
    exact: Callable[[], Truth] | None = None

    def total(self, x: jax.Array) -> jax.Array:
        return self.likelihood(x) + self.prior(x)

    def draws(self, key: jax.Array, count: int) -> jax.Array:
        """Of the prior, shape (count, d)."""
        uniform = jax.random.uniform(key, (count, self.dim), minval=1e-12, maxval=1.0 - 1e-12)
        return jnp.asarray(self.quantile(np.asarray(uniform)))


@functools.cache
def truth(name: str, path: pathlib.Path = TRUTH) -> Truth:
    """What a grid knows, else what `python -m benchmarks.multimodal --truth` has found."""
    if (exact := problem(name).exact) is not None:
        return exact()
    found = json.loads(path.read_text())[name]["parallel tempering"]
    return Truth(*(np.array(found[field]) for field in Truth._fields))


def itself(x: jax.Array) -> jax.Array:
    return x[None]


def square_sum(x: Any, mean: Any = 0.0, sd: Any = 1.0) -> jax.Array:
    """Minus the logarithm of N(mean, sd), of constant scale, summed."""
    return 0.5 * jnp.sum(jnp.square((x - mean) / sd))


def normal_quantile(mean: Any, sd: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda uniform: mean + sd * special.ndtri(uniform)


def order(x: jax.Array) -> jax.Array:
    """Which of the permutations sorts x, an integer in [0, n!), in their lexicographic order."""
    table = np.array(list(itertools.permutations(range(x.size))))
    return jnp.argmax(jnp.all(table == jnp.argsort(x), axis=1))


# Velocities of 82 galaxies in the Corona Borealis region, in 1,000 km/s: Roeder, "Density estimation with confidence sets
# exemplified by superclusters and voids in the galaxies", JASA 85 (1990). The 78th is 26.960; some copies have 26.690.
GALAXIES = """
    9.172 9.350 9.483 9.558 9.775 10.227 10.406 16.084 16.170 18.419 18.552 18.600 18.927 19.052 19.070 19.330 19.343 19.349
    19.440 19.473 19.529 19.541 19.547 19.663 19.846 19.856 19.863 19.914 19.918 19.973 19.989 20.166 20.175 20.179 20.196
    20.215 20.221 20.415 20.629 20.795 20.821 20.846 20.875 20.986 21.137 21.492 21.701 21.814 21.921 21.960 22.185 22.209
    22.242 22.249 22.314 22.374 22.495 22.746 22.747 22.888 22.914 23.206 23.241 23.263 23.484 23.538 23.542 23.666 23.706
    23.711 24.129 24.285 24.289 24.366 24.717 24.990 25.633 26.960 26.995 32.065 32.789 34.279
"""


def galaxies() -> Problem:
    """A mixture of three normal laws whose names can be exchanged: six modes of weight 1/6, each with modes of its own.

    mu_k ~ N(20, 10), sigma_k^2 ~ inverse-gamma(3, 20), weights ~ Dirichlet(1, 1, 1): Chib, JASA 90 (1995); that a sampler
    which never exchanges the names errs there: Neal, "Erroneous results in ..." (1999). The weights are v_k / sum v with
    v_k ~ Exp(1). Coordinates: mu, log sigma^2, log v.
    """
    y = np.array(GALAXIES.split(), np.float64)[:, None]
    permutations = np.array(list(itertools.permutations(range(3))))

    def likelihood(x: jax.Array) -> jax.Array:
        mu, log_square, log_v = x.reshape(3, 3)
        each = jax.nn.log_softmax(log_v) - 0.5 * log_square - 0.5 * jnp.square(y - mu) * jnp.exp(-log_square)
        return -jnp.sum(jax.nn.logsumexp(each, axis=1))

    def prior(x: jax.Array) -> jax.Array:
        mu, log_square, log_v = x.reshape(3, 3)
        scale = jnp.sum(3.0 * log_square + 20.0 * jnp.exp(-log_square))
        return square_sum(mu, 20.0, 10.0) + scale + jnp.sum(jnp.exp(log_v) - log_v)

    def quantile(uniform: np.ndarray) -> np.ndarray:
        mu, square, v = np.split(uniform, 3, axis=1)
        inverse = special.gammainccinv(3.0, square)  # Gamma(3), from the top
        return np.hstack([20.0 + 10.0 * special.ndtri(mu), np.log(20.0 / inverse), np.log(-np.log1p(-v))])

    images = lambda x: x.reshape(3, 3)[:, permutations].swapaxes(0, 1).reshape(6, 9)
    return Problem(9, 6, likelihood, prior, quantile, lambda x: order(x[:3]), images)


def phase_retrieval() -> Problem:
    """Real phase retrieval: y_i = (a_i . x)^2 + N(0, 0.5), so that x and -x are alike, up to the prior x ~ N(m, 1), d = 10.

    30 measurements with a_i ~ N(0, 1/d), drawn with x itself. The prior's mean leans to one of the two. The statement:
    Candes, Strohmer and Voroninski, CPAM 66 (2013).
    """
    dim, rng = 10, np.random.default_rng(2013)
    design = rng.normal(size=(30, dim)) / math.sqrt(dim)
    hidden, lean = rng.normal(size=dim), 0.25
    y = np.square(design @ hidden) + 0.5 * rng.normal(size=30)
    mean = lean * hidden / np.linalg.norm(hidden)
    return Problem(
        dim,
        2,
        lambda x: square_sum(y, jnp.square(design @ x), 0.5),
        lambda x: square_sum(x, mean),
        normal_quantile(mean, 1.0),
        lambda x: (x @ hidden < 0.0).astype(int),
        lambda x: jnp.stack([x, -x]),
    )


def gaussian_process() -> Problem:
    """Is it signal or noise? A Gaussian process whose length scale l and noise s have two explanations of 20 points, d = 22.

    Of unit signal variance, with its values sampled too, in 20 basis functions of a box (-L, L), L = 10: f = sum_j
    sqrt(S_l(w_j)) z_j sin(w_j (x + L)) / sqrt(L), w_j = pi j / 2L, with S_l the spectral density of the squared exponential
    kernel (Solin and Sarkka, Statistics and Computing 30 (2020)). z ~ N(0, 1), log l ~ N(1, 2), log s ~ N(-1.5, 1.5), and
    y ~ N(f, s). The data are drawn with l = 1 and s = 0.1 of the process itself, by one of 200 seeds for which the law of
    log l has a valley: after Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), figure 5.5.
    Coordinates: log l, log s, z. A grid over the first two knows everything, since z is Gaussian given those.
    """
    count, half, rng, valley = 20, 10.0, np.random.default_rng(49), 0.41
    at = np.sort(rng.uniform(-7.5, 7.5, size=count))
    kernel = np.exp(-0.5 * np.square(at[:, None] - at))
    y = np.linalg.cholesky(kernel + 0.01 * np.eye(count)) @ rng.normal(size=count)
    frequency = 0.5 * np.pi * np.arange(1, count + 1) / half
    basis = np.sin(frequency * (at[:, None] + half)) / math.sqrt(half)
    mean, sd = np.array([1.0, -1.5] + count * [0.0]), np.array([2.0, 1.5] + count * [1.0])

    def amplitude(log_length: Any) -> jax.Array:
        """The root of the spectral density at the frequencies of the basis."""
        return jnp.exp(0.5 * log_length - 0.25 * jnp.square(jnp.exp(log_length) * frequency)) * (2.0 * np.pi) ** 0.25

    def likelihood(x: jax.Array) -> jax.Array:
        return square_sum(y, basis @ (amplitude(x[0]) * x[2:]), jnp.exp(x[1])) + count * x[1]

    def exact() -> Truth:
        lengths, noises = np.linspace(-7.0, 9.0, 401), np.linspace(-9.0, 6.0, 376)
        square = np.exp(2.0 * noises)[:, None]
        density, moments = list[np.ndarray](), list[np.ndarray]()
        for length in lengths:
            left, singular, right = np.linalg.svd(basis * np.asarray(amplitude(length)))
            variance = np.square(singular) + square
            misfit = (np.log(variance) + np.square(y @ left) / variance).sum(1)
            density.append(-0.5 * (misfit + np.square((length - 1.0) / 2.0) + np.square((noises + 1.5) / 1.5)))
            first = (singular * (y @ left) / variance) @ right
            second = np.square(first) + (square / variance) @ np.square(right)
            both = np.stack([np.broadcast_to(length, noises.shape), noises], axis=1)
            moments.append(np.hstack([both, first, np.square(both), second]))
        share = np.exp(np.array(density) - np.max(density))
        share /= share.sum()
        means, squares = np.split(np.einsum("ls,lsm->m", share, np.array(moments)), 2)
        short = float(share[lengths < valley].sum())
        return Truth(np.array([short, 1.0 - short]), means, np.sqrt(squares - np.square(means)))

    return Problem(
        count + 2,
        2,
        likelihood,
        lambda x: square_sum(x, mean, sd),
        normal_quantile(mean, sd),
        lambda x: (x[0] > valley).astype(int),
        itself,
        exact,
    )


def neural_network() -> Problem:
    """A Bayesian neural network, 1-3-1 with tanh: 3! exchanges of units and 2^3 signs make 48 modes alike, d = 10.

    y ~ N(c + sum_k v_k tanh(w_k x + b_k), 0.2) at 30 places, drawn from a curve with three steps; w, b ~ N(0, 3), v, c ~
    N(0, 1). Coordinates: w, b, v, c. A mode is told by the order of the steps, -b / w, and the signs of w.
    """
    rng = np.random.default_rng(1995)
    at = np.linspace(-2.0, 2.0, 30)
    y = np.tanh(4.0 * (at + 1.2)) - np.tanh(4.0 * at) + np.tanh(4.0 * (at - 1.2)) + 0.2 * rng.normal(size=30)
    sd = np.array([3.0] * 6 + [1.0] * 4)
    permutations, signs = (
        np.array(list(one)) for one in (itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    )

    def likelihood(x: jax.Array) -> jax.Array:
        w, b, v = x[:9].reshape(3, 3)
        return square_sum(y, x[9] + jnp.tanh(at[:, None] * w + b) @ v, 0.2)

    def label(x: jax.Array) -> jax.Array:
        return 8 * order(-x[3:6] / x[:3]) + (x[:3] < 0.0) @ np.array([4, 2, 1])

    def images(x: jax.Array) -> jax.Array:
        units = x[:9].reshape(3, 3)[:, permutations][:, :, None] * signs  # (w b v, exchanges, signs, units)
        moved = units.transpose(1, 2, 0, 3).reshape(48, 9)
        return jnp.hstack([moved, jnp.broadcast_to(x[9], (48, 1))])

    prior = lambda x: square_sum(x, 0.0, sd)
    return Problem(10, 48, likelihood, prior, normal_quantile(0.0, sd), label, images)


# Radial velocities of K2-131 by HARPS-N and by PFS: BJD - 2,457,780, m/s and their error; Dai et al., "The discovery and mass
# measurement of a new ultra-short-period planet: K2-131b", Astronomical Journal 154, 226 (2017).
HARPS_N = """
    2.65615 -6682.78 3.71, 3.61632 -6710.55 5.95, 3.72195 -6698.96 8.76, 32.59115 -6672.32 4.00, 32.66810 -6672.00 4.22,
    32.72111 -6690.31 4.63, 33.53461 -6701.27 4.12, 33.56281 -6700.71 5.34, 33.58430 -6695.97 3.67, 33.60761 -6705.87 4.23,
    33.63498 -6694.27 5.12, 33.65657 -6699.99 5.00, 33.68168 -6696.17 10.43, 56.48220 -6675.40 7.03, 56.50805 -6665.92 7.48,
    56.53315 -6661.90 6.03, 56.55735 -6657.92 5.08, 56.58220 -6667.00 4.72, 56.60656 -6668.85 3.97, 56.63080 -6671.00 4.38,
    56.65503 -6671.76 5.12, 57.47474 -6707.18 5.09, 57.49701 -6709.14 6.08, 57.51966 -6714.79 4.02, 57.54103 -6704.63 5.38,
    57.56389 -6712.95 12.03, 58.52396 -6720.53 3.27, 58.54842 -6726.57 3.42, 58.57294 -6719.73 3.34, 58.59768 -6725.33 3.72,
    58.62169 -6712.55 4.64, 58.64668 -6713.49 4.98, 64.44051 -6700.01 4.63, 64.47029 -6700.62 4.24, 64.49442 -6697.37 4.55,
    64.51857 -6701.16 5.18, 64.54365 -6699.62 6.26, 64.56786 -6695.05 6.64, 64.59224 -6688.51 8.83
"""
PFS = """
    48.85718 -45.17 3.88, 48.87266 -36.47 4.03, 49.70652 -20.52 3.55, 49.72141 -4.58 6.07, 50.59287 17.71 3.56,
    50.60890 23.34 3.48, 50.68486 21.34 3.51, 50.70112 19.92 3.26, 50.74201 -0.74 3.44, 50.75830 16.90 3.50,
    50.83794 8.25 4.64, 50.85420 -4.06 4.91, 52.60032 -29.51 4.96, 52.61610 -21.56 4.11, 52.69542 -25.76 5.59,
    53.62080 2.10 3.91, 53.63700 4.38 3.73, 53.71138 2.23 4.12, 53.72778 -1.98 4.06, 53.82991 0.55 3.54,
    53.84582 -4.49 3.69, 68.53428 9.40 4.49, 68.55023 2.09 4.17, 68.63414 7.27 4.23, 68.65008 6.40 4.15,
    68.70933 29.22 3.92, 68.72551 14.37 4.19, 68.75682 23.83 5.51, 68.77330 6.85 5.44, 68.79458 19.56 5.14,
    68.81068 10.63 5.45
"""


def exoplanet() -> Problem:
    """The period of K2-131b from velocities alone: three periods explain what was seen in 14 nights, d = 18.

    A circular orbit, v ~ N(c_night + a cos(2 pi t / P) + b sin(2 pi t / P), sqrt(e^2 + s^2)), with an offset for each night,
    since spots move the star's lines from night to night, as in the source. Of an ultra-short-period planet, log P ~ N(log 0.4,
    0.3) in days; log s ~ N(0.5, 0.75), a, b ~ N(0, 10), c ~ N(0, 30) about the instrument's median, in m/s. The transits say
    0.369 days; nights one day apart show 0.585 as well, and gaps between nights 0.421. Coordinates: log P, log s, a, b, c. A
    grid over the first two knows everything, since the others are Gaussian given those.
    """
    series = [np.array([line.split() for line in one.split(",")], np.float64) for one in (HARPS_N, PFS)]
    at, y, error = np.vstack([one - [0.0, np.median(one[:, 1]), 0.0] for one in series]).T
    night = np.unique(np.floor(at), return_inverse=True)[1]
    nights = night.max() + 1
    at = at - at.mean()
    mean = np.array([math.log(0.4), 0.5] + (2 + nights) * [0.0])
    sd = np.array([0.3, 0.75, 10.0, 10.0] + nights * [30.0])
    edges = np.log([1.0 / 2.54, 1.0 / 2.04])  # between the three periods

    def likelihood(x: jax.Array) -> jax.Array:
        angle = 2.0 * np.pi * at * jnp.exp(-x[0])
        square = jnp.square(error) + jnp.exp(2.0 * x[1])
        misfit = y - x[4:][night] - x[2] * jnp.cos(angle) - x[3] * jnp.sin(angle)
        return 0.5 * jnp.sum(jnp.square(misfit) / square + jnp.log(square))

    def exact() -> Truth:
        periods, noises = np.linspace(mean[0] - 5.0 * sd[0], mean[0] + 5.0 * sd[0], 15_001), np.linspace(-4.0, 4.0, 41)
        angle = 2.0 * np.pi * np.exp(-periods)[:, None] * at
        waves = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        of_night = np.eye(nights)[night]
        density, moments = list[np.ndarray](), list[np.ndarray]()
        for noise in noises:
            weight = 1.0 / (np.square(error) + np.exp(2.0 * noise))
            # Offsets first, by their precisions; what they leave is two by two.
            precision = weight @ of_night + sd[4:] ** -2
            of_offsets = (weight * y) @ of_night / precision
            both = (waves * weight) @ of_night  # (periods, 2, nights)
            inner = np.einsum("pit,pjt,t->pij", waves, waves, weight) + np.diag(sd[2:4] ** -2)
            covariance = np.linalg.inv(inner - np.einsum("pin,pjn,n->pij", both, both, 1.0 / precision))
            pull = waves @ (weight * y) - both @ of_offsets
            ab = np.einsum("pij,pj->pi", covariance, pull)
            carried = both / precision
            c = of_offsets - np.einsum("pin,pi->pn", carried, ab)
            c_variance = 1.0 / precision + np.einsum("pin,pij,pjn->pn", carried, covariance, carried)
            log_density = 0.5 * (np.linalg.slogdet(covariance)[1] + np.einsum("pi,pi->p", pull, ab))
            log_density += 0.5 * (np.log(weight).sum() - np.log(precision).sum() - weight @ np.square(y))
            log_density += 0.5 * precision @ np.square(of_offsets)
            density.append(log_density - 0.5 * (np.square((periods - mean[0]) / sd[0]) + ((noise - mean[1]) / sd[1]) ** 2))
            first = np.hstack([periods[:, None], np.full((periods.size, 1), noise), ab, c])
            spread = np.hstack([np.zeros((periods.size, 2)), np.diagonal(covariance, axis1=1, axis2=2), c_variance])
            moments.append(np.hstack([first, np.square(first) + spread]))
        share = np.exp(np.array(density) - np.max(density))
        share /= share.sum()
        means, squares = np.split(sum(one @ two for one, two in zip(share, moments, strict=True)), 2)
        weights = np.bincount(np.searchsorted(edges, periods), share.sum(0), 3)
        return Truth(weights, means, np.sqrt(squares - np.square(means)))

    prior, label = lambda x: square_sum(x, mean, sd), lambda x: jnp.sum(x[0] > edges)
    return Problem(4 + nights, 3, likelihood, prior, normal_quantile(mean, sd), label, itself, exact)


def sensor_network() -> Problem:
    """Where are eight sensors that hear each other now and then? Two of them have a second place each: four modes, d = 16.

    Of eleven places, uniform in the unit square, three are known. Two sensors at the distance r hear each other with the
    probability exp(-r^2 / 2 R^2), R = 0.3, and if so read r with an error of N(0, 0.02); that a pair was silent counts too:
    Ihler, Fisher, Moses and Willsky, IEEE Journal on Selected Areas in Communications 23 (2005). The prior here is N(1/2, 1/2)
    in each coordinate. Of the seeds 0, 1, ... the first in which two sensors have two places ten times as far apart as wide.
    """
    count, noise, reach, rng = 8, 0.02, 0.3, np.random.default_rng(1)
    places = rng.uniform(size=(count + 3, 2))
    one, other = np.triu_indices(count + 3, 1)
    one, other = one[one < count], other[one < count]  # of two known places nothing is to be learned
    apart = np.linalg.norm(places[one] - places[other], axis=1)
    hears = rng.uniform(size=apart.size) < np.exp(-0.5 * np.square(apart / reach))
    y = apart + noise * rng.normal(size=apart.size)

    def likelihood(x: jax.Array) -> jax.Array:
        where = jnp.concatenate([x.reshape(count, 2), places[count:]])
        square = jnp.sum(jnp.square(where[one] - where[other]), axis=1)
        far = 0.5 * square / reach**2
        heard = far + 0.5 * jnp.square((y - jnp.sqrt(square)) / noise)
        return jnp.sum(jnp.where(hears, heard, -jnp.log(-jnp.expm1(-far))))

    # The fifth is at the lower edge or in the middle, the sixth in the middle or at the lower edge.
    label = lambda x: 2 * (x[9] > 0.27).astype(int) + (x[11] < 0.3).astype(int)
    half = normal_quantile(0.5, 0.5)
    return Problem(2 * count, 4, likelihood, lambda x: square_sum(x, 0.5, 0.5), half, label, itself)


_PROBLEMS: dict[str, Callable[[], Problem]] = {
    "galaxies": galaxies,
    "phase_retrieval": phase_retrieval,
    "gaussian_process": gaussian_process,
    "neural_network": neural_network,
    "exoplanet": exoplanet,
    "sensor_network": sensor_network,
}
NAMES = tuple(_PROBLEMS)


@functools.cache
def problem(name: str) -> Problem:
    """By its name, one of `NAMES`. The same functions each time, so that what was compiled for them serves again."""
    return _PROBLEMS[name]()
