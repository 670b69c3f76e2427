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


def two_phases(hyper: Mapping[str, Any], key: Any, steps: int, *, share: float = SAMPLING_SHARE, **options: Any) -> Any:
    """`ctld(**options)` for a share of the steps, then SGD-M at the same learning rate."""
    rate = hyper["learning_rate"]
    sampler = ctld_optax.ctld(rate, hyper["temperature"], MOMENTUM, key=key, **options)
    return ctld_optax.phase_switch(sampler, optax.sgd(rate, MOMENTUM), round(share * steps))


def santa(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """Santa explores as long as the samplers sample."""
    explore = round(SAMPLING_SHARE * steps)
    return baselines.santa(hyper["learning_rate"], hyper["temperature"], MOMENTUM, key=key, exploration_steps=explore)


def table(heavy_ball: Range, adaptive: Range, temperature: Range, variance: Range) -> dict[str, Method]:
    """Every method of the paper, for an experiment's ranges of learning rates, temperatures and (AnnealSGD) variances."""
    sampler = {"learning_rate": heavy_ball, "temperature": temperature}
    slow = Range(adaptive.low / 100.0, adaptive.high / 100.0)
    return {
        "SGD-M": Method(
            {"learning_rate": heavy_ball, "friction": FRICTION},
            lambda hyper, _key, _steps: optax.sgd(hyper["learning_rate"], 1.0 - hyper["friction"]),
        ),
        "RMSprop": Method(
            {"learning_rate": adaptive, "forgetting": FORGETTING},
            lambda hyper, _key, _steps: optax.rmsprop(hyper["learning_rate"], 1.0 - hyper["forgetting"]),
        ),
        "Adam": Method(
            {"learning_rate": adaptive, "friction": FRICTION},
            lambda hyper, _key, _steps: optax.adam(hyper["learning_rate"], 1.0 - hyper["friction"]),
        ),
        "AnnealSGD": Method(
            {"learning_rate": heavy_ball, "variance": variance},
            lambda hyper, key, _steps: baselines.anneal_sgd(hyper["learning_rate"], hyper["variance"], MOMENTUM, key=key),
        ),
        "Santa": Method({"learning_rate": slow, "temperature": temperature}, santa),
        "SGHMC": Method(sampler, lambda hyper, key, steps: two_phases(hyper, key, steps, tempering=None)),
        "CTLD": Method(sampler, two_phases),
    }
