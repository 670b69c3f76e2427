"""Is a run healthy? One call that says so in words and figures, and names the knob to turn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ctld_optax._checked import checked
from ctld_optax._dynamics.langevin import LangevinTransformation
from ctld_optax.diagnostics import _alpha_checks, _checks, _draws
from ctld_optax.diagnostics._run import Finding, Run
from ctld_optax.diagnostics._snapshot import Snapshot

MOST_SKIPPED = 0.01  # more of them skipped, and nothing else is worth a look
WILD = frozenset({"alpha_outside", "alpha_driven"})
# A check, and the findings from which its own would follow. The order is that of what follows from what.
CHECKS: Mapping[Callable[[Run], Finding | str | None], frozenset[str]] = {
    _checks.streams: frozenset(),
    _checks.gradients: frozenset(),
    _checks.after_switch: frozenset(),
    _alpha_checks.confinement: frozenset(),
    _alpha_checks.drive: WILD,
    _alpha_checks.trips: WILD,
    _alpha_checks.occupation: WILD | {"alpha_stuck", "too_short"},
    _checks.loss: WILD | {"too_short"},
    _checks.energy: WILD | {"too_short", "temperature_too_hot"},
    _checks.momenta: WILD | {"too_short", "energy_drifting"},
    _alpha_checks.bias: WILD | {"alpha_stuck", "too_short"},
    _checks.replicas_agree: WILD | {"too_short", "replicas_share_noise"},
}
NO_CHAINS = frozenset({"draws_not_finite", "replicas_share_noise"})
APART = NO_CHAINS | {"chain_stuck", "mode_missed", "replicas_disagree"}
BAD_STEPS = frozenset({"steps_diverged", "step_too_large", "steps_refused"})
DRAW_CHECKS: Mapping[Callable[[_draws.Draws], Finding | str | None], frozenset[str]] = {
    _draws.finite: frozenset(),
    _draws.streams: frozenset({"draws_not_finite", "replicas_share_noise"}),
    _draws.divergences: NO_CHAINS,
    _draws.step: NO_CHAINS | {"steps_diverged"},
    _draws.warmup: NO_CHAINS | BAD_STEPS,
    _draws.bias: NO_CHAINS | {"steps_refused"},
    _draws.stuck: NO_CHAINS | {"steps_refused"},
    _draws.modes: NO_CHAINS | {"chain_stuck", "bias_filling", "step_too_large", "steps_refused"},
    _draws.agreement: APART | {"bias_filling", "warmup_unfinished", "step_too_large", "steps_refused"},
    _draws.size: APART | BAD_STEPS | {"warmup_unfinished", "bias_filling"},
}
OF_SAMPLE = frozenset({_draws.divergences, _draws.warmup, _draws.bias})  # asked of what `posterior.sample` returns


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`report` found; `print` it.

    Attributes:
      findings: the troubles.
      figures: everything that was measured.
      unchecked: what could not be judged, and why.

    Example:
      >>> alpha = np.zeros(50)
      >>> rows = ctld_optax.diagnostics.Snapshot(np.arange(50), *5 * [alpha], alpha, alpha + 9)
      >>> ctld_optax.diagnostics.report(rows).healthy
      False
    """

    findings: tuple[Finding, ...]
    figures: Mapping[str, float]
    unchecked: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """No finding. What is in `unchecked` may still be wrong."""
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{finding.name}: {finding.says}\n    -> {finding.advice}" for finding in self.findings]
        lines = lines or ["healthy: no finding"]
        width = max(map(len, self.figures), default=0)
        lines += [f"  {name:<{width}}  {_figure(value)}" for name, value in self.figures.items()]
        lines += [f"  not checked: {reason}" for reason in self.unchecked]
        return "\n".join(lines)


