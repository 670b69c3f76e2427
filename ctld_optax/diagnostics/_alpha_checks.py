"""What a report asks about alpha and its bias."""

import math

import numpy as np

from ctld_optax._dynamics.adaptive_force import AdaptiveBiasingForce
from ctld_optax._dynamics.metadynamics import Metadynamics
from ctld_optax._dynamics.tempering import PolynomialTempering
from ctld_optax._validate import check_bias
from ctld_optax.diagnostics import _trajectory as trajectory
from ctld_optax.diagnostics._run import FEW, SIGMAS, Finding, Run, effective_size
from ctld_optax.diagnostics._snapshot import ctld_state

BIAS = "a bias: AdaptiveBiasingForce() for a posterior, Metadynamics() otherwise."


def confinement(run: Run) -> Finding | str | None:
    """Is alpha between its walls?"""
    if run.kernel.alpha.tempering is None:
        return "alpha: there is no tempering."
    outside = trajectory.fraction_outside(run.rows.alpha, run.kernel.alpha.tempering.delta_prime)
    run.figures["share outside the walls"] = outside
    # A force wall is crossed by a step or two at a time, with a sensible alpha_step_size in less than 2 % of the steps.
    if outside < 0.05:
        return None
    return Finding(
        "alpha_outside",
        f"alpha is beyond its walls in {outside:.1%} of the steps: the temperature stays at its hottest.",
        _weaker_energy(run) if run.is_exact else 'confinement="reflect", whose walls cannot be crossed.',
        {"outside": outside},
    )


def drive(run: Run) -> Finding | str | None:
    """Is r_alpha thermal?"""
    half, r_alpha = run.kernel.alpha, run.rows.r_alpha[:, run.settled]
    if half.tempering is None:
        return None
    decay, step_size = float(half.decay), float(half.step_size)
    squares = np.square(r_alpha) / half.integrator.kinetic_temperature(decay)  # of mean 1 in equilibrium
    heat = float(squares.mean())
    run.figures["r_alpha^2 / its thermal value"] = heat
    # Well-tempered hills push as long as they fill: up to 2.2 in the first 1,000 steps of healthy runs.
    if heat < 3.0 or heat - 1.0 < SIGMAS * math.sqrt(2.0 / effective_size(squares)):
        return None
    advice = _weaker_energy(run) if run.is_exact else "a smaller alpha_step_size."
    if isinstance(half.bias, Metadynamics):
        # What one hill does to r_alpha within the memory of that, whose thermal size is one.
        push = step_size * half.bias.height / (half.bias.width * (1.0 - decay))
        if push > 1.0:
            advice = f"lower hills: Metadynamics(height={half.bias.height / push:.1g}), with its bias_factor of 5, or less."
    return Finding(
        "alpha_driven",
        f"r_alpha^2 is {heat:,.1f} times its thermal value: alpha, and with it the temperature, changes faster than the "
        "parameters can follow.",
        advice,
        {"heat": heat},
    )


def trips(run: Run) -> Finding | str | None:
    """Does alpha come and go between the window and the hot end?"""
    if run.kernel.alpha.tempering is None:
        return None
    free = free_trip(run, run.kernel.alpha.tempering)
    made = trajectory.round_trips(run.rows.alpha, run.kernel.alpha.tempering.delta, run.kernel.alpha.tempering.delta_prime)
    expected = run.steps * run.replicas / free
    run.figures |= {"round trips": float(made), "round trips of a free alpha": expected}
    if run.stride > free / 10.0:
        return f"round trips: rows are {run.stride:,.0f} steps apart, and a free alpha takes {free:,.0f} for one."
    figures = {"made": float(made), "expected": expected}
    # The exact coupling must carry the energy along: posteriors of few dimensions make a quarter of the free trips. Trips that
    # came at random would be none in 1 of 55 runs where 4 are due; they are more regular than that.
    due = 0.1 * expected if run.is_exact else expected
    if due >= 4.0 and made < max(1.0, min(0.03 * expected, 10.0)):
        return Finding(
            "alpha_stuck",
            f"alpha went {made} times from the window to the hot end and back, a free one {expected:,.0f} times.",
            _freer_walk(run),
            figures,
        )
    if made == 0 or expected < 1.0:
        return Finding(
            "too_short",
            f"{run.steps:,.0f} steps hold {made} round trips of alpha; a free one takes {free:,.0f} steps for each.",
            f"sampling_steps of {10 * free:,.0f} or more, or a larger alpha_step_size.",
            figures,
        )
    return None


