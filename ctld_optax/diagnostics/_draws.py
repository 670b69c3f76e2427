"""What the chains of a posterior sampler have drawn, and what a report asks about it. R-hat and effective sizes are ArviZ's."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ctld_optax._arrays import compat
from ctld_optax._arviz import arviz
from ctld_optax._validate import as_numbers
from ctld_optax.diagnostics._run import FEW, Finding, Run

# Of a step, root mean square, in k_B T per sqrt(d). The warm-up aims at 0.1 at most. On a banana 0.09 shifts a mean by less
# than 0.01 of its deviation, 0.25 by 0.02, 0.35 by 0.05.
ENERGY_ERROR = 0.25
ACCEPTED = 0.5  # the warm-up aims at 0.95; half its steps a funnel of 22 dimensions may refuse
RHAT = 1.05  # healthy runs with the effective size below have 1.02
# From which on R-hat and the errors of means are worth their names (Vehtari et al., Bayesian Analysis 16, 2021).
ESS_A_CHAIN = 100
METRIC_CHANGE = 4.0  # healthy runs on a banana have up to 3
BIAS_MISSING = 0.1


class Draws:
    """Draws as float64 columns of shape (chains, draws), one for each number of a sample, with their names."""

    def __init__(self, values: Mapping[str, Any], stats: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> None:
        self.stats, self.attrs = stats, attrs
        arrays = {name: as_numbers(f"samples {name}".rstrip(), value) for name, value in values.items()}
        leading = {array.shape[:2] for array in arrays.values()}
        self.chains, self.draws = max(leading, key=len) if leading and min(map(len, leading)) == 2 else (0, 0)
        if len(leading) != 1 or 0 in (self.chains, self.draws):
            raise ValueError(
                f"samples must have the leading axes (chains, draws), alike in every array, got {sorted(leading)}."
            )
        arrays |= {"lp": stats["lp"]} if "lp" in stats else {}
        self.names: list[str] = []
        columns: list[np.ndarray] = []
        for name, array in arrays.items():
            for index in np.ndindex(*array.shape[2:]):
                self.names.append(f"{name}[{', '.join(map(str, index))}]" if index else name or "samples")
                columns.append(array[(..., *index)])
        self.columns = np.asarray(columns).reshape(len(columns), self.chains, self.draws)
        # What is the same in every draw, as a `constrain` may make it, tells nothing.
        self.moves = np.any(self.columns != self.columns[:, :1, :1], axis=(1, 2))
        self.figures: dict[str, float] = {"chains": float(self.chains), "draws a chain": float(self.draws)}

    @functools.cached_property
    def rhat(self) -> np.ndarray:
        """Rank-normalised, split; of each column that moves."""
        return self._of_each("rhat")

    @functools.cached_property
    def ess(self) -> np.ndarray:
        """The smaller one of bulk and tail; of each column that moves."""
        return np.minimum(self._of_each("ess", method="bulk"), self._of_each("ess", method="tail"))

    @property
    def moving(self) -> list[str]:
        return [name for name, moves in zip(self.names, self.moves, strict=True) if moves]

    def _of_each(self, figure: str, **options: Any) -> np.ndarray:
        az = arviz("report judges samples with ArviZ")
        columns = az.convert_to_dataset({"x": np.moveaxis(self.columns[self.moves], 0, -1)})
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(getattr(az, figure)(columns, **options)["x"].values)


def of_data(data: Any) -> Draws:
    """Those of an `arviz.InferenceData`."""
    stats = data.sample_stats if hasattr(data, "sample_stats") else None
    values = {str(name): array.values for name, array in data.posterior.data_vars.items()}
    found = (
        {} if stats is None else {str(name): np.asarray(array.values, np.float64) for name, array in stats.data_vars.items()}
    )
    return Draws(values, found, {} if stats is None else dict(stats.attrs))


def of_samples(samples: Any, run: Run) -> Draws | None:
    """Those of a pytree, the rows of a run: settled ones at the base temperature, as many of each chain as the poorest has.

    None if that are too few.
    """
    places = _rows("samples", samples, run)
    cold = run.in_window
    fewest = int(cold.sum(axis=1).min())
    if fewest < FEW:
        return None
    chosen = lambda array: np.stack([chain[rows][:fewest] for chain, rows in zip(array, cold, strict=True)])
    stats = {} if run.value is None else {"lp": -chosen(run.value)}
    pair = cold[:, 1:] & cold[:, :-1]
    if run.value is not None and run.has_temperature and run.stride == 1.0 and pair.any() and _has_rows(run.grads, samples):
        # What the trapezoid rule leaves of each step, in k_B T.
        moved = run.value[:, 1:] - run.value[:, :-1]
        for name, grad in _rows("grads", run.grads, run).items():
            product = 0.5 * (grad[:, 1:] + grad[:, :-1]) * (places[name][:, 1:] - places[name][:, :-1])
            moved = moved - product.reshape(*moved.shape, -1).sum(axis=-1)
        stats["energy_error"] = (moved / np.maximum(run.temperature[1:], 1e-300))[pair]
    return Draws({name: chosen(array) for name, array in places.items()}, stats, {})


def _has_rows(grads: Any, samples: Any) -> bool:
    """Whether these are the gradients of each row, and not one gradient."""
    alike = jax.tree.structure(grads) == jax.tree.structure(samples)
    return alike and all(np.shape(g) == np.shape(x) for g, x in zip(*map(jax.tree.leaves, (grads, samples)), strict=True))


def _rows(name: str, tree: Any, run: Run) -> dict[str, np.ndarray]:
    """Each leaf of a pytree by its path, its rows like those of the run."""
    found: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = as_numbers(name, leaf)
        if array.shape[: len(run.shape)] != run.shape:
            raise ValueError(
                f"{name} must have the leading axes of the trajectory, {run.shape}, got an array of {array.shape}."
            )
        array = array.reshape(run.replicas, run.shape[-1], *array.shape[len(run.shape) :])
        found[compat.path_name(path, ".")] = array[:, run.moved]
    if not found:
        raise TypeError(f"{name} must be a pytree of arrays, got {tree!r:.60}.")
    return found


def finite(draws: Draws) -> Finding | None:
    """Is every number one?"""
    bad = ~np.isfinite(draws.columns).all(axis=(0, 2))
    if not bad.any():
        return None
    return Finding(
        "draws_not_finite",
        f"there are draws that are not finite in {_named(bad)}.",
        "leave those chains out, and look at what loss_fn and constrain give there; a lower learning_rate if they diverged.",
        {"chains": float(bad.sum())},
    )


def streams(draws: Draws) -> Finding | None:
    """Are there two chains that are one?"""
    distinct = len(np.unique(np.moveaxis(draws.columns, 1, 0).reshape(draws.chains, -1), axis=0))
    if distinct == draws.chains:
        return None
    return Finding(
        "replicas_share_noise",
        f"of {draws.chains} chains only {distinct} are different: those with one key and one beginning are one chain.",
        "a key for each: jax.random.split(key, num_chains).",
        {"replicas": float(draws.chains), "keys": float(distinct)},
    )


def stuck(draws: Draws) -> Finding | None:
    """Does each chain move as the others do?"""
    columns = draws.columns[draws.moves]
    repeated = np.mean(np.all(columns[:, :, 1:] == columns[:, :, :-1], axis=0), axis=-1) if draws.draws > 1 else np.zeros(1)
    spread = columns.std(axis=2)
    others = [np.delete(spread, chain, axis=1) for chain in range(draws.chains)] if draws.chains > 1 else [spread]
    typical = np.stack([np.median(other, axis=1) for other in others], axis=1)
    # A narrower mode is one thing, a chain that is twenty times narrower in most of what it draws another.
    bad = (repeated > 0.5) | (np.mean(spread < 0.05 * typical, axis=0) > 0.5)
    if not bad.any():
        return None
    return Finding(
        "chain_stuck",
        f"{_named(bad)} hardly moved: most draws are those before them, or fill less than a twentieth of what the others do.",
        "another beginning for it; a lower learning_rate, if its steps diverge there; more num_warmup.",
        {"chains": float(bad.sum())},
    )


def divergences(draws: Draws) -> Finding | str | None:
    """Were there steps that could not be taken?"""
    if "diverging" not in draws.stats:
        return "steps that diverge: it needs diverging in sample_stats."
    share = draws.stats["diverging"].mean(axis=1)
    draws.figures["share of steps that diverged"] = float(share.mean())
    if share.max() < 0.01:
        return None
    return Finding(
        "steps_diverged",
        f"{share.max():.1%} of the steps of chain {share.argmax()} were not taken, {share.mean():.1%} of all: there the energy "
        "is not finite, or far from what the step was made for.",
        "a lower learning_rate, or parameters without an edge (a scale in its logarithm, a share in its logit).",
        {"share": float(share.mean()), "largest": float(share.max())},
    )


def step(draws: Draws) -> Finding | str | None:
    """Is the step small enough?

    Where steps are accepted or refused none is biased, and too many may be refused. Elsewhere the error of its energy counts,
    by the trapezoid rule, which grows as the power 3/2 of the learning rate.
    """
    if "acceptance_rate" in draws.stats:
        return _refused(draws)
    if "energy_error" not in draws.stats:
        return "the size of the step: it needs energy_error in sample_stats, or value, samples and grads at every step."
    size = int(draws.attrs.get("num_params", len(draws.names)))
    error = float(np.sqrt(np.mean(np.square(draws.stats["energy_error"])) / size))
    draws.figures["energy error of a step, k_B T per sqrt(d)"] = error
    if error < ENERGY_ERROR:
        return None
    return Finding(
        "step_too_large",
        f"the energy of a step is wrong by {error:.2g} k_B T per sqrt(d), and no step is refused: the samples are biased.",
        "half the learning_rate, until it is below 0.1; in posterior.sample more num_warmup too, which lowers it by itself.",
        {"error": error},
    )


def _refused(draws: Draws) -> Finding | None:
    share = draws.stats["acceptance_rate"].mean(axis=1)
    draws.figures["acceptance rate"] = float(share.mean())
    if share.min() > ACCEPTED:
        return None
    return Finding(
        "steps_refused",
        f"chain {share.argmin()} takes {share.min():.0%} of its steps, all together {share.mean():.0%}: else it stands still.",
        "more num_warmup, which finds the size of the step; parameters without narrow necks (a scale in its logarithm, what it "
        "scales in units of it).",
        {"acceptance": float(share.mean()), "smallest": float(share.min())},
    )


def warmup(draws: Draws) -> Finding | str | None:
    """Has the metric come to rest?"""
    if "metric_change" not in draws.attrs:
        return "the warm-up: it needs metric_change in the attributes of sample_stats."
    change = float(draws.attrs["metric_change"])
    draws.figures["change of the metric in the last window"] = change
    if change < METRIC_CHANGE:
        return None
    return Finding(
        "warmup_unfinished",
        f"the last window of the warm-up still changed the metric by a factor of {change:,.3g}.",
        "twice the num_warmup.",
        {"change": change},
    )


def bias(draws: Draws) -> Finding | None:
    """Has alpha's bias filled?"""
    missing = float(draws.attrs.get("bias_missing", 0.0))
    if "bias_missing" in draws.attrs:
        draws.figures["share of the mean force missing"] = missing
    if missing < BIAS_MISSING:
        return None
    return Finding(
        "bias_filling",
        f"{missing:.0%} of the mean force on alpha is missing in the chain that has the least of it.",
        "more num_warmup, of which alpha gets twice as many steps; fewer num_bins, or a smaller min_samples.",
        {"missing": missing},
    )


