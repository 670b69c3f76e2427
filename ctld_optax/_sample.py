"""Posterior samples by one call. It knows what a user has and wants; how chains walk and warm up is said elsewhere."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax import _batches as batches
from ctld_optax import _exact as exact
from ctld_optax import _heat as heat
from ctld_optax import _warmup as warmup
from ctld_optax._arrays import compat
from ctld_optax._arrays.dtypes import scalar_dtype_of
from ctld_optax._arviz import arviz
from ctld_optax._chains import Target, Trace
from ctld_optax._checked import checked
from ctld_optax._dynamics.adaptive_force import AdaptiveBiasingForce
from ctld_optax._dynamics.alpha import Bias
from ctld_optax._dynamics.tempering import GeometricTempering, PolynomialTempering
from ctld_optax._validate import as_key, check_arrays, check_count, check_params, check_range
from ctld_optax._windows import CHAINS, WINDOW, Sampler, batch_steps, exact_steps, start, start_batches, start_exact, steps
from ctld_optax.diagnostics._trajectory import round_trips

BIAS_WARMUP = 2  # times as many steps as those that find the metric, for alpha to see all modes
ENDLESS = 1e12  # a parameter beyond this is on its way to infinity
NO_BOTTOM = (
    "It is the *negative* log density: pass a log density as logdensity_fn=. A flat prior on what the data do not hold has no "
    "bottom either."
)


@checked()
def sample(
    loss_fn: Callable[..., Any] | None,
    initial: Any,
    key: int | jax.Array,
    *,
    data: Any = None,
    batch_size: int | None = None,
    logdensity_fn: Callable[..., Any] | None = None,
    prior_fn: Callable[[Any], Any] | None = None,
    constrain: Callable[[Any], Any] | None = None,
    num_chains: int = 4,
    num_warmup: int = 2_000,
    num_samples: int = 4_000,
    thin: int = 5,
    learning_rate: float = 0.1,
    momentum: float = 0.8,
    tempering: PolynomialTempering | Literal["auto"] | None = None,
    bias: Bias | None = AdaptiveBiasingForce(),
    alpha_step_size: float | None = None,
    progress: bool = False,
) -> Any:
    r"""Samples of :math:`\exp(-\text{loss\_fn}(\theta))`, without a number to set.

    Chains of :func:`ctld_optax.posterior_sampler` in a dense metric that a warm-up finds (:doc:`how </api/posterior>`), one
    gradient a step. Without `tempering` no step is refused: on a Gaussian it is exact whatever the learning rate; elsewhere up
    to an error of second order in the step, a few per cent of a standard deviation at most at the default. Half the
    `learning_rate` shows it.

    With `tempering` each chain heats up and cools down by itself, so that it crosses between modes, and the samples are what it
    saw while cold. There the error of a step is one of the modes' weights (a narrow mode may have a hundredth of its own), so
    that steps obey Metropolis's rule: they are accepted or refused, and exact whatever their length.

    `tempering="auto"` finds how hot it must become: the temperature at which chains that cool down begin to disagree is where
    modes part. With a `prior_fn` as well the prior is never heated: gradient and energy then make the density

    .. math:: \exp(-g(\alpha)\, \text{loss\_fn} - \text{prior\_fn} - p \cdot p / 2 - V_b(\alpha) - r_\alpha^2/2)

    so that what the data do not hold (a scale in its logarithm, say) cannot run away while hot. Each temperature has its own
    metric, and the bias begins with what the search for it has seen.

    With `data` and a `batch_size` a step looks at that many rows, drawn at random, in place of all: at two gradients of them,
    one of which is a control variate. The noise that this brings is measured, and that much less is injected (Eq. 8). All that
    comes before, the search for a mode and the warm-up that finds metric and learning rate, takes full gradients: lower
    `num_warmup` where they are dear.

    Example:
      >>> def loss_fn(params):  # the negative log density
      ...     return 0.5 * ((params["x"] / 3.0) ** 2 + (params["y"] - params["x"]) ** 2)
      >>> start = {"x": jnp.zeros(()), "y": jnp.zeros(())}
      >>> data = ctld_optax.posterior.sample(loss_fn, start, key=0)
      >>> data.posterior["x"].shape  # chains, samples
      (4, 4000)

      Minibatches, of a sum over rows and a prior:

      >>> rows = jax.random.normal(jax.random.key(1), (1_000, 2)) + jnp.array([1.0, 2.0])
      >>> misfit = lambda params, rows: 0.5 * jnp.sum((rows - params) ** 2)
      >>> prior = lambda params: 0.5 * jnp.sum((params / 10.0) ** 2)
      >>> data = ctld_optax.posterior.sample(
      ...     misfit,
      ...     jnp.zeros(2),
      ...     key=0,
      ...     data=rows,
      ...     batch_size=32,
      ...     prior_fn=prior,
      ...     num_warmup=250,
      ... )
      >>> data.sample_stats.attrs["gradients"] < 0.1 * 4 * 4_000 * 5  # in passes over the data
      True

      Two modes, nine standard deviations to each side of a prior:

      >>> normal = lambda x, at: -0.5 * jnp.sum((x - at) ** 2)
      >>> modes = lambda x: -jnp.logaddexp(normal(x, 9.0), normal(x, -9.0))
      >>> prior = lambda x: 0.5 * jnp.sum((x / 9.0) ** 2)
      >>> data = ctld_optax.posterior.sample(
      ...     modes, jnp.ones(2), key=0, prior_fn=prior, tempering="auto"
      ... )
      >>> data.sample_stats.attrs["hottest"]  # of the temperatures
      64.0

    Args:
      loss_fn: `loss_fn(params)`, the *negative* log density up to a constant, a scalar. A `potential_fn` of NumPyro's
        `initialize_model` is one. With a `prior_fn` the negative log likelihood alone.
      initial: params, where all chains begin their search for modes; or `initial(key) -> params`, which gives each chain a
        place of its own, as draws from the prior do: that is how several modes are found.
      key: an int or one key.
      data: a pytree of arrays with a row for each example along the first axis; the loss is then `loss_fn(params, data)`. None:
        the loss holds its data itself.
      batch_size: rows a step looks at, >= 1. The loss must then be a sum over the rows (no mean; a prior goes into `prior_fn`).
        None: all of them, every time. Not together with `tempering`, since a control variate knows one mode.
      logdensity_fn: the log density itself, in place of `loss_fn`, which is then None.
      prior_fn: `prior_fn(params)`, the negative log density of the prior, which tempering leaves alone.
      constrain: `constrain(params)`, what is kept of a sample, such as parameters in their natural bounds. A pytree.
      num_chains: >= 1.
      num_warmup: steps of a chain before the metric stands, >= 250, beside the search for a mode. With `tempering` some twenty
        windows of 250 steps of eight chains look for the temperature, and twice as many steps as `num_warmup`, not kept, let
        alpha move.
      num_samples: samples of a chain, >= 1. With `tempering` fewer come back, those in the window: about a quarter.
      thin: steps, and gradients, a sample costs.
      learning_rate: in units in which the target is round, of which 2 (1 + momentum) is the limit of stability. The warm-up
        lowers it where steps make an energy error of more than 0.1 k_B T per sqrt(d). With `tempering` it is where the search
        begins for one of each temperature, of whose steps a twentieth is refused.
      momentum: mu in [0, 1).
      tempering: "auto": as hot as need be, by a :class:`~ctld_optax.GeometricTempering`; or how hot; None: not at all.
      bias: of alpha, one for all chains: each learns from all.
      alpha_step_size: of alpha; None: 0.4 / (sqrt(d) log(1 / (1 - strength))), but at most 0.1.
      progress: whether to show a bar (needs `rich`).

    Returns:
      An `arviz.InferenceData`. `posterior` has a variable for each leaf of params, or of what `constrain` gives, by its path;
      `sample_stats` has `lp` (the log density), `energy` (with the kinetic one), `diverging`, `energy_error` where no step is
      refused and all rows are looked at, and with tempering `alpha`, `beta` and `acceptance_rate` of each sample. Its
      attributes: `gradients` and `warmup_gradients` of all chains (a minibatch counts as its share of the data), with a
      `batch_size` `brought` (the largest share of the noise due to a coordinate that minibatches bring), `learning_rate`,
      `metric_change` (the factor by which the last window changed the metric: near 1 if the warm-up has converged),
      `left_modes` (chains whose own mode had no mass to speak of), `num_params` and, with tempering, `hottest` (the highest
      temperature, in units of the posterior's own), `round_trips` (of all chains, between the window and the hot end, while
      sampling) and `bias_missing` (how much of the bias alpha has not seen yet).
      :func:`ctld_optax.diagnostics.report` judges it.

    Raises:
      ValueError: if there is no bottom to `loss_fn`, as when the log density comes in its place; if it is no sum over the rows
        beside a `batch_size`; or a number is out of range.
      TypeError: for arguments of the wrong kind.
      ImportError: without ArviZ (`pip install 'ctld-optax[posterior]'`).
    """
    az = arviz("posterior.sample returns an arviz.InferenceData")
    if (loss_fn is None) == (logdensity_fn is None):
        raise TypeError("loss_fn must be given, or None beside logdensity_fn=: one of the two says what to sample.")
    for name, count, least in (("num_chains", num_chains, 1), ("num_samples", num_samples, 1), ("thin", thin, 1)):
        check_count(name, count, least)
    check_count("num_warmup", num_warmup, WINDOW)
    check_range("learning_rate", learning_rate, minimum=0.0, minimum_open=True)
    check_range("alpha_step_size", 0.1 if alpha_step_size is None else alpha_step_size, minimum=0.0, minimum_open=True)
    data = _checked_data(data, batch_size, tempering)
    descent_key, begin_key, heat_key, init_key = jax.random.split(as_key(key), 4)

    starts = _starts(initial, init_key, num_chains)
    flat = _flattened(starts, num_chains)
    to_params = Unflat.of(jax.tree.map(lambda x: x[0], starts))
    heated: Any = Negated(logdensity_fn) if logdensity_fn is not None else loss_fn
    likelihood = OnFlat(heated, to_params, data)
    target = Target(likelihood, OnFlat(nothing if prior_fn is None else prior_fn, to_params))
    _check_energy(target, flat[0])
    if batch_size is not None:
        _check_sum(likelihood, flat[0])

    size = flat.shape[1]
    num_windows = math.ceil(num_warmup / WINDOW)
    num_heated = BIAS_WARMUP * num_windows if tempering is not None else 0
    num_calls = math.ceil(num_samples * thin / WINDOW)
    calls = _bar(num_windows + num_heated + num_calls, progress)

    cold = Sampler(momentum)
    found = warmup.find(target, flat, jnp.asarray(learning_rate, flat.dtype), descent_key)
    _check_start(found)
    warm = _warmed(target, found, cold, num_windows, begin_key, calls)
    _check_bottom(warm.energies, size)
    if batch_size is not None:
        way = _on_batches(target, cold, warm, batch_size, heat_key)
    elif tempering is None:
        way = _on_all(target, cold, warm, heat_key)
    else:
        waiting = (next(calls) for _ in range(num_heated))
        way = _tempered(target, cold, warm, tempering, bias, alpha_step_size, learning_rate, heat_key, waiting)
    chains = way.chains
    kept: list[Trace] = []
    for call in range(num_calls):
        next(calls)
        chains, trace = way.walk(chains)
        first = -call * WINDOW % thin
        kept.append(jax.tree.map(lambda x, first=first: np.asarray(x[:, first::thin]), trace._replace(grad=())))
    next(calls, None)
    run = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[:, :num_samples], *kept)

    told = dict(way.attributes)
    if way.tempering is not None:
        told["round_trips"] = round_trips(run.alpha, way.tempering.delta, way.tempering.delta_prime)
        if isinstance(bias, AdaptiveBiasingForce):
            seen = chains.bias.at[:, 0].add(-heat.TRUSTED)
            told["bias_missing"] = float(jnp.max(bias.missing(seen)))
        run = _cold(run, way.tempering)
    values = _values(run.position, to_params, constrain)
    stats = {
        "lp": -run.energy,
        "energy": run.energy + run.kinetic_energy,
        "energy_error": run.error,
        "diverging": run.diverging,
    }
    if way.tempering is not None:
        stats |= {"alpha": run.alpha, "beta": run.beta, "acceptance_rate": run.acceptance}
    result = az.from_dict(posterior=values, sample_stats={name: stats[name] for name in stats if name not in way.unknown})
    result.sample_stats.attrs.update(
        gradients=num_chains * num_calls * WINDOW * way.share,
        warmup_gradients=int(found.gradients) + num_chains * (num_windows + num_heated) * WINDOW + way.spent,
        metric_change=warm.change,
        left_modes=warm.left_modes,
        num_params=size,
        **told,
    )
    return result


class Warm(NamedTuple):
    """What the warm-up leaves.

    Attributes:
      metric: that stands from now on.
      change: the factor by which the last window changed it.
      positions: where the chains stand, shape (chains, d).
      window: the last one.
      energies: of the modes, and the mean of each window.
      left_modes: how many chains have left their own mode.
    """

    metric: warmup.Metric
    change: float
    positions: jax.Array
    window: Trace
    energies: list[float]
    left_modes: int


def _warmed(target: Target, found: warmup.Found, cold: Sampler, num_windows: int, key: jax.Array, calls: Iterator[int]) -> Warm:
    """Windows of cold chains, each in the metric of the one before."""
    metric, change, positions, left = found.metric, jnp.inf, found.positions, ~np.asarray(found.kept)
    largest, own, window = metric.learning_rate, jnp.arange(len(left)), None
    energies = [float(jnp.max(found.energies[found.kept]))]
    for number in range(num_windows):
        next(calls)
        chains = start(target, cold, metric.learning_rate, positions, jax.random.fold_in(key, number))
        chains, window = steps(target, cold, metric.coordinates, metric.learning_rate, chains, warmup.CLIP)
        # Not by the last window: what it leaves apart the report shall see.
        home = warmup.homes(metric, window) if number < num_windows - 1 else own
        left |= np.asarray(home != own)
        positions = chains.place.position[home]
        energies.append(float(jnp.mean(window.energy)))
        metric, change = warmup.refined(metric, window, largest)
    assert window is not None  # num_windows >= 1
    return Warm(metric, float(change), positions, window, energies, int(left.sum()))


class Way(NamedTuple):
    """How the chains walk once the metric stands.

    Attributes:
      chains: where they begin.
      walk: of chains, a window of steps: the chains and a trace.
      share: of a full gradient that a step takes.
      spent: gradients that it took to begin.
      unknown: statistics of a sample that it does not know.
      attributes: what it has to tell.
      tempering: of alpha, or None.
    """

    chains: Any
    walk: Callable[[Any], tuple[Any, Trace]]
    share: float = 1
    spent: float = 0
    unknown: tuple[str, ...] = ()
    attributes: Mapping[str, float] = {}
    tempering: PolynomialTempering | None = None


def _on_all(target: Target, sampler: Sampler, warm: Warm, key: jax.Array) -> Way:
    """All rows, in every step."""
    rate, coordinates = warm.metric.learning_rate, warm.metric.coordinates
    return Way(
        start(target, sampler, rate, warm.positions, key),
        lambda chains: steps(target, sampler, coordinates, rate, chains),
        attributes={"learning_rate": float(rate)},
    )


def _tempered(
    target: Target,
    cold: Sampler,
    warm: Warm,
    tempering: PolynomialTempering | Literal["auto"],
    bias: Bias | None,
    alpha_step_size: float | None,
    learning_rate: float,
    key: jax.Array,
    calls: Iterator[int],
) -> Way:
    """All rows, and alpha, once it has moved for so many calls."""
    climb_key, start_key = jax.random.split(key)
    hottest = None if isinstance(tempering, str) else 1.0 / (1.0 - tempering.strength)
    ladder = heat.explored(target, cold, warm.metric, warm.positions, climb_key, hottest)
    if isinstance(tempering, str):
        hottest = heat.enough(ladder)
        tempering = GeometricTempering(strength=1.0 - 1.0 / hottest)
    rate = jnp.asarray(learning_rate, warm.positions.dtype)
    metrics = heat.heated(ladder)
    coordinates = heat.shortened(metrics, ladder, rate)
    widest = metrics.widths + 0.5 * math.log(max(heat.LARGEST_RATE / learning_rate, 1.0))
    offset = jnp.asarray(ladder.levels[0].energy, rate.dtype)
    size = warm.positions.shape[1]
    step_size = _unhurried(tempering.strength, size) if alpha_step_size is None else alpha_step_size
    shared = None if bias is None else dataclasses.replace(bias, axis_name=CHAINS)
    alphas, pace = exact.Alphas(tempering, shared, step_size), exact.Pace(rate, cold.momentum)
    known = jnp.zeros((2, 0), rate.dtype) if bias is None else bias.init(rate.dtype)
    if isinstance(bias, AdaptiveBiasingForce):
        known = heat.informed(bias, tempering, ladder, offset)
    walkers = start_exact(target, ladder.positions, known, start_key)
    for _ in calls:
        walkers, window = exact_steps(target, coordinates, alphas, pace, offset, walkers)
        coordinates = heat.relearned(coordinates, widest, window)
    return Way(
        walkers,
        lambda walkers: exact_steps(target, coordinates, alphas, pace, offset, walkers),
        spent=ladder.gradients,
        unknown=("energy_error",),
        attributes={
            "learning_rate": learning_rate * float(jnp.exp(2.0 * coordinates.widths[0].max())),
            "hottest": 1.0 / (1.0 - tempering.strength),
        },
        tempering=tempering,
    )


def _on_batches(target: Target, sampler: Sampler, warm: Warm, batch_size: int, key: jax.Array) -> Way:
    """Some rows, drawn anew in each."""
    noise_key, start_key = jax.random.split(key)
    anchors = batches.anchored(target, warm.window)
    metric, noise = batches.measured(target, warm.metric, warm.window, anchors, batch_size, sampler.momentum, noise_key)
    rate, num_rows = float(metric.learning_rate), batches.num_rows(target.heated)
    return Way(
        start_batches(sampler, metric, warm.positions, start_key),
        lambda chains: batch_steps(target, sampler, metric.learning_rate, noise, anchors, batch_size, chains),
        share=2 * batch_size / num_rows,
        spent=len(warm.positions) + batches.PLACES * batches.ROWS * 2 / num_rows,
        unknown=("energy_error",),
        attributes={"learning_rate": rate, "brought": float(jnp.max(noise)) * rate / (2.0 * (1.0 - sampler.momentum))},
    )


@jax.jit
def energies(target: Target, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two parts."""
    return target.heated(position), target.kept(position)


