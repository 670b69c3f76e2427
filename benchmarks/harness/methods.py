"""The methods of the paper's comparison, two tuned hyperparameters each, all ranges log-uniform.

Heavy-ball methods share one range of learning rates, RMSprop and Adam another, and Santa has the latter over 100: its velocity
adds up ten gradients, and the second moment that divides them starts at 0. (A first sweep with the range of RMSprop left Santa
at the lower edge, worse than an untrained network.) Santa and the two samplers share their temperatures. What is not tuned is
the library's default, or 0.9 for the momentum. SGHMC is `ctld` without tempering: it shows what the moving temperature adds.
"""

from collections.abc import Mapping
from typing import Any

import optax

import ctld_optax
from benchmarks.harness.sweep import Method, Range
from ctld_optax import baselines

MOMENTUM = 0.9
SAMPLING_SHARE = 0.5  # of the steps; what comes after is SGD-M with the sampler's learning rate
FRICTION = Range(0.01, 1.0)  # 1 - momentum, and 1 - b1 of Adam; 1 is none
FORGETTING = Range(0.001, 0.1)  # 1 - decay of RMSprop


def sampling_steps(steps: int, share: float = SAMPLING_SHARE) -> int:
    return round(share * steps)


def sgd_m(hyper: Mapping[str, Any], _key: Any, _steps: int) -> Any:
    return optax.sgd(hyper["learning_rate"], 1.0 - hyper["friction"])


def adam(hyper: Mapping[str, Any], _key: Any, _steps: int) -> Any:
    return optax.adam(hyper["learning_rate"], 1.0 - hyper["friction"])


def two_phases(
    hyper: Mapping[str, Any],
    key: Any,
    steps: int,
    *,
    share: float = SAMPLING_SHARE,
    momentum: float = MOMENTUM,
    second_rate: float = 1.0,
    **options: Any,
) -> Any:
    """`ctld(**options)` for a share of the steps, then SGD-M at `second_rate` times its learning rate."""
    rate = hyper["learning_rate"]
    sampler = ctld_optax.ctld(rate, hyper["temperature"], momentum, key=key, **options)
    return ctld_optax.phase_switch(sampler, optax.sgd(second_rate * rate, momentum), sampling_steps(steps, share))


def sghmc(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """The same at constant temperature."""
    return two_phases(hyper, key, steps, tempering=None)


def santa(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """Santa explores as long as the samplers sample."""
    explore = sampling_steps(steps)
    return baselines.santa(hyper["learning_rate"], hyper["temperature"], MOMENTUM, key=key, exploration_steps=explore)


def table(heavy_ball: Range, adaptive: Range, temperature: Range, variance: Range) -> dict[str, Method]:
    """Every method of the paper, for an experiment's ranges of learning rates, temperatures and (AnnealSGD) variances."""
    sampler = {"learning_rate": heavy_ball, "temperature": temperature}
    slow = Range(adaptive.low / 100.0, adaptive.high / 100.0)
    return {
        "SGD-M": Method({"learning_rate": heavy_ball, "friction": FRICTION}, sgd_m),
        "RMSprop": Method(
            {"learning_rate": adaptive, "forgetting": FORGETTING},
            lambda hyper, _key, _steps: optax.rmsprop(hyper["learning_rate"], 1.0 - hyper["forgetting"]),
        ),
        "Adam": Method({"learning_rate": adaptive, "friction": FRICTION}, adam),
        "AnnealSGD": Method(
            {"learning_rate": heavy_ball, "variance": variance},
            lambda hyper, key, _steps: baselines.anneal_sgd(hyper["learning_rate"], hyper["variance"], MOMENTUM, key=key),
        ),
        "Santa": Method({"learning_rate": slow, "temperature": temperature}, santa),
        "SGHMC": Method(sampler, sghmc),
        "CTLD": Method(sampler, two_phases),
    }
