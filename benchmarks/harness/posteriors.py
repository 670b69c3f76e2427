"""Twelve real posteriors of posteriordb, as potentials of a flat vector, and the moments of its reference draws.

posteriordb (https://github.com/stan-dev/posteriordb) is a collection of Bayesian models with data and with long, checked runs
of Stan's NUTS. Each density is written here from its statement, with the Jacobian of its change of coordinates: logarithms of
what is positive, logits of what lies in an interval, and coordinates otherwise as they come, so that what is badly scaled or
nearly collinear in the statement is so for the sampler. Constants are left out. N(m, s) has the standard deviation s.

A Gaussian regression meets its data only through a triangle of numbers, found once: with X = QR,
|y - X b|^2 = |Q'y - R b|^2 + rest. That is exact, also where the columns of X are nearly collinear, and a gradient costs
no more for 5,000 observations than for 50.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import data
from ctld_optax._arviz import arviz

Data = Mapping[str, Any]
Potential = Callable[[jax.Array], jax.Array]
Constrain = Callable[[jax.Array], jax.Array]


class Reference(NamedTuple):
    """Moments of the reference draws in the natural space, and the Monte Carlo errors of two of them, each of shape (d,)."""

    mean: np.ndarray
    sd: np.ndarray
    mean_of_square: np.ndarray
    mcse_mean: np.ndarray
    mcse_sd: np.ndarray


class Posterior(NamedTuple):
    """A negative log density, and what its coordinates mean.

    Attributes:
      name: as posteriordb has it.
      parameters: the names of the natural parameters, in the order of the reference.
      potential: of an unconstrained vector of shape (d,), a scalar.
      constrain: of such a vector, the natural parameters, of shape (d,).
      reference: what is known of the natural parameters.
      centre, spread: of the normal law, in each coordinate, that chains start from.
    """

    name: str
    parameters: tuple[str, ...]
    potential: Potential
    constrain: Constrain
    reference: Reference
    centre: Any = 0.0
    spread: float = 2.0

    @property
    def dim(self) -> int:
        return len(self.parameters)


def read(name: str) -> tuple[Data, dict[str, dict[str, float]]]:
    """The data of a posterior, and the moments of its reference draws, by parameter.

    Both are JSON, in the folder `posteriordb` of CTLD_DATA_DIR if it has them, else in the archives that `data.fetch` finds.
    """
    short, folder = name.partition("-")[0], pathlib.Path(os.environ.get("CTLD_DATA_DIR", "")) / "posteriordb"
    if (moments := folder / f"{name}.reference.json").is_file():
        return json.loads((folder / f"{short}.data.json").read_text()), json.loads(moments.read_text())["parameters"]
    known, draws = (json.loads(data.read_only_member(data.fetch(f"{file}.json.zip"))) for file in (short, name))
    return known, {parameter: moments_of(np.array([chain[parameter] for chain in draws])) for parameter in draws[0]}


def moments_of(draws: np.ndarray) -> dict[str, float]:
    """Of draws of one parameter, shape (chains, draws): the fields of `Reference`."""
    error = arviz("the moments of draws are ArviZ's").mcse
    first, second = np.mean(draws), np.mean(np.square(draws))
    found = (first, np.std(draws, ddof=1), second, error(draws), error(draws, method="sd"))
    return dict(zip(Reference._fields, map(float, found), strict=True))


def posterior(name: str, **options: Any) -> Posterior:
    """A posterior by its name, one of `NAMES`. The options are those of its density: `gauss_mix` has some."""
    known, moments = read(name)
    potential, constrain = _DENSITIES[name](known, **options)
    reference = Reference(*(np.array([one[field] for one in moments.values()]) for field in Reference._fields))
    return Posterior(name, tuple(moments), potential, constrain, reference, **_STARTS.get(name, {}))


def starts(target: Posterior, key: jax.Array, chains: int, *, times: float = 1.0, tries: int = 100) -> jax.Array:
    """Draws from N(centre, times * spread), of shape (chains, d); where the density or its gradient overflows, drawn anew."""
    drawn = target.centre + times * target.spread * jax.random.normal(key, (tries, chains, target.dim))
    value, gradient = jax.lax.map(jax.vmap(jax.value_and_grad(target.potential)), drawn)
    is_good = jnp.isfinite(value) & jnp.isfinite(gradient).all(-1)
    return jnp.take_along_axis(drawn, jnp.argmax(is_good, 0)[None, :, None], axis=0)[0]


def half_normal(value: jax.Array, scale: float) -> jax.Array:
    return 0.5 * jnp.square(value / scale)


def student_t(value: jax.Array, freedom: float, location: float, scale: float) -> jax.Array:
    return 0.5 * (freedom + 1.0) * jnp.log1p(jnp.square((value - location) / scale) / freedom)


def normal(value: Any, location: Any, scale: Any) -> jax.Array:
    """Of constant scale: its logarithm is left out."""
    return 0.5 * jnp.sum(jnp.square((value - location) / scale))


def logit_jacobian(x: jax.Array) -> jax.Array:
    """Minus the logarithm of the derivative of the logistic function."""
    return -jax.nn.log_sigmoid(x) - jax.nn.log_sigmoid(-x)


def regression(
    design: np.ndarray, response: np.ndarray, prior: Callable[[jax.Array, jax.Array], Any] = lambda *_: 0.0
) -> tuple[Potential, Constrain]:
    """Y ~ N(X b, sigma) in the coordinates (b, log sigma); `prior(b, sigma)` is a negative log density, flat if not given."""
    q, r = np.linalg.qr(design)
    projected = q.T @ response
    rest, observations = float(np.sum(np.square(response - q @ projected))), len(response)

    def potential(x: jax.Array) -> jax.Array:
        beta, log_sigma = x[:-1], x[-1]
        squares = jnp.sum(jnp.square(projected - r @ beta)) + rest
        likelihood = observations * log_sigma + 0.5 * squares * jnp.exp(-2.0 * log_sigma)
        return likelihood + prior(beta, jnp.exp(log_sigma)) - log_sigma

    return potential, last_positive


def last_positive(x: jax.Array) -> jax.Array:
    return x.at[-1].set(jnp.exp(x[-1]))


def columns(*each: Any) -> np.ndarray:
    return np.stack(np.broadcast_arrays(*(np.asarray(column, np.float64) for column in each)), axis=1)


def ark(known: Data) -> tuple[Potential, Constrain]:
    """An autoregression of order K: alpha, beta_k ~ N(0, 10), sigma ~ half-Cauchy(0, 2.5)."""
    y, order = np.asarray(known["y"]), known["K"]
    lags = [y[order - lag : len(y) - lag] for lag in range(1, order + 1)]
    return regression(
        columns(1.0, *lags), y[order:], lambda beta, sigma: normal(beta, 0.0, 10.0) + student_t(sigma, 1, 0.0, 2.5)
    )


def kilpisjarvi(known: Data) -> tuple[Potential, Constrain]:
    """A line through temperatures, over years that are not centred: intercept and slope are correlated to five nines."""
    location = np.array([known["pmualpha"], known["pmubeta"]])
    scale = np.array([known["psalpha"], known["psbeta"]])
    return regression(columns(1.0, known["x"]), np.asarray(known["y"]), lambda beta, _: normal(beta, location, scale))


def mesquite(known: Data) -> tuple[Potential, Constrain]:
    first, second, height = (np.asarray(known[name]) for name in ("diam1", "diam2", "canopy_height"))
    logs = np.log([first * second * height, first * second, first / second, known["total_height"]])
    return regression(columns(1.0, *logs, known["group"]), np.log(known["weight"]))


def nes(known: Data) -> tuple[Potential, Constrain]:
    ages = [np.equal(known["age_discrete"], age) for age in (2, 3, 4)]
    design = columns(1.0, known["real_ideo"], known["race_adj"], *ages, known["educ1"], known["gender"], known["income"])
    return regression(design, np.asarray(known["partyid7"], np.float64))


def sblrc(known: Data) -> tuple[Potential, Constrain]:
    """Beta ~ N(0, 10), sigma ~ half-N(0, 10)."""
    prior = lambda beta, sigma: normal(beta, 0.0, 10.0) + half_normal(sigma, 10.0)
    return regression(np.asarray(known["X"]), np.asarray(known["y"]), prior)


def diamonds(known: Data) -> tuple[Potential, Constrain]:
    """Centred columns: b ~ N(0, 1), Intercept ~ Student-t(3, 8, 10), sigma ~ half-Student-t(3, 0, 10)."""
    design = np.asarray(known["X"])[:, 1:]
    design = np.column_stack([design - design.mean(0), np.ones(len(design))])
    prior = lambda beta, sigma: normal(beta[:-1], 0.0, 1.0) + student_t(beta[-1], 3, 8.0, 10.0) + student_t(sigma, 3, 0.0, 10.0)
    return regression(design, np.asarray(known["Y"]), prior)


def earnings(known: Data) -> tuple[Potential, Constrain]:
    height, male = np.asarray(known["height"]), np.asarray(known["male"])
    return regression(columns(1.0, height, male, height * male), np.log(known["earn"]))


def eight_schools(known: Data) -> tuple[Potential, Constrain]:
    """z_j ~ N(0, 1), mu ~ N(0, 5), tau ~ half-Cauchy(0, 5), y_j ~ N(theta_j, sigma_j) with theta_j = mu + tau z_j."""
    y, sigma = np.asarray(known["y"], np.float64), np.asarray(known["sigma"], np.float64)

    def constrain(x: jax.Array) -> jax.Array:
        tau = jnp.exp(x[9])
        return jnp.concatenate([x[8] + tau * x[:8], x[8:9], tau[None]])

    def potential(x: jax.Array) -> jax.Array:
        natural = constrain(x)
        prior = normal(x[:8], 0.0, 1.0) + normal(x[8], 0.0, 5.0) + student_t(natural[9], 1, 0.0, 5.0)
        return prior + normal(y, natural[:8], sigma) - x[9]

    return potential, constrain


def garch(known: Data) -> tuple[Potential, Constrain]:
    """Flat priors of mu, alpha0 > 0, alpha1 in (0, 1), beta1 in (0, 1 - alpha1); a variance that remembers the last one."""
    y, first = np.asarray(known["y"]), known["sigma1"] ** 2

    def constrain(x: jax.Array) -> jax.Array:
        alpha1 = jax.nn.sigmoid(x[2])
        return jnp.stack([x[0], jnp.exp(x[1]), alpha1, (1.0 - alpha1) * jax.nn.sigmoid(x[3])])

    def potential(x: jax.Array) -> jax.Array:
        mu, alpha0, alpha1, beta1 = constrain(x)
        # s_t^2 = c_t + beta1 s_{t-1}^2, and such maps compose: all of them in a few vector operations.
        fresh = jnp.concatenate([jnp.full(1, first), alpha0 + alpha1 * jnp.square(y[:-1] - mu)])
        compose = lambda before, after: (after[0] * before[0], after[1] + after[0] * before[1])
        variance = jax.lax.associative_scan(compose, (jnp.full_like(fresh, beta1), fresh))[1]
        likelihood = 0.5 * jnp.sum(jnp.log(variance) + jnp.square(y - mu) / variance)
        return likelihood - x[1] + logit_jacobian(x[2]) + logit_jacobian(x[3]) - jax.nn.log_sigmoid(-x[2])

    return potential, constrain


def lotka_volterra(known: Data, *, steps: int = 30) -> tuple[Potential, Constrain]:
    """Hares and lynxes: du/dt = (th1 - th2 v) u, dv/dt = (-th3 + th4 u) v, seen yearly with errors of their logarithms.

    th1, th3 ~ half-N(1, 0.5), th2, th4 ~ half-N(0.05, 0.05), sigma ~ lognormal(-1, 1), z0 ~ lognormal(log 10, 1). All
    coordinates are logarithms, and the equations are solved for those of u and v: fourth-order Runge-Kutta, `steps` a year.
    """
    seen = np.log(np.concatenate([[known["y_init"]], known["y"]]))  # from year 0 on
    location, scale = np.array([1.0, 0.05, 1.0, 0.05]), np.array([0.5, 0.05, 0.5, 0.05])

    def years(log_rates: jax.Array, begin: jax.Array) -> jax.Array:
        th1, th2, th3, th4 = jnp.exp(log_rates)
        slope = lambda z: jnp.stack([th1 - th2 * jnp.exp(z[1]), th4 * jnp.exp(z[0]) - th3])
        h = 1.0 / steps

        def step(z: jax.Array, _: None) -> tuple[jax.Array, None]:
            k1 = slope(z)
            k2 = slope(z + 0.5 * h * k1)
            k3 = slope(z + 0.5 * h * k2)
            k4 = slope(z + h * k3)
            return z + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

        def year(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            end = jax.lax.scan(step, z, None, length=steps, unroll=10)[0]
            return end, end

        return jnp.concatenate([begin[None], jax.lax.scan(year, begin, None, length=len(seen) - 1)[1]])

    def potential(x: jax.Array) -> jax.Array:
        log_rates, begin, log_sigma = x[:4], x[4:6], x[6:]
        prior = normal(jnp.exp(log_rates), location, scale) - jnp.sum(log_rates)
        # The lognormal densities' 1 / value and the Jacobian cancel.
        prior += normal(begin, np.log(10.0), 1.0) + normal(log_sigma, -1.0, 1.0)
        return prior + normal(seen, years(log_rates, begin), jnp.exp(log_sigma)) + len(seen) * jnp.sum(log_sigma)

    return potential, jnp.exp


def gauss_mix(known: Data, *, ordered: bool = True, num_obs: int | None = None) -> tuple[Potential, Constrain]:
    """A mixture of N(mu_k, sigma_k), the first with weight theta: mu ~ N(0, 2), sigma ~ half-N(0, 2), theta ~ Beta(5, 5).

    `ordered` asks for mu_1 < mu_2. Without it there are two modes, each the other with its names exchanged; the fewer
    observations (`num_obs`, the first ones), the lower the barrier between them.
    """
    y = np.asarray(known["y"])[:num_obs, None]

    def constrain(x: jax.Array) -> jax.Array:
        second = x[0] + jnp.exp(x[1]) if ordered else x[1]
        return jnp.stack([x[0], second, jnp.exp(x[2]), jnp.exp(x[3]), jax.nn.sigmoid(x[4])])

    def potential(x: jax.Array) -> jax.Array:
        natural = constrain(x)
        mu, sigma = natural[:2], natural[2:4]
        likelihood = jax.nn.logsumexp(_log_weights(x) - x[2:4] - 0.5 * jnp.square((y - mu) / sigma), axis=1)
        return gauss_mix_prior(x, mu) - jnp.sum(likelihood) - (x[1] if ordered else 0.0)

    return potential, constrain


def gauss_mix_prior(x: jax.Array, mu: jax.Array) -> jax.Array:
    """Of `gauss_mix`, with the Jacobian of the change of coordinates but for that of an order of the means, `mu`."""
    prior = normal(mu, 0.0, 2.0) + jnp.sum(half_normal(jnp.exp(x[2:4]), 2.0)) - 4.0 * jnp.sum(_log_weights(x))
    return prior - x[2] - x[3] + logit_jacobian(x[4])


def _log_weights(x: jax.Array) -> jax.Array:
    return jnp.stack([jax.nn.log_sigmoid(x[4]), jax.nn.log_sigmoid(-x[4])])


def gp_regr(known: Data) -> tuple[Potential, Constrain]:
    """A Gaussian process: rho ~ Gamma(25, rate 4), alpha ~ half-N(0, 2), sigma, the variance of the noise, ~ half-N(0, 1)."""
    at, y = np.asarray(known["x"], np.float64), np.asarray(known["y"])
    squares = np.square(at[:, None] - at)

    def potential(x: jax.Array) -> jax.Array:
        rho, alpha, sigma = jnp.exp(x)
        covariance = jnp.square(alpha) * jnp.exp(-0.5 * squares / jnp.square(rho)) + sigma * np.eye(len(y))
        factor = jnp.linalg.cholesky(covariance)
        likelihood = normal(jax.scipy.linalg.solve_triangular(factor, y, lower=True), 0.0, 1.0)
        likelihood += jnp.sum(jnp.log(jnp.diag(factor)))
        prior = 4.0 * rho - 24.0 * x[0] + half_normal(alpha, 2.0) + half_normal(sigma, 1.0)
        return likelihood + prior - jnp.sum(x)

    return potential, jnp.exp


_DENSITIES: dict[str, Callable[..., tuple[Potential, Constrain]]] = {
    "arK-arK": ark,
    "diamonds-diamonds": diamonds,
    "earnings-logearn_interaction": earnings,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "garch-garch11": garch,
    "gp_pois_regr-gp_regr": gp_regr,
    "hudson_lynx_hare-lotka_volterra": lotka_volterra,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "low_dim_gauss_mix-low_dim_gauss_mix": gauss_mix,
    "mesquite-logmesquite_logvash": mesquite,
    "nes2000-nes": nes,
    "sblrc-blr": sblrc,
}
NAMES = tuple(_DENSITIES)
# N(0, 2) of the logarithms of rates are animals that multiply fifty-fold a year, from where hardly any chain finds back:
# chains start around the middle of the priors.
_LOTKA_VOLTERRA = np.log([1.0, 0.05, 1.0, 0.05, 10.0, 10.0, *np.exp([-1.0, -1.0])])
_STARTS: dict[str, dict[str, Any]] = {"hudson_lynx_hare-lotka_volterra": {"centre": _LOTKA_VOLTERRA, "spread": 0.5}}
