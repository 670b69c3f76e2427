"""The rows of the gauntlet: what is put to the test. A new transformation is one line in `ROWS`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

import ctld_optax
from ctld_optax import baselines


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What a wrapper that cannot work must say: the error's type, and words of it that docs/compatibility.md quotes."""

    error: type[Exception]
    words: str


@dataclasses.dataclass(frozen=True, eq=False)  # equal if identical, so that results can be remembered by row
class Row:
    """A transformation as a factory and its arguments.

    `needs_value`: without `value` it raises. `cold`: arguments that make it all but noiseless. `refuses`: columns that it
    may and must refuse, and how.
    """

    name: str
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: Mapping[str, Any]
    needs_value: bool = True
    cold: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"temperature": 1e-12})
    refuses: Mapping[str, Refusal] = dataclasses.field(default_factory=dict)

    def make(self, **overrides: Any) -> optax.GradientTransformationExtraArgs:
        return self.factory(**{**self.kwargs, **overrides})


def ctld_then_sgd(learning_rate: Any, temperature: Any, momentum: Any, key: Any, sampling_steps: int):
    sampler = ctld_optax.ctld(learning_rate, temperature, momentum, key=key)
    return ctld_optax.phase_switch(sampler, optax.sgd(learning_rate, momentum=momentum), sampling_steps)


def ctld_then_adam(learning_rate: Any, temperature: Any, key: Any, sampling_steps: int):
    sampler = ctld_optax.ctld(learning_rate, temperature, key=key)
    return ctld_optax.phase_switch(sampler, optax.adam(learning_rate), sampling_steps)


def accumulated(learning_rate: Any, temperature: Any, key: Any):
    return ctld_optax.accumulate(ctld_optax.ctld(learning_rate, temperature, key=key), 1)


def per_layer(learning_rate: Any, temperature: Any, key: Any):
    """Weights at twice the learning rate and three times the temperature of the rest."""

    def times(factor: float, knob: Any) -> Any:
        return (lambda count: factor * knob(count)) if callable(knob) else factor * knob

    return ctld_optax.ctld(
        ctld_optax.PerLayer(lambda name: times(2.0, learning_rate) if "w" in name else learning_rate),
        ctld_optax.PerLayer(lambda name: times(3.0, temperature) if "w" in name else temperature),
        key=key,
    )


BASE = {"learning_rate": 1e-2, "temperature": 1e-3, "key": 0}
EXACT = {"coupling": "hamiltonian", "confinement": "force"}
WITHOUT_LOSS = {"coupling": "kinetic"}
ADAM_UNDER_STRICT = Refusal(ValueError, "no available implicit dtype promotion path")
ONE_CLOCK = Refusal(TypeError, "algorithm1 needs learning_rate and temperature as numbers, not as schedules")

ROWS = (
    Row("ctld", ctld_optax.ctld, BASE),
    Row("ctld, hamiltonian, force wall", ctld_optax.ctld, BASE | EXACT),
    Row("ctld, stationary start, no bias", ctld_optax.ctld, BASE | {"initial_momentum": "stationary", "bias": None}),
    Row("ctld, constant temperature (SGHMC)", ctld_optax.ctld, BASE | {"tempering": None}, needs_value=False),
    Row("ctld, without the loss", ctld_optax.ctld, BASE | WITHOUT_LOSS, needs_value=False),
    Row("posterior_sampler, in a metric", ctld_optax.posterior_sampler, BASE | {"preconditioner": ctld_optax.FixedMetric(2.0)}),
    Row("ctld, in SecondMoment", ctld_optax.ctld, BASE | {"preconditioner": ctld_optax.SecondMoment()}),
    Row("ctld, in LayerScale", ctld_optax.ctld, BASE | {"preconditioner": ctld_optax.LayerScale()}),
    Row("ctld, per layer", per_layer, BASE),
    Row(
        "ctld, with a prior",
        ctld_optax.ctld,
        BASE | {"prior": ctld_optax.Prior(0.1, cold=True)},
        cold={"temperature": 1e-12, "prior": ctld_optax.Prior(1e-4)},
    ),
    Row("ctld, estimated gradient noise", ctld_optax.ctld, BASE | {"gradient_noise": ctld_optax.RunningNoise(0.9)}),
    Row("accumulate around ctld", accumulated, BASE),
    Row("algorithm1", ctld_optax.algorithm1, BASE | {"momentum": 0.9}, refuses={"learning-rate schedule": ONE_CLOCK}),
    Row("phase_switch onto sgd", ctld_then_sgd, BASE | {"momentum": 0.9, "sampling_steps": 2}),
    Row(
        "phase_switch onto adam", ctld_then_adam, BASE | {"sampling_steps": 2}, refuses={"strict promotion": ADAM_UNDER_STRICT}
    ),
    Row("baselines.sgld", baselines.sgld, BASE, needs_value=False),
    Row("baselines.sghmc", baselines.sghmc, BASE, needs_value=False),
    Row(
        "baselines.anneal_sgd",
        baselines.anneal_sgd,
        {"learning_rate": 1e-2, "variance": 1.0, "key": 0},
        needs_value=False,
        cold={"variance": 0.0},
    ),
    Row("baselines.santa", baselines.santa, BASE | {"exploration_steps": 2}, needs_value=False),
)