def _unhurried(strength: float, size: int) -> float:
    """A step of alpha in which the spread sqrt(d / 2) of the energy times the change of log g is small."""
    e_folds = -math.log1p(-strength)
    return min(0.1, 0.4 / (math.sqrt(size) * e_folds)) if e_folds > 0.0 else 0.1


# Functions that are equal if what they are made of is, data apart: a second call of `sample` then compiles nothing.


@dataclasses.dataclass(frozen=True)
class Unflat:
    """A flat vector as the pytree that it was."""

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, params: Any) -> "Unflat":
        leaves, treedef = jax.tree.flatten(params)
        return cls(treedef, tuple(leaf.shape for leaf in leaves), tuple(leaf.dtype for leaf in leaves))

    def __call__(self, flat: jax.Array) -> Any:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = jnp.split(flat, ends)
        leaves = [p.reshape(s).astype(t) for p, s, t in zip(parts, self.shapes, self.dtypes, strict=True)]
        return self.treedef.unflatten(leaves)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["function", "to_params"])
@dataclasses.dataclass(frozen=True)
class OnFlat:
    """A function of params, and of data if there are any, as one of a flat vector."""

    function: Callable[..., Any]
    to_params: Callable[[jax.Array], Any]
    data: Any = None

    def __call__(self, flat: jax.Array) -> jax.Array:
        arguments = () if self.data is None else (self.data,)
        return jnp.asarray(self.function(self.to_params(flat), *arguments), flat.dtype)

    def of(self, rows: Any) -> "OnFlat":
        """The same of other data."""
        return dataclasses.replace(self, data=rows)


