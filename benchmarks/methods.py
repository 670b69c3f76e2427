"""The methods of the paper's comparison, two tuned hyperparameters each, all ranges log-uniform.

Heavy-ball methods share one range of learning rates and so do those that rescale the gradient; the two samplers share their
temperatures. What is not tuned is the library's default, or 0.9 for the momentum.
"""

from collections.abc import Mapping
from typing import Any

import optax

import ctld_optax
from benchmarks.sweep import Method, Range

MOMENTUM = 0.9
SAMPLING_SHARE = 0.5  # of the steps; what comes after is SGD-M with the sampler's learning rate
FRICTION = Range(0.01, 0.5)  # 1 - momentum, and 1 - b1 of Adam
FORGETTING = Range(0.001, 0.1)  # 1 - decay of RMSprop


def two_phases(hyper: Mapping[str, Any], key: Any, steps: int, *, share: float = SAMPLING_SHARE, **options: Any) -> Any:
    """`ctld(**options)` for a share of the steps, then SGD-M at the same learning rate."""
    rate = hyper["learning_rate"]
    sampler = ctld_optax.ctld(rate, hyper["temperature"], MOMENTUM, key=key, **options)
    return ctld_optax.phase_switch(sampler, optax.sgd(rate, MOMENTUM), round(share * steps))


def table(heavy_ball: Range, adaptive: Range, temperature: Range) -> dict[str, Method]:
    """Every method of the paper, for an experiment's ranges of learning rates and temperatures."""
    sampler = {"learning_rate": heavy_ball, "temperature": temperature}
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
        "SGHMC": Method(sampler, lambda hyper, key, steps: two_phases(hyper, key, steps, tempering=None)),
        "CTLD": Method(sampler, two_phases),
    }
