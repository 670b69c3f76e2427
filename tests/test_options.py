"""Every option with every other: each pair of choices of two arguments of `ctld` occurs in some short run."""

import inspect
import itertools
from typing import Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax._arrays import compat
from ctld_optax._dynamics.coupling import COUPLINGS
from tests.helpers import assert_finite, signature

# Of arguments that are no `Literal`; and how the sampler is run, as one more.
CHOICES = {
    "key": (0, jax.random.key(1), jax.random.PRNGKey(2)),
    "tempering": (ctld_optax.PolynomialTempering(), ctld_optax.GeometricTempering(strength=0.99), None),
    "bias": (ctld_optax.Metadynamics(), ctld_optax.AdaptiveBiasingForce(), None),
    "momentum_dtype": (None, jnp.float32, jnp.bfloat16),
    "gradient_noise": (None, 0.01, ctld_optax.RunningNoise(0.9)),
    "preconditioner": (
        None,
        ctld_optax.FixedMetric(2.0),
        ctld_optax.FixedMetric(jnp.eye(9) + 0.1),
        ctld_optax.SecondMoment(),
        ctld_optax.LayerScale(power=1.0, freeze_after=2),
    ),
    "learning_rate": (0.01, ctld_optax.PerLayer({"w": 0.02, "b": 0.01})),
    "temperature": (0.1, ctld_optax.PerLayer(lambda name: 0.1 if name == "w" else 0.0)),
    "prior": (
        None,
        ctld_optax.Prior(0.1, {"w": True, "b": False}),
        ctld_optax.Prior(lambda p: jnp.sum(p["b"] ** 4), cold=True),
    ),
}
# By number: variances of single parameters beside a matrix, or beside a metric that follows the run; more than one temperature
# where the value is divided by it.
REFUSED = [
    *({"gradient_noise": 1, "preconditioner": number} for number in (2, 3, 4)),
    *({"temperature": 1, "coupling": number} for number in (1, 2)),
]
RUNS = ("eager", "jit", "scan", "vmap", "x64", "bfloat16")
NUMBERS = {"momentum", "alpha_step_size", "alpha_momentum"}  # no options
ELSEWHERE = {"param_specs"}  # needs devices: tests/compat/test_devices.py


def literals(annotation):
    """The texts that an annotation allows."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(itertools.chain.from_iterable(literals(part) for part in get_args(annotation)))


def options():
    found = {"run": RUNS} | CHOICES
    for parameter in inspect.signature(ctld_optax.ctld).parameters.values():
        if parameter.name not in CHOICES and literals(parameter.annotation):
            found[parameter.name] = literals(parameter.annotation)
    return found


OPTIONS = options()


def covering():
    """Combinations of choices, by number, until each pair of choices has occurred: each covers as many new pairs as it can."""
    rng = np.random.default_rng(0)
    numbers = {name: range(len(choices)) for name, choices in OPTIONS.items()}
    columns = list(itertools.combinations(numbers, 2))
    open_pairs = {(a, i, b, j) for a, b in columns for i in numbers[a] for j in numbers[b] if {a: i, b: j} not in REFUSED}
    while open_pairs:
        a, i, b, j = min(open_pairs, key=str)
        drawn = [{name: int(rng.choice(choices)) for name, choices in numbers.items()} | {a: i, b: j} for _ in range(100)]
        for row in drawn:
            for refused in REFUSED:
                if row.items() >= refused.items():
                    row[next(name for name in refused if name not in (a, b))] = 0
        pairs_of = [{(a, row[a], b, row[b]) for a, b in columns} for row in drawn]
        best = max(range(len(drawn)), key=lambda k: len(pairs_of[k] & open_pairs))
        open_pairs -= pairs_of[best]
        yield drawn[best]


ROWS = list(covering())


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_not_crossed_is_refused(refused):
    settings = {name: OPTIONS[name][choice] for name, choice in refused.items()}
    settings = {"learning_rate": 0.01, "temperature": 0.1} | settings
    with pytest.raises(ValueError, match=r"gradient_noise must be RunningNoise\(\) beside|temperature must be one for all"):
        ctld_optax.ctld(key=0, **settings).init({"w": jnp.ones((2, 3)), "b": jnp.ones(3)})


def kinds(annotation):
    """The classes of ours that an annotation allows, and those that are kinds of them."""
    if inspect.isclass(annotation):
        ours = {annotation} if annotation.__module__.startswith("ctld_optax") else set()
        return ours.union(*map(kinds, annotation.__subclasses__())) if ours else ours
    return set().union(*map(kinds, get_args(annotation)))


def test_every_kind_of_an_option_is_crossed():
    for parameter in inspect.signature(ctld_optax.ctld).parameters.values():
        # A coupling goes by its name, too.
        named = COUPLINGS if parameter.name == "coupling" else {}
        crossed = {type(choice) for choice in (*OPTIONS.get(parameter.name, ()), *named.values())}
        assert kinds(parameter.annotation) <= crossed, parameter.name


def test_every_option_is_crossed():
    assert set(inspect.signature(ctld_optax.ctld).parameters) == OPTIONS.keys() - {"run"} | NUMBERS | ELSEWHERE
    assert {"noise", "coupling", "confinement", "initial_momentum", "integrator"} < OPTIONS.keys()


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_few_steps(number):
    settings = {name: OPTIONS[name][choice] for name, choice in ROWS[number].items()}
    how = settings.pop("run")
    with compat.enable_x64(how == "x64"):
        dtype = {"x64": jnp.float64, "bfloat16": jnp.bfloat16}.get(how, jnp.float32)
        # No gradient of 1: coarse noise of that size would keep a parameter where it is.
        params = {"w": jnp.linspace(-1.1, 0.9, 6, dtype=dtype).reshape(2, 3), "b": jnp.full(3, 0.7, dtype)}
        tx = ctld_optax.ctld(**settings)

        def step(carry, _):
            params, state = carry
            value = 0.5 * sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))
            updates, state = tx.update(params, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        start = (params, tx.init(params))
        before = signature(start)
        if how == "vmap":
            start = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
            (end, state), _ = jax.jit(jax.vmap(lambda carry: jax.lax.scan(step, carry, length=4)))(start)
        elif how == "scan":
            (end, state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=4))(start)
        else:
            made, (end, state) = step if how == "eager" else jax.jit(step), start
            for _ in range(4):
                (end, state), _ = made((end, state), None)
        if how != "vmap":
            assert signature((end, state)) == before
        assert_finite((end, state))
        assert np.all(np.asarray(state.skipped) == 0)
        for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(end), strict=True):
            moved = np.asarray(old) != np.asarray(new)
            assert np.any(moved) if how == "bfloat16" else np.all(moved)  # whose steps are coarse, and rounded at random
        if settings["momentum_dtype"] is not None:
            assert {m.dtype for m in jax.tree.leaves(state.momentum)} == {jnp.dtype(settings["momentum_dtype"])}
