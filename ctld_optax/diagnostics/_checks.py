"""What a report asks about numbers, momenta, loss and energy."""

from typing import Any

import jax
import numpy as np

from ctld_optax._dynamics.coupling import Standardized
from ctld_optax._validate import as_numbers
from ctld_optax.diagnostics import _trajectory as trajectory
from ctld_optax.diagnostics._run import FEW, SIGMAS, Finding, Run, effective_size
from ctld_optax.diagnostics._snapshot import ctld_state


def numbers(run: Run) -> Finding | None:
    """Were value and gradient finite?"""
    skipped = float(run.rows.skipped[:, -1].sum())
    share = skipped / max(run.count[-1] * run.replicas, 1.0)
    run.figures["share of steps skipped"] = share
    if skipped == 0:
        return None
    if run.is_known and run.is_exact and run.kernel.alpha.tempering is not None and np.any(run.temperature <= 0.0):
        return Finding(
            "steps_skipped",
            f"in {skipped:,.0f} steps ({share:.2%}) alpha stood still: the temperature is 0, and an exact coupling "
            "divides by it. The value and the gradient may well be finite.",
            'a temperature above 0; or coupling="standardized", or tempering=None, for a run that ends at 0.',
            {"skipped": skipped, "share": share},
        )
    each = run.rows.skipped[:, -1]
    whose = f", most of them, {each.max():,.0f}, of replica {each.argmax()} of {run.replicas}" if run.replicas > 1 else ""
    return Finding(
        "steps_skipped",
        f"in {skipped:,.0f} steps ({share:.2%}) the value or the gradient was not finite{whose}.",
        "lower learning_rate or temperature, or clip the gradient before the sampler: optax.chain("
        "optax.clip_by_global_norm(...), sampler). If it happens whatever they are, look at the data.",
        {"skipped": skipped, "share": share},
    )


def momenta(run: Run) -> Finding | str | None:
    """Is the kinetic energy in the window what the noise makes it?"""
    if not run.is_known or run.num_params is None:
        return "the kinetic temperature: it needs sampler and num_params."
    if not run.has_temperature:
        return "the kinetic temperature: it needs one temperature for all layers."
    base = np.broadcast_to(run.temperature, run.rows.alpha.shape)
    rows = run.in_window & (base > 0.0)
    if rows.sum() < FEW:
        return f"the kinetic temperature: {rows.sum()} settled rows at the base temperature are too few."
    base = np.where(base > 0.0, base, 1.0)
    target = trajectory.kinetic_temperature_target(
        base, float(run.kernel.decay), run.rows.beta, integrator=run.kernel.integrator.name
    )
    ratio = trajectory.kinetic_temperature(run.rows.kinetic_energy, run.num_params) / target
    # In the window only: elsewhere the target moves, and the momenta lag behind. All rows tell how correlated they are.
    mean, settled = float(ratio[rows].mean()), ratio[:, run.settled]
    error = float(np.sqrt(2.0 / run.num_params / (effective_size(settled) * rows.sum() / settled.size)))
    run.figures["kinetic temperature / target"] = mean
    # Healthy networks have 1.01 to 1.05, and a force heats by 1 / (1 - l U'' / (2 (1 + mu))): a quarter is l U'' = 0.76.
    if abs(mean - 1.0) < max(0.25, SIGMAS * error):
        return None
    if mean > 1.0:
        says = f"the momenta are {mean:,.3g} times as hot as the injected noise alone makes them: minibatches or gradients do."
        advice = (
            "a lower learning_rate or larger minibatches; gradient_noise=RunningNoise(), which injects that much less; or a "
            "higher temperature, since this one is not the one you have."
        )
    else:
        says = f"the momenta have {mean:,.3g} of the temperature that the injected noise gives them."
        advice = "num_params must count the parameters that move, and sampler be the one of the run."
    return Finding("kinetic_temperature", says, advice, {"ratio": mean, "error": error})