def free_trip(run: Run, tempering: PolynomialTempering) -> float:
    """Steps that a round trip takes without any force: mean first passages of a Brownian |alpha| between reflecting ends."""
    delta, limit = tempering.delta, tempering.delta_prime
    hot = limit - 0.1 * (limit - delta)
    decay, step_size = float(run.kernel.alpha.decay), float(run.kernel.alpha.step_size)
    variance_per_step = 2.0 * step_size**2 / (1.0 - decay)  # in either order: that of the noise, 2 (1 - mu), over (1 - mu)^2
    return (hot**2 - delta**2 + (limit - delta) ** 2 - (limit - hot) ** 2) / variance_per_step


def occupation(run: Run) -> Finding | str | None:
    """Is the window visited as often as a uniform alpha would?"""
    tempering, alpha = run.kernel.alpha.tempering, run.rows.alpha[:, run.settled]
    if tempering is None:
        return None
    if alpha.size < FEW:
        return f"the share in the window: {alpha.size} rows are too few."
    share, uniform = trajectory.fraction_in_window(alpha, tempering.delta), tempering.delta / tempering.delta_prime
    run.figures |= {"share in the window": share, "share of a uniform alpha": uniform}
    error = math.sqrt(uniform * (1.0 - uniform) / effective_size(np.abs(alpha)))
    # Well-tempered hills leave some of the free energy, and young biases more: 0.20 to 0.32 for 0.27 is theirs.
    if 2 / 3 < share / uniform < 3 / 2 or abs(share - uniform) < SIGMAS * error:
        return None
    return Finding(
        "window_occupation",
        f"{share:.1%} of the steps are at the base temperature, with a uniform alpha {uniform:.1%} would be (+- {error:.1%}).",
        "more steps for the bias to fill, or a larger bias_factor." if run.kernel.alpha.bias is not None else BIAS,
        {"share": share, "uniform": uniform, "error": error},
    )


def bias(run: Run) -> Finding | str | None:
    """Does the bias stand still? Asked of posterior samplers only: an explorer's may grow as long as it moves alpha."""
    kind, tempering = run.kernel.alpha.bias, run.kernel.alpha.tempering
    if not run.is_exact or kind is None or tempering is None:
        return None
    if run.state is None:
        return "the bias: it needs state, the one after the run."
    grid = np.asarray(ctld_state(run.state).bias, np.float64)
    check_bias("the state's bias", grid, kind.num_bins)
    grid = grid.reshape(-1, *grid.shape[-2:])
    if isinstance(kind, AdaptiveBiasingForce):
        missing = float(kind.missing(grid).mean())
        run.figures["share of the mean force missing"] = missing
        if missing < 0.1:
            return None
        return Finding(
            "bias_filling",
            f"{missing:.0%} of the mean force on alpha is missing: its nodes have {np.median(grid[:, 0]):,.0f} visits each.",
            f"{10.0 * missing:.1f} times the steps, more walkers on one bias, fewer num_bins, or a smaller min_samples.",
            {"missing": missing},
        )
    factor = kind.bias_factor
    height = kind.height * (1.0 if factor is None else float(np.exp(-grid.sum(axis=1) / (factor - 1.0)).mean()))
    # What the hills of one round trip add to the bias at a place, alpha being uniform. Plain hills that add 0.13 shift the mean
    # of a double well by a tenth of its value, those that add 0.013 by less than its error (see `AdaptiveBiasingForce`).
    made = max(run.figures.get("round trips", 0.0), 1.0)
    lift = height * math.sqrt(2.0 * math.pi) * kind.width / (2.0 * tempering.delta_prime) * run.steps * run.replicas / made
    run.figures["growth of V_b in a round trip, k_B T"] = lift
    if lift < 0.1:
        return None
    return Finding(
        "bias_filling",
        f"hills of {height:.2g} k_B T still lift the bias by {lift:.2g} k_B T in each round trip of alpha: the window does not "
        "sample exp(-value / T) yet.",
        "AdaptiveBiasingForce(); or well-tempered hills (bias_factor=5) of a smaller height, and more steps.",
        {"height": height, "lift": lift},
    )


def _weaker_energy(run: Run) -> str:
    size = "so many" if run.num_params is None else f"{run.num_params:,}"
    return (
        f'coupling="standardized": the energy of {size} parameters, whose spread grows as sqrt(d / 2), is too much for alpha.'
    )


def _freer_walk(run: Run) -> str:
    if run.kernel.alpha.bias is None:
        return BIAS
    if run.is_exact:
        return 'coupling="standardized" to explore a network; for a posterior more steps or walkers on one bias (axis_name).'
    return "a larger alpha_step_size."
