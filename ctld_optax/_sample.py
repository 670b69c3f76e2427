"""Posterior samples by one call. It knows what a user has and wants; how chains walk and warm up is said elsewhere."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctld_optax import _warmup as warmup
from ctld_optax._arrays import compat
from ctld_optax._arviz import arviz
from ctld_optax._chains import Chain, Target, Trace, begin, walk
from ctld_optax._checked import checked
from ctld_optax._dynamics.adaptive_force import AdaptiveBiasingForce
from ctld_optax._dynamics.alpha import Bias
from ctld_optax._dynamics.langevin import Langevin
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._presets import posterior_sampler
from ctld_optax._validate import as_key, check_count, check_params, check_range
from ctld_optax.diagnostics._trajectory import round_trips

BIAS_WARMUP = 4  # times as many steps as those that find the metric, for the bias to fill
ENDLESS = 1e12  # a parameter beyond this is on its way to infinity
NO_BOTTOM = (
    "It is the *negative* log density: pass a log density as logdensity_fn=. A flat prior on what the data do not hold has no "
    "bottom either."
)
WINDOW = 250  # steps between two metrics, and in one compiled call


@checked()
def sample(
    loss_fn: Callable[[Any], Any] | None,
    initial: Any,
    key: int | jax.Array,
    *,
    logdensity_fn: Callable[[Any], Any] | None = None,
    prior_fn: Callable[[Any], Any] | None = None,
    constrain: Callable[[Any], Any] | None = None,
    num_chains: int = 4,
    num_warmup: int = 2_000,
    num_samples: int = 4_000,
    thin: int = 5,
    learning_rate: float = 0.1,
    momentum: float = 0.8,
    tempering: PolynomialTempering | None = None,
    bias: Bias | None = AdaptiveBiasingForce(),
    alpha_step_size: float | None = None,
    progress: bool = False,
) -> Any:
    r"""Samples of :math:`\exp(-\text{loss\_fn}(\theta))`, without a number to set.

    Chains of :func:`ctld_optax.posterior_sampler` in a dense metric that a warm-up finds (:doc:`how </api/posterior>`), one
    gradient a step, and no step refused. On a Gaussian it is exact whatever the learning rate; elsewhere up to an error of
    second order in the step, a few per cent of a standard deviation at most at the default. Half the `learning_rate` shows it.

    With `tempering` each chain heats up and cools down by itself, so that it crosses between modes, and the samples are what it
    saw while cold. With a `prior_fn` as well the prior is never heated: gradient and energy then make the density

    .. math:: \exp(-g(\alpha) (\text{loss\_fn} + K) - \text{prior\_fn} - V_b(\alpha) - r_\alpha^2/2)

    so that what the data do not hold (a scale in its logarithm, say) cannot run away while hot.

    Example:
      >>> def loss_fn(params):  # the negative log density
      ...     return 0.5 * ((params["x"] / 3.0) ** 2 + (params["y"] - params["x"]) ** 2)
      >>> start = {"x": jnp.zeros(()), "y": jnp.zeros(())}
      >>> data = ctld_optax.posterior.sample(loss_fn, start, key=0)
      >>> data.posterior["x"].shape  # chains, samples
      (4, 4000)

    Args:
      loss_fn: `loss_fn(params)`, the *negative* log density up to a constant, a scalar. A `potential_fn` of NumPyro's
        `initialize_model` is one. With a `prior_fn` the negative log likelihood alone.
      initial: params, where all chains begin their search for modes; or `initial(key) -> params`, which gives each chain a
        place of its own, as draws from the prior do: that is how several modes are found.
      key: an int or one key.
      logdensity_fn: the log density itself, in place of `loss_fn`, which is then None.
      prior_fn: `prior_fn(params)`, the negative log density of the prior, which tempering leaves alone.
      constrain: `constrain(params)`, what is kept of a sample, such as parameters in their natural bounds. A pytree.
      num_chains: >= 1.
      num_warmup: steps of a chain before the metric stands, >= 250, beside the search for a mode. Four times as many again,
        not kept, fill the bias if there is `tempering`.
      num_samples: samples of a chain, >= 1. With `tempering` fewer come back, those in the window: about a quarter.
      thin: steps, and gradients, a sample costs.
      learning_rate: in units in which the target is round, of which 2 (1 + momentum) is the limit of stability. The warm-up
        lowers it where steps make an energy error of more than 0.1 k_B T per sqrt(d).
      momentum: mu in [0, 1).
      tempering: how hot; None: not at all.
      bias: of alpha.
      alpha_step_size: of alpha; None: 0.2 / sqrt(d), but at most 0.1.
      progress: whether to show a bar (needs `rich`).

    Returns:
      An `arviz.InferenceData`. `posterior` has a variable for each leaf of params, or of what `constrain` gives, by its path;
      `sample_stats` has `lp` (the log density), `energy` (with the kinetic one), `energy_error`, `diverging`, and with
      tempering `alpha` and `beta` of each sample. Its attributes: `gradients` and `warmup_gradients` of all chains,
      `learning_rate`, `metric_change` (the factor by which the last window changed the metric: near 1 if the warm-up has
      converged), `left_modes` (chains whose own mode had no mass to speak of), `num_params` and, with tempering,
      `round_trips` (of all chains, between the window and the hot end, while sampling) and `bias_missing` (how much of the bias
      has still to fill). :func:`ctld_optax.diagnostics.report` judges it.

    Raises:
      ValueError: if there is no bottom to `loss_fn`, as when the log density comes in its place; or a number is out of range.
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
    descent_key, begin_key, heat_key, init_key = jax.random.split(as_key(key), 4)

    starts = _starts(initial, init_key, num_chains)
    flat = _flattened(starts, num_chains)
    to_params = Unflat.of(jax.tree.map(lambda x: x[0], starts))
    heated: Any = Negated(logdensity_fn) if logdensity_fn is not None else loss_fn
    target = Target(OnFlat(heated, to_params), nothing if prior_fn is None else OnFlat(prior_fn, to_params))
    _check_energy(target, flat[0])

    size = flat.shape[1]
    alpha_step_size = min(0.1, 0.2 / math.sqrt(size)) if alpha_step_size is None else alpha_step_size
    cold = Sampler(momentum, None, None, alpha_step_size)
    num_windows = math.ceil(num_warmup / WINDOW)
    num_heated = BIAS_WARMUP * num_windows if tempering is not None else 0
    num_calls = math.ceil(num_samples * thin / WINDOW)
    calls = _bar(num_windows + num_heated + num_calls, progress)

    found = warmup.find(target, flat, jnp.asarray(learning_rate, flat.dtype), descent_key)
    _check_start(found)
    metric, change, offset, left = found.metric, jnp.inf, 0.0, ~np.asarray(found.kept)
    positions, energies = found.positions, [float(jnp.max(found.energies[found.kept]))]
    for window in range(num_windows):
        next(calls)
        chains = start(target, cold, metric, positions, jax.random.fold_in(begin_key, window))
        chains, trace = steps(target, cold, metric.learning_rate, chains, warmup.CLIP)
        # Not by the last window: what it leaves apart the report shall see.
        home = warmup.homes(metric, trace) if window < num_windows - 1 else jnp.arange(num_chains)
        left |= np.asarray(home != jnp.arange(num_chains))
        positions = chains.place.position[home]
        energies.append(float(jnp.mean(trace.energy)))
        offset = jnp.mean(trace.heated + trace.kinetic_energy)
        metric, change = warmup.refined(metric, trace, jnp.asarray(learning_rate, flat.dtype))

    _check_bottom(energies, size)
    sampler = cold if tempering is None else Sampler(momentum, tempering, bias, alpha_step_size)
    chains = start(target, sampler, metric, positions, heat_key)
    for _ in range(num_heated):
        next(calls)
        chains, _ = steps(target, sampler, metric.learning_rate, chains, offset=offset)
    kept: list[Trace] = []
    for call in range(num_calls):
        next(calls)
        chains, trace = steps(target, sampler, metric.learning_rate, chains, offset=offset)
        first = -call * WINDOW % thin
        kept.append(jax.tree.map(lambda x, first=first: np.asarray(x[:, first::thin]), trace._replace(grad=())))
    next(calls, None)
    run = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[:, :num_samples], *kept)

    trips = None if tempering is None else round_trips(run.alpha, tempering.delta, tempering.delta_prime)
    if tempering is not None:
        run = _cold(run, tempering)
    values = _values(run.position, to_params, constrain)
    stats = {
        "lp": -run.energy,
        "energy": run.energy + run.kinetic_energy,
        "energy_error": run.error,
        "diverging": run.diverging,
    }
    if tempering is not None:
        stats |= {"alpha": run.alpha, "beta": run.beta}
    data = az.from_dict(posterior=values, sample_stats=stats)
    data.sample_stats.attrs.update(
        gradients=num_chains * num_calls * WINDOW,
        warmup_gradients=int(found.gradients) + num_chains * (num_windows + num_heated) * WINDOW,
        learning_rate=float(metric.learning_rate),
        metric_change=float(change),
        left_modes=int(left.sum()),
        num_params=size,
    )
    if trips is not None:
        data.sample_stats.attrs["round_trips"] = trips
    if tempering is not None and isinstance(bias, AdaptiveBiasingForce):
        data.sample_stats.attrs["bias_missing"] = float(jnp.max(bias.missing(chains.state.bias)))
    return data


