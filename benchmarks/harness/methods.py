"""The methods of the paper's comparison, their hyperparameters tuned, momentum among them, all ranges log-uniform.

Heavy-ball methods share one range of learning rates, RMSprop and Adam another, and Santa has the latter over 100: its velocity
adds up ten gradients, and the second moment that divides them starts at 0. (A first sweep with the range of RMSprop left Santa
at the lower edge, worse than an untrained network.) Santa and the samplers share their temperatures. Each has three
hyperparameters; what is not tuned is the library's default. SGHMC is `ctld` without tempering: it shows what the moving
temperature adds. CTLD with a preconditioner is Adam with noise, and hands over to Adam.
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
END = Range(0.01, 1.0)  # of the learning rate, which SGD-M lets fall exponentially to that share
FORGETTING = Range(0.001, 0.1)  # 1 - decay of RMSprop, and 1 - b2 of Adam


def sampling_steps(steps: int, share: float = SAMPLING_SHARE) -> int:
    return round(share * steps)


def momentum_of(hyper: Mapping[str, Any]) -> Any:
    """The tuned one, or where nothing is said 0.9."""
    return 1.0 - hyper.get("friction", 1.0 - MOMENTUM)


def sgd_m(hyper: Mapping[str, Any], _key: Any, steps: int) -> Any:
    rate = hyper["learning_rate"]
    falling = (lambda count: rate * hyper["end"] ** (count / steps)) if "end" in hyper else rate
    return optax.sgd(falling, momentum_of(hyper))


def rmsprop(hyper: Mapping[str, Any], _key: Any, _steps: int) -> Any:
    return optax.rmsprop(hyper["learning_rate"], 1.0 - hyper["forgetting"], momentum=momentum_of(hyper))


def adam(hyper: Mapping[str, Any], _key: Any, _steps: int) -> Any:
    return optax.adam(hyper["learning_rate"], 1.0 - hyper["friction"], 1.0 - hyper.get("forgetting", 1e-3))


def two_phases(
    hyper: Mapping[str, Any],
    key: Any,
    steps: int,
    *,
    share: float = SAMPLING_SHARE,
    second_rate: float = 1.0,
    **options: Any,
) -> Any:
    """`ctld(**options)` for a share of the steps, then SGD-M at `second_rate` times its learning rate."""
    rate, momentum = hyper["learning_rate"], momentum_of(hyper)
    sampler = ctld_optax.ctld(rate, hyper["temperature"], momentum, key=key, **options)
    return ctld_optax.phase_switch(sampler, optax.sgd(second_rate * rate, momentum), sampling_steps(steps, share))


def preconditioned(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """CTLD in Adam's metric, then Adam, whose learning rate is that of the sampler over 1 - momentum."""
    momentum = momentum_of(hyper)
    rate = (1.0 - momentum) * hyper["learning_rate"]
    metric = ctld_optax.SecondMoment(decay=0.999)
    sampler = ctld_optax.ctld(rate, hyper["temperature"], momentum, key=key, preconditioner=metric)
    return ctld_optax.phase_switch(sampler, optax.adam(hyper["learning_rate"], momentum), sampling_steps(steps))


def sghmc(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """The same at constant temperature."""
    return two_phases(hyper, key, steps, tempering=None)


def santa(hyper: Mapping[str, Any], key: Any, steps: int) -> Any:
    """Santa explores as long as the samplers sample."""
    explore = sampling_steps(steps)
    return baselines.santa(hyper["learning_rate"], hyper["temperature"], momentum_of(hyper), key=key, exploration_steps=explore)


def table(heavy_ball: Range, adaptive: Range, temperature: Range, variance: Range) -> dict[str, Method]:
    """Every method of the paper, for an experiment's ranges of learning rates, temperatures and (AnnealSGD) variances."""
    sampler = {"learning_rate": heavy_ball, "temperature": temperature, "friction": FRICTION}
    adam_like = {**sampler, "learning_rate": adaptive}
    slow = Range(adaptive.low / 100.0, adaptive.high / 100.0)

    def anneal_sgd(hyper: Mapping[str, Any], key: Any, _steps: int) -> Any:
        return baselines.anneal_sgd(hyper["learning_rate"], hyper["variance"], momentum_of(hyper), key=key)

    return {
        "SGD-M": Method({"learning_rate": heavy_ball, "friction": FRICTION, "end": END}, sgd_m),
        "RMSprop": Method({"learning_rate": adaptive, "forgetting": FORGETTING, "friction": FRICTION}, rmsprop),
        "Adam": Method({"learning_rate": adaptive, "friction": FRICTION, "forgetting": FORGETTING}, adam),
        "AnnealSGD": Method({"learning_rate": heavy_ball, "variance": variance, "friction": FRICTION}, anneal_sgd),
        "Santa": Method({**sampler, "learning_rate": slow}, santa),
        "SGHMC": Method(sampler, sghmc),
        "CTLD": Method(sampler, two_phases),
        "CTLD, preconditioned": Method(adam_like, preconditioned),
    }