@dataclasses.dataclass(frozen=True)
class Negated:
    function: Callable[..., Any]

    def __call__(self, params: Any, *data: Any) -> Any:
        return -self.function(params, *data)


def nothing(params: Any) -> float:
    del params
    return 0.0


# What comes in, and what goes out.


def _starts(initial: Any, key: jax.Array, num_chains: int) -> Any:
    """Params with a leading axis of chains."""
    if callable(initial):
        params = [_as_params(initial(k)) for k in jax.random.split(key, num_chains)]
    else:
        params = [_as_params(initial)] * num_chains
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)


def _as_params(tree: Any) -> Any:
    """The parameters as arrays; they may come as numbers."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, tree)
    check_params(params, "initial, its parameter")
    return params


def _flattened(starts: Any, num_chains: int) -> jax.Array:
    leaves = jax.tree.leaves(starts)
    if sum(leaf.size for leaf in leaves) == 0:
        raise ValueError("initial must hold at least one parameter, got none.")
    dtype = scalar_dtype_of(starts)
    return jnp.concatenate([leaf.reshape(num_chains, -1).astype(dtype) for leaf in leaves], axis=1)


def _checked_data(data: Any, batch_size: int | None, tempering: Any) -> Any:
    """The data as arrays of as many rows each."""
    if batch_size is not None and data is None:
        raise ValueError("data must be given beside batch_size: the arrays of which a step takes some rows.")
    check_arrays(data, "data")
    data = jax.tree.map(jnp.asarray, data)
    if batch_size is None:
        return data
    if tempering is not None:
        raise ValueError("tempering must be None beside batch_size: what a step knows of the other rows, it knows of one mode.")
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or not all(lengths):
        raise ValueError(
            f"data must be arrays with one row for each example, as many in each, got {jax.tree.map(jnp.shape, data)}."
        )
    check_count("batch_size", batch_size, 1)
    if batch_size > max(lengths):
        raise ValueError(f"batch_size must be at most the {max(lengths)} rows of data, got {batch_size}.")
    return data


def _check_sum(heated: OnFlat, position: jax.Array) -> None:
    """A loss that is not the sum over the rows makes another posterior with batches, whatever the size."""
    half = batches.num_rows(heated) // 2
    cut = lambda part: heated.of(jax.tree.map(lambda leaf: leaf[part], heated.data))
    whole = float(heated(position))
    parts = float(cut(slice(half))(position)) + float(cut(slice(half, None))(position)) if half else whole
    if abs(whole - parts) > 1e-3 * max(1.0, abs(whole), abs(parts)):
        raise ValueError(
            f"loss_fn must be a sum over the rows beside batch_size, but of all data it is {whole:.6g}, of their two halves "
            f"{parts:.6g} together. Write a sum for a mean, and give what is no part of a row, a prior, as prior_fn=."
        )


def _check_energy(target: Target, position: jax.Array) -> None:
    for name, part in zip(("loss_fn", "prior_fn"), jax.eval_shape(energies, target, position), strict=True):
        shape = part.shape
        if shape != ():
            raise ValueError(f"{name} must give a scalar, the negative log density, got shape {shape}. Sum over the data.")


def _check_start(found: warmup.Found) -> None:
    lowest = float(jnp.min(jnp.where(jnp.isfinite(found.energies), found.energies, jnp.inf)))
    if not math.isfinite(lowest) or not bool(jnp.all(jnp.isfinite(found.positions))):
        raise ValueError(
            f"loss_fn must be finite where the chains begin or end their search for a mode, got {lowest}. "
            "Give initial a place where it is, or a function of the key that does."
        )
    if float(jnp.max(jnp.abs(found.positions))) > ENDLESS:
        raise ValueError(
            f"loss_fn must have a lowest value, but the search for it came to {lowest:.4g} and far away. {NO_BOTTOM}"
        )


def _check_bottom(energies: list[float], size: int) -> None:
    """A warm-up that is over stands on its level; the energy of one that finds no bottom goes on falling."""
    before, last = energies[-2:]
    if last < before - 10.0 - size:
        raise ValueError(
            f"loss_fn must have a lowest value, but at the end of the warm-up it still falls, from {before:.4g} to {last:.4g}. "
            f"{NO_BOTTOM} If neither is so, take more num_warmup."
        )


def _cold(run: Trace, tempering: PolynomialTempering) -> Trace:
    """The samples in the window; as many of each chain as the chain with the fewest has."""
    is_cold = np.asarray(tempering.in_window(jnp.asarray(run.alpha)))
    fewest = int(is_cold.sum(axis=1).min())
    if fewest == 0:
        raise ValueError(
            "tempering must let every chain cool down, but one was never in the window: take more num_warmup and num_samples, "
            "a smaller strength, or a smaller alpha_step_size. What wanders off while hot needs a prior, as prior_fn=."
        )
    return jax.tree.map(lambda x: np.stack([row[mask][:fewest] for row, mask in zip(x, is_cold, strict=True)]), run)


def _values(positions: Any, to_params: Unflat, constrain: Callable[[Any], Any] | None) -> dict[str, np.ndarray]:
    """Variables by their paths, with leading axes (chains, samples)."""
    natural = to_params if constrain is None else lambda x: constrain(to_params(x))
    values = jax.jit(jax.vmap(jax.vmap(natural)))(jnp.asarray(positions))
    leaves = jax.tree_util.tree_leaves_with_path(values)
    return {compat.path_name(path, ".") or "x": np.asarray(leaf) for path, leaf in leaves}


def _bar(total: int, progress: bool) -> Iterator[int]:
    if not progress:
        return iter(range(total))
    from rich.progress import track  # noqa: PLC0415

    return iter(track(range(total), description="sampling"))