class Sampler(NamedTuple):
    """The settings of a sampler that a compiled call is made for."""

    momentum: float
    tempering: PolynomialTempering | None
    bias: Bias | None
    alpha_step_size: float

    def at(self, learning_rate: jax.Array) -> Langevin:
        return posterior_sampler(learning_rate, 1.0, key=0, **self._asdict()).kernel


@functools.partial(jax.jit, static_argnames=("target", "sampler"))
def start(target: Target, sampler: Sampler, metric: warmup.Metric, positions: jax.Array, key: jax.Array) -> Chain:
    """Chains with fresh momenta, in the coordinates of the metric."""
    kernel = sampler.at(metric.learning_rate)
    keys = jax.random.split(key, positions.shape[0])
    return jax.vmap(lambda x, k: begin(target, kernel, metric.coordinates, x, k))(positions, keys)


@functools.partial(jax.jit, static_argnames=("target", "sampler"))
def steps(
    target: Target, sampler: Sampler, learning_rate: jax.Array, chains: Chain, clip: Any = math.inf, offset: Any = 0.0
) -> tuple[Chain, Trace]:
    """A window of all chains; the trace has leading axes (chains, steps)."""
    return jax.vmap(lambda chain: walk(target, sampler.at(learning_rate), chain, WINDOW, clip, offset))(chains)