@checked(sampler="It is what `ctld` returned, the one that was given to `phase_switch`.")
def report(
    trajectory: Any,
    sampler: LangevinTransformation | None = None,
    *,
    value: Any = None,
    samples: Any = None,
    num_params: int | None = None,
    state: Any = None,
    initial_value: float | None = None,
    grads: Any = None,
) -> Report:
    """Says whether a run is healthy, and if not, what is wrong and which knob to turn.

    =======================  ==========================================================================================
    finding                  when
    =======================  ==========================================================================================
    steps_skipped            a value or a gradient was not finite
    alpha_outside            more than 5 % of the steps beyond the walls
    alpha_driven             r_alpha^2 above three times its thermal value: hills or energy throw alpha about
    alpha_stuck              no round trip, or hardly any, where many were due
    too_short                no round trip, or less than one due: too few steps to say more
    window_occupation        the share of steps at the base temperature is not near delta / delta_prime
    kinetic_temperature      the momenta are hotter or colder than the noise makes them, by a quarter
    temperature_too_hot      the loss does not fall below its start, and the noise alone (d T / 2) is more than that
    loss_not_falling         the loss does not fall below its start, and the noise is not to blame
    energy_outliers          more than 1 % of the energies are more than 5 deviations from the mean (the coupling clips)
    energy_drifting          the energy moves away from its running mean faster than that follows
    bias_filling             exact coupling: the bias still moves, so that the window does not yet sample exp(-value/T)
    diverged_after_switch    after the hand-over the loss is higher than it ever was while sampling, or not finite
    replicas_share_noise     two replicas have one key, and so the same noise
    replicas_disagree        exact coupling: the replicas' losses differ by more than their scatter
    leaves_without_gradient  a parameter array's gradient is 0 throughout: it diffuses
    draws_not_finite         samples: a chain has draws that are not finite
    chain_stuck              samples: a chain repeats its draws, or fills less than a twentieth of what the others do
    steps_diverged           samples: more than 1 % of the steps of a chain were not taken
    step_too_large           samples: the energy error of a step is above 0.25 k_B T per sqrt(d)
    steps_refused            samples: a chain takes less than half of its steps
    warmup_unfinished        samples: the last window of the warm-up changed the metric by a factor of 4 or more
    mode_missed              samples: beyond a gap there are draws of some chains and none of others
    too_few_draws            samples: an effective size, bulk or tail, of less than 100 a chain
    =======================  ==========================================================================================

    Of samples, `replicas_share_noise` are chains that are equal, `replicas_disagree` is a rank-normalised split R-hat above
    1.05 of any number or of the log density, and `bias_filling` what `sample` says of its bias. R-hat and effective sizes are
    ArviZ's.

    A trouble hides those that follow from it: more than 1 % of steps skipped hide all others, an alpha that is outside or
    driven those of momenta, loss and energy, chains that are apart their effective size.

    Example::

        data = ctld_optax.posterior.sample(lambda x: 0.5 * jnp.sum(x**2), jnp.zeros(2), key=0)
        print(ctld_optax.diagnostics.report(data))

    Args:
      trajectory: snapshots of a run, each step or equally spaced ones (a :class:`~ctld_optax.recorder.Recorder`'s), with time
        on the last axis and any axes of replicas before it, which are pooled. Of steps after the hand-over only the loss
        is looked at. Or what :func:`ctld_optax.posterior.sample` returned, an `arviz.InferenceData`, and nothing else.
      sampler: what `ctld` returned, for its settings; None: the defaults, learning rate and temperature unknown.
      value: the losses given as `value`, same shape as `trajectory.alpha`.
      samples: the parameters that each `value` is of, a pytree whose leading axes are the trajectory's; those at the base
        temperature, but for the first fifth, are judged as the samples of a posterior.
      num_params: d, how many parameters there are (not arrays).
      state: the state after the run, for the bias and the keys; with replicas' axes if the trajectory has them.
      initial_value: the loss before the first step, if the recorded steps begin later.
      grads: a gradient of the run, for leaves that have none; or those of all `samples`, likewise, for the energy error.

    Raises:
      ValueError: for an empty trajectory, or a `value` or `samples` of another shape.
      TypeError: if `trajectory` is neither of the two, or there is anything beside an `arviz.InferenceData`.
      ImportError: for samples, without ArviZ (`pip install 'ctld-optax[posterior]'`).

    Example:
      >>> sampler = ctld_optax.ctld(0.05, 0.01, key=0)
      >>> def step(carry, _):
      ...     x, state = carry
      ...     value, grads = jax.value_and_grad(lambda x: 0.5 * jnp.sum(x**2))(x)
      ...     updates, state = sampler.update(grads, state, x, value=value)
      ...     return (x + updates, state), ctld_optax.diagnostics.snapshot(state)
      >>> start = (jnp.zeros(50), sampler.init(jnp.zeros(50)))
      >>> _, trajectory = jax.lax.scan(step, start, length=5_000)
      >>> report = ctld_optax.diagnostics.report(trajectory, sampler, num_params=50)
      >>> print(str(report).splitlines()[0])
      healthy: no finding
    """
    if hasattr(getattr(trajectory, "posterior", None), "data_vars"):
        others = {"sampler": sampler, "value": value, "samples": samples, "num_params": num_params, "state": state}
        others |= {"initial_value": initial_value, "grads": grads}
        for name, other in others.items():
            if other is not None:
                raise TypeError(f"{name} must be left out beside an arviz.InferenceData, which holds all that is asked of it.")
        return _judged(DRAW_CHECKS, _draws.of_data(trajectory), [], [])
    if not isinstance(trajectory, Snapshot):
        raise TypeError(
            "trajectory must be a Snapshot, of diagnostics.snapshot at each step, or an arviz.InferenceData, got "
            f"{trajectory!r:.60}, of type {type(trajectory).__name__}."
        )
    run = Run(trajectory, sampler, value, num_params, state, initial_value, grads)
    skipped = _checks.numbers(run)
    findings = [] if skipped is None else [skipped]
    if skipped is not None and skipped.figures["share"] > MOST_SKIPPED:
        return Report((skipped,), run.figures, ("everything else: too many steps were skipped.",))
    if samples is None:
        return _judged(CHECKS, run, findings, [])
    # Of samples there is more to say than of the loss alone.
    found = _judged(
        {check: hidden for check, hidden in CHECKS.items() if check is not _checks.replicas_agree}, run, findings, []
    )
    draws = _draws.of_samples(samples, run)
    if draws is None:
        return dataclasses.replace(
            found, unchecked=(*found.unchecked, "the samples: a chain has too few at the base temperature.")
        )
    draws.figures = run.figures | draws.figures
    asked = {check: hidden for check, hidden in DRAW_CHECKS.items() if check not in OF_SAMPLE}
    return _judged(asked, draws, [*found.findings], [*found.unchecked])


def _judged(
    checks: Mapping[Callable[[Any], Any], frozenset[str]], what: Any, findings: list[Finding], unchecked: list[str]
) -> Report:
    for check, hidden_by in checks.items():
        if any(finding.name in hidden_by for finding in findings):
            continue
        found = check(what)
        if isinstance(found, Finding):
            findings.append(found)
        elif found is not None:
            unchecked.append(found)
    return Report(tuple(findings), what.figures, tuple(unchecked))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"
