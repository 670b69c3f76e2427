"""Pure readers of a state or of a recorded trajectory: did alpha do what it should, and how hot was it?

Record a trajectory with :func:`snapshot` inside `lax.scan` (or in a Python loop, stacked afterwards)::

    def step(carry, batch):
        ...
        return carry, ctld_optax.diagnostics.snapshot(opt_state)

    carry, trajectory = jax.lax.scan(step, carry, batches)

The functions on trajectories take arrays with time on the last axis and any number of replica axes before it, pool
over all of them, and work in float64 NumPy.
"""

from ctld_optax.diagnostics._report import Report as Report
from ctld_optax.diagnostics._report import report as report
from ctld_optax.diagnostics._run import Finding as Finding
from ctld_optax.diagnostics._snapshot import Snapshot as Snapshot
from ctld_optax.diagnostics._snapshot import ctld_state as ctld_state
from ctld_optax.diagnostics._snapshot import snapshot as snapshot
from ctld_optax.diagnostics._temperature_range import TemperatureRange as TemperatureRange
from ctld_optax.diagnostics._temperature_range import suggest_temperature as suggest_temperature
from ctld_optax.diagnostics._trajectory import alpha_histogram as alpha_histogram
from ctld_optax.diagnostics._trajectory import alpha_kl_from_uniform as alpha_kl_from_uniform
from ctld_optax.diagnostics._trajectory import bias_potential as bias_potential
from ctld_optax.diagnostics._trajectory import fraction_in_window as fraction_in_window
from ctld_optax.diagnostics._trajectory import fraction_outside as fraction_outside
from ctld_optax.diagnostics._trajectory import kinetic_temperature as kinetic_temperature
from ctld_optax.diagnostics._trajectory import kinetic_temperature_target as kinetic_temperature_target
from ctld_optax.diagnostics._trajectory import round_trips as round_trips
from ctld_optax.diagnostics._trajectory import temperature as temperature

__all__ = [
    "Finding",
    "Report",
    "Snapshot",
    "TemperatureRange",
    "alpha_histogram",
    "alpha_kl_from_uniform",
    "bias_potential",
    "ctld_state",
    "fraction_in_window",
    "fraction_outside",
    "kinetic_temperature",
    "kinetic_temperature_target",
    "report",
    "round_trips",
    "snapshot",
    "suggest_temperature",
    "temperature",
]