def loss(run: Run) -> Finding | str | None:
    """Did the loss come down? Asked of explorers only: a posterior may well be started at its mode."""
    if run.is_exact:
        return None
    if run.value is None:
        return "the loss: it needs value."
    early = run.value[:, run.count <= 3] if run.initial_value is None else np.asarray([run.initial_value])
    late = run.value.T[run.in_window.T]  # in the order of time
    late = late[-max(late.size // 4, FEW) :]
    early, late = early[np.isfinite(early)], late[np.isfinite(late)]
    if early.size == 0 or early.mean() <= 0.0 or late.size < FEW:
        return "the loss: it needs values > 0 from the first step on (or initial_value), and late ones at the base temperature."
    start, end = float(early.mean()), float(late.mean())
    run.figures |= {"loss at the start": start, "loss late, in the window": end}
    # On a plateau, too, a loss falls by parts of a percent; that it is less than a tenth must be sure. The first values may
    # scatter because they fall, the late ones because they are hot: the scatter of minibatches is the smaller of the two.
    minibatch = min(early.std(), late.std()) if early.size > 1 else late.std()
    error = np.hypot(minibatch / np.sqrt(early.size), late.std() / np.sqrt(effective_size(late[None])))
    if end < 0.98 * start or end - 0.9 * start < SIGMAS * error:
        return None
    heat = 0.5 * (run.num_params or 0) * float(run.temperature.mean()) if run.has_temperature else 0.0
    says = f"the loss began with {start:.3g} and is {end:.3g} at the base temperature"
    figures = {"start": start, "end": end, "heat": heat}
    if run.num_params and heat > start:
        return Finding(
            "temperature_too_hot",
            f"{says}; by equipartition the noise alone adds about d T / 2 = {heat:.3g}.",
            f"a lower temperature: begin where d T / 2 is a tenth of the loss, with {0.2 * start / run.num_params:.1g}.",
            figures,
        )
    return Finding(
        "loss_not_falling",
        f"{says}" + (f"; the noise, d T / 2 = {heat:.3g}, is less than that." if heat else "."),
        "three times the temperature, or more sampling_steps, or another learning_rate. Where d T / 2 is near the loss "
        "already, a third of the temperature.",
        figures,
    )


def after_switch(run: Run) -> Finding | None:
    """Did what came after the hand-over go well? There is no noise any more: the loss should be below what it was."""
    if run.value is None or run.value_after is None or run.value_after.shape[1] < FEW:
        return None
    last = run.value_after[:, -max(run.value_after.shape[1] // 4, FEW) :]
    end, highest = float(last.mean()), float(np.nanmax(np.where(np.isfinite(run.value), run.value, np.nan)))
    run.figures |= {"loss at the end, after the hand-over": end}
    if np.isfinite(end) and end <= highest:
        return None
    return Finding(
        "diverged_after_switch",
        f"after the hand-over the loss ended at {end:.3g}, and while sampling it was {highest:.3g} at most.",
        "a lower learning_rate for the optimizer of phase_switch, or gradients clipped in front of both phases: "
        "optax.chain(optax.clip_by_global_norm(...), phase_switch(...)).",
        {"end": end, "highest": highest},
    )


def replicas_agree(run: Run) -> Finding | str | None:
    """Do the chains of a posterior sampler see one distribution of the loss?"""
    if not run.is_exact or run.replicas < 2:
        return None
    if run.value is None:
        return "whether the replicas agree: it needs value."
    chains = [value[at_base & np.isfinite(value)] for value, at_base in zip(run.value, run.in_window, strict=True)]
    if min(chain.size for chain in chains) < FEW:
        return "whether the replicas agree: some have too few settled rows at the base temperature."
    means, within = np.asarray([chain.mean() for chain in chains]), float(np.mean([chain.var() for chain in chains]))
    errors = np.asarray([chain.std() / np.sqrt(effective_size(chain[None])) for chain in chains])
    # The variance of all chains together over that within one, sqrt of: the R-hat of Gelman and Rubin.
    ratio = float(np.sqrt(1.0 + means.var(ddof=1) / within)) if within > 0.0 else 1.0
    run.figures["deviation of the loss, all replicas over one"] = ratio
    first, last = int(np.argmin(means)), int(np.argmax(means))
    sure = means[last] - means[first] > SIGMAS * np.hypot(errors[first], errors[last])
    if ratio < 1.1 or not sure:
        return None
    return Finding(
        "replicas_disagree",
        f"the mean loss at the base temperature is {means[first]:.3g} in one replica and {means[last]:.3g} in another: they "
        "are in different places, and their pool is no sample of the posterior.",
        "more steps, or a tempering whose hot end crosses what lies between: a larger strength; or replicas started alike.",
        {"ratio": ratio, "lowest": float(means[first]), "highest": float(means[last])},
    )


def streams(run: Run) -> Finding | None:
    """Has each replica noise of its own?"""
    if run.state is None:
        return None
    keys = np.asarray(jax.random.key_data(jax.tree.leaves(ctld_state(run.state).key)[0]))
    keys = keys.reshape(-1, keys.shape[-1])
    distinct = len(np.unique(keys, axis=0))
    if distinct == len(keys):
        return None
    return Finding(
        "replicas_share_noise",
        f"{len(keys)} replicas have {distinct} keys: those with one key draw the same noise, and are no independent chains.",
        "a key for each, at init: jax.vmap(lambda key, params: ctld(..., key=key).init(params))(keys, members), with "
        "keys = jax.random.split(jax.random.key(0), len(members)).",
        {"replicas": float(len(keys)), "keys": float(distinct)},
    )


def gradients(run: Run) -> Finding | None:
    """Is there a leaf that the loss does not see? It diffuses, without a force that would bring it back."""
    leaves = jax.tree_util.tree_leaves_with_path(run.grads)
    flat = [jax.tree_util.keystr(path) or "the only one" for path, leaf in leaves if not np.any(as_numbers("grads", leaf))]
    if not flat:
        return None
    named = ", ".join(flat[:5]) + (f" and {len(flat) - 5} more" if len(flat) > 5 else "")
    return Finding(
        "leaves_without_gradient",
        f"{len(flat)} of {len(leaves)} parameter arrays have no gradient: {named}. Noise moves them and no force holds them: "
        "they drift away; their momentum drives alpha like any other.",
        "leave them out: optax.partition({'sample': sampler, 'keep': optax.set_to_zero()}, labels), with 'keep' for these.",
        {"leaves": float(len(flat))},
    )


def energy(run: Run) -> Finding | str | None:
    """Is the energy that drives alpha what its running mean and deviation say?"""
    if run.kernel.alpha.tempering is None:
        return None
    coupling = run.kernel.alpha.coupling
    if run.value is None and coupling.needs_value:
        return "the energy: it needs value."
    value: Any = 0.0 if run.value is None else run.value
    coupled = coupling.energy(value, run.rows.kinetic_energy)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = (coupled - run.rows.energy_mean) / np.sqrt(run.rows.energy_var)
    score = np.where(np.isfinite(score), score, 0.0)[:, run.settled]
    if score.size < FEW:
        return f"the energy: {score.size} rows are too few."
    if isinstance(coupling, Standardized):
        clip = coupling.clip
        clipped = np.abs(score) >= clip
        share = float(clipped.mean())
        run.figures["share of energies clipped"] = share
        # Chebyshev allows 4 %, a Gaussian 6e-7; healthy runs have 0.2 %, of alpha's fastest moves.
        if share > 0.01 and clipped.sum() >= 10:
            return Finding(
                "energy_outliers",
                f"{share:.1%} of the energies are {clip:g} deviations and more from their mean: the others hardly move alpha.",
                "a loss without outliers: larger minibatches, clipped or robust losses, a lower learning_rate.",
                {"share": share},
            )
    drift = float(score.mean())
    run.figures["energy - running mean, deviations"] = drift
    # A steady ramp is one deviation off, whatever its slope, because the mean and the deviation of an exponential memory are
    # equal. Healthy runs have 0.15 at most.
    if abs(drift) < max(0.5, SIGMAS / np.sqrt(effective_size(score))):
        return None
    way = "falls" if drift < 0.0 else "rises"
    return Finding(
        "energy_drifting",
        f"the energy {way} faster than its running mean follows, by {drift:+.2f} deviations: alpha answers to the trend.",
        "a longer run or a higher learning_rate, so that most steps come after the fall."
        if drift < 0.0
        else "a lower learning_rate or temperature: the run goes uphill.",
        {"drift": drift},
    )