def modes(draws: Draws) -> Finding | None:
    """Did every chain see what the others saw? A gap in the draws that some chains are on one side of only."""
    if draws.chains < 2:
        return None
    total = draws.chains * draws.draws
    least = max(FEW, total // 100)  # draws on either side: single ones far out are tails
    if 2 * least > total:
        return None
    for name, column in zip(draws.moving, draws.columns[draws.moves], strict=True):
        ordered = np.sort(column, axis=None)
        gaps = np.diff(ordered)[least - 1 : total - least]
        place = least - 1 + int(gaps.argmax())
        if gaps.max() < np.median(column.std(axis=1)):
            continue
        above = np.mean(column > ordered[place], axis=1)
        low, high = above < 1.0, above > 0.0
        if low.all() and high.all():
            continue
        few, where = (high, "above") if high.sum() <= low.sum() else (low, "below")
        return Finding(
            "mode_missed",
            f"{name} has a mode {where} {0.5 * (ordered[place] + ordered[place + 1]):.3g} that {few.sum()} of {draws.chains} "
            f"chains saw ({_named(few)}): how many chains sit in a mode says nothing of its weight.",
            'tempering="auto", so that chains cross; with it more num_samples.',
            {"chains": float(few.sum()), "share": float(np.mean(above))},
        )
    return None


def agreement(draws: Draws) -> Finding | str | None:
    """Is what the chains drew one distribution?"""
    if draws.chains < 2:
        return "whether the chains agree: there is one."
    if draws.draws < 4 or not draws.moving:
        return "whether the chains agree: there are too few draws, or none that differ."
    worst = int(np.nanargmax(np.where(np.isnan(draws.rhat), -math.inf, draws.rhat)))
    rhat = float(draws.rhat[worst])
    draws.figures["largest R-hat"] = rhat
    if rhat < RHAT:
        return None
    means = draws.columns[draws.moves][worst].mean(axis=1)
    return Finding(
        "replicas_disagree",
        f"R-hat of {draws.moving[worst]} is {rhat:.3f}; the chains' means go from {means.min():.3g} to {means.max():.3g}: "
        "their pool is no sample of the posterior.",
        'more num_samples, or more num_warmup if they began in different places; tempering="auto" if they stay there.',
        {"rhat": rhat, "lowest": float(means.min()), "highest": float(means.max())},
    )


def size(draws: Draws) -> Finding | str | None:
    """Are there enough draws for a figure?"""
    if draws.draws < 4 or not draws.moving:
        return "effective sizes: there are too few draws, or none that differ."
    worst = int(np.argmin(np.where(np.isnan(draws.ess), math.inf, draws.ess)))
    ess = float(draws.ess[worst])
    draws.figures["smallest effective size"] = ess
    if ess >= ESS_A_CHAIN * draws.chains:
        return None
    more = 1.2 * ESS_A_CHAIN * draws.chains / ess
    return Finding(
        "too_few_draws",
        f"{draws.chains * draws.draws:,} draws of {draws.moving[worst]} are worth {ess:,.0f} independent ones, bulk or tail.",
        f"{more:.1f} times the num_samples, or as many times the thin.",
        {"ess": ess},
    )


def _named(chains: Any) -> str:
    numbers = np.flatnonzero(chains).tolist()
    return f"chain{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
