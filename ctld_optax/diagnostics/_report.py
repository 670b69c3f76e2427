"""Is a run healthy? One call that says so in words and figures, and names the knob to turn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ctld_optax._checked import checked
from ctld_optax._dynamics.langevin import LangevinTransformation
from ctld_optax.diagnostics import _alpha_checks, _checks
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


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`report` found; `print` it.

    Attributes:
      findings: the troubles.
      figures: everything that was measured.
      unchecked: what could not be judged, and why.
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
    trajectory: Snapshot,
    sampler: LangevinTransformation | None = None,
    *,
    value: Any = None,
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
    bias_filling             hamiltonian coupling: the bias still moves, so that the window does not yet sample exp(-value/T)
    diverged_after_switch    after the hand-over the loss is higher than it ever was while sampling, or not finite
    replicas_share_noise     two replicas have one key, and so the same noise
    replicas_disagree        hamiltonian coupling: the replicas' losses differ by more than their scatter
    leaves_without_gradient  a parameter array's gradient is 0 throughout: it diffuses
    =======================  ==========================================================================================

    A trouble hides those that follow from it: more than 1 % of steps skipped hide all others, an alpha that is outside or
    driven those of momenta, loss and energy.

    Args:
      trajectory: snapshots of a run, each step or equally spaced ones (a :class:`~ctld_optax.recorder.Recorder`'s), with time
        on the last axis and any axes of replicas before it, which are pooled. Of steps after the hand-over only the loss
        is looked at.
      sampler: what `ctld` returned, for its settings; None: the defaults, learning rate and temperature unknown.
      value: the losses given as `value`, same shape as `trajectory.alpha`.
      num_params: d, how many parameters there are (not arrays).
      state: the state after the run, for the bias and the keys; with replicas' axes if the trajectory has them.
      initial_value: the loss before the first step, if the recorded steps begin later.
      grads: a gradient of the run, for leaves that have none.

    Raises:
      ValueError: for an empty trajectory, or a `value` of another shape.
    """
    run = Run(trajectory, sampler, value, num_params, state, initial_value, grads)
    skipped = _checks.numbers(run)
    findings = [] if skipped is None else [skipped]
    unchecked: list[str] = []
    if skipped is not None and skipped.figures["share"] > MOST_SKIPPED:
        return Report((skipped,), run.figures, ("everything else: too many steps were skipped.",))
    for check, hidden_by in CHECKS.items():
        if any(finding.name in hidden_by for finding in findings):
            continue
        found = check(run)
        if isinstance(found, Finding):
            findings.append(found)
        elif found is not None:
            unchecked.append(found)
    return Report(tuple(findings), run.figures, tuple(unchecked))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"