# Functions that are equal if what they are made of is: a second call of `sample` then compiles nothing.


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


@dataclasses.dataclass(frozen=True)
class OnFlat:
    function: Callable[[Any], Any]
    to_params: Unflat

    def __call__(self, flat: jax.Array) -> jax.Array:
        return jnp.asarray(self.function(self.to_params(flat)), flat.dtype)


@dataclasses.dataclass(frozen=True)
class Negated:
    function: Callable[[Any], Any]

    def __call__(self, params: Any) -> Any:
        return -self.function(params)


def nothing(flat: jax.Array) -> jax.Array:
    return jnp.zeros((), flat.dtype)


# What comes in, and what goes out.


def _starts(initial: Any, key: jax.Array, num_chains: int) -> Any:
    """Params with a leading axis of chains."""
    if callable(initial):
        params = [initial(k) for k in jax.random.split(key, num_chains)]
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *params)
    return jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * num_chains), initial)


def _flattened(starts: Any, num_chains: int) -> jax.Array:
    check_params(starts)
    leaves = jax.tree.leaves(starts)
    if sum(leaf.size for leaf in leaves) == 0:
        raise ValueError("initial must hold at least one parameter, got none.")
    dtype = jnp.result_type(jnp.float32, *leaves)
    return jnp.concatenate([leaf.reshape(num_chains, -1).astype(dtype) for leaf in leaves], axis=1)


def _check_energy(target: Target, position: jax.Array) -> None:
    for name, part in zip(("loss_fn", "prior_fn"), target, strict=True):
        shape = jax.eval_shape(part, position).shape
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
            "a smaller strength, or a smaller alpha_step_size."
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
