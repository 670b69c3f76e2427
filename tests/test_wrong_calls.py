"""Wrong calls of everything public, made from the signatures: each is answered by us, and the answer names the argument.

A known-good call of each function, and then one argument at a time replaced by what its annotation does not allow, or two that
have changed places. A name means one thing throughout the library, so that one table of good arguments serves all.
"""

import collections.abc
import functools
import inspect
import itertools
import pathlib
import re
import traceback
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest
from matplotlib import pyplot as plt

import ctld_optax
from ctld_optax import diagnostics, plotting
from ctld_optax._arrays import compat
from ctld_optax.posterior import Reservoir, RunningMean
from ctld_optax.recorder import Recorder
from tests.helpers import public_objects

mpl.use("Agg")
ROOT = pathlib.Path(ctld_optax.__file__).parent
PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
SGD = optax.sgd(0.1, momentum=0.9)
OPTAX = pathlib.Path(optax.__file__).parent


def is_result(found):
    """Whether a class is what the library gives back, and nobody calls: states, reports, errors."""
    results = (tuple, Exception, diagnostics.Report, diagnostics.Finding, diagnostics.TemperatureRange, plotting.Explorer)
    return isinstance(found, type) and issubclass(found, results)


def loss_fn(params):
    return 0.5 * sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))


def ones():
    return jnp.ones(2)


def short_run(sampler):
    def step(carry, _):
        params, state = carry
        updates, state = sampler.update(params, state, params, value=loss_fn(params))
        return (optax.apply_updates(params, updates), state), diagnostics.snapshot(state)

    (_, state), trajectory = jax.lax.scan(step, (PARAMS, sampler.init(PARAMS)), length=64)
    return state, trajectory


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_arguments(tmp_path_factory.mktemp("calls"))


def good_arguments(folder):
    """A good argument by its name; `function.name` where one function needs another."""
    sampler = ctld_optax.ctld(0.1, 0.1, key=0)
    state, trajectory = short_run(sampler)
    recorder, reservoir = Recorder({"loss": 0.0}, 4), Reservoir(2)
    log = recorder.record(recorder.init(), {"loss": 1.0})
    ctld_optax.checkpoint.save(folder / "saved", 1, PARAMS)
    return {
        "learning_rate": 0.1, "temperature": 0.1, "momentum": 0.9, "variance": 1.0, "key": 0, "exploration_steps": 2,
        "inner": sampler, "every_k": 2, "gradient": 0.1, "capacity": 4, "like": {"loss": 0.0}, "params": PARAMS,
        "updates": PARAMS, "value": 1.0, "state": state, "trajectory": trajectory, "alpha": trajectory.alpha,
        "r_alpha": trajectory.r_alpha, "beta": trajectory.beta, "kinetic_energy": trajectory.kinetic_energy, "num_params": 9,
        "bias": ctld_optax.Metadynamics(), "switch_step": 3, "samples": np.ones((5, 2)), "step": 1,
        "arrays": ctld_optax.checkpoint.state_to_arrays(PARAMS), "path": folder / "record.csv", "folder": folder / "record",
        "directory": folder / "written", "is_open": True, "recording": recorder.read(log), "values": {"loss": 1.0},
        "function": lambda params: params["b"], "diagnostics.temperature.trajectory": trajectory,
        "report.value": trajectory.beta, "report.state": state, "temperature_trajectory.step": None,
        "dashboard.step": None, "dashboard.value": trajectory.beta, "dashboard.state": state,
        "bias_filling.state": jax.tree.map(lambda leaf: leaf[None], state._replace(key=jax.random.key_data(state.key))),
        "knobs": {"a": [1]},
        "trajectories": jax.tree.map(lambda row: row[None], trajectory), "explorer.step": None,
        "kinetic_temperature.step": None, "log_weights.bias": None, "log_weights_of_step.bias": None,
        "log_weights_of_step.value": trajectory.beta, "load.path": folder / "saved/step_00000001.npz", "load.like": PARAMS,
        "state_from_arrays.like": PARAMS, "restore_latest.like": PARAMS, "restore_latest.directory": folder / "saved",
        "save.state": PARAMS, "state_to_arrays.state": PARAMS,
        "predict.state": reservoir.update(reservoir.init(PARAMS, key=0), PARAMS, True),
        "report.samples": np.ones((64, 3)), "sampler": sampler, "optimizer": SGD, "optimizer_state": SGD.init(PARAMS),
        "sampler_state": state, "sampling_steps": 2,
        "low": 1e-3, "high": 1e-1, "steps": 5, "losses": np.ones(64), "temperatures": np.geomspace(1e-3, 1e-1, 64),
        "rule": 0.1, "weight_decay": 0.1, "mask": {"w": True, "b": False},
        "mass": 1.0, "loss_fn": loss_fn, "initial": PARAMS, "sample.num_chains": 1, "sample.num_warmup": 250,
        "sample.num_samples": 2, "sample.bias": ctld_optax.AdaptiveBiasingForce(), "sample.momentum": 0.8,
        "sample.learning_rate": 0.1,
        "Reservoir.update.state": reservoir.init(PARAMS, key=0),
        "RunningMean.function": ones, "RunningMean.update.state": RunningMean(ones).init(), "RunningMean.update.weight": True,
        "Recorder.record.state": log, "Recorder.read.state": log,
    }  # fmt: skip


def good_argument(good, name, parameter):
    """The most special entry: `function.parameter`, `Class.method.parameter`, `module.parameter` or `parameter`; or none."""
    parts = [*name.removeprefix("ctld_optax.").split("."), parameter]
    for entry in (*(".".join(parts[start:]) for start in range(len(parts) - 1)), f"{parts[0]}.{parameter}", parameter):
        if entry in good:
            return good[entry]
    return inspect.Parameter.empty


# What no argument is, unless its annotation says so.
POOL = {
    "text": "metadynamics", "a number": 0.85, "NaN": float("nan"), "infinity": float("inf"), "negative": -1.0, "minus one": -1,
    "True": True, "None": None, "a list": [0.1], "a dict": {"x": 0.1}, "a class": ctld_optax.Metadynamics,
    "an object": object(),
    "a bias": ctld_optax.Metadynamics(), "a tempering": ctld_optax.PolynomialTempering(), "a function": lambda: None,
    "complex": 1j, "an array": jnp.ones(2), "an integer array": jnp.int32(3), "a key": jax.random.key(0),
}  # fmt: skip
NUMBERS = {"a number", "NaN", "infinity", "negative", "minus one", "an array", "an integer array"}
RAGGED, HOLE = [[1.0], [2.0, 3.0]], {"w": jnp.ones((2, 3)), "b": jax.nn.relu}
TEXTS = {"w": "text", "b": jnp.ones(3)}
BY_KIND = {
    type(None): {"None"}, str: {"text"}, list: {"a list"}, collections.abc.Mapping: {"a dict"},
    collections.abc.Callable: {"a function"}, jax.Array: {"an array", "an integer array", "a key"},
}  # fmt: skip
# Arguments that an annotation cannot tell apart, `Any`: pytrees, and what NumPy makes an array of.
ARRAYS = ("text", RAGGED, None, object(), ctld_optax.Metadynamics, {"x": 0.1}, 1j)
TREES = {
    "params": (HOLE, TEXTS, {"w": 1.0}, "text", jax.nn.relu, ctld_optax.Metadynamics()),
    "updates": (HOLE, TEXTS, {"w": jnp.ones((2, 3))}, [jnp.ones(3)], "text", None, jnp.ones(3)),
    "update.value": ("text", [1.0], (1.0, {}), {"loss": 1.0}, jnp.ones(2), 1j, 3, True, ctld_optax.Metadynamics, object()),
    "param_specs": ("data", 0.85, ctld_optax.Metadynamics, {"w": "data"}, object()),
    "gradient_noise": ("text", ctld_optax.RunningNoise, -1.0, float("nan"), object(), {"w": "text"}, True),
    "KnownNoise.gradient": ("text", None, -1.0, float("nan"), float("inf"), ctld_optax.KnownNoise, {"w": "text"}),
    "KnownNoise.value": ("text", None, -1.0, float("nan"), [0.1], {"w": 0.1}, jnp.ones(2)),
    "RunningMean.update.weight": ("text", None, [0.1], jnp.ones(2), 1j, -1.0, float("nan"), float("inf"), object()),
    "sample.initial": (None, "text", {}, {"w": 1j}, {"w": jnp.arange(3)}, HOLE, TEXTS, object(), ctld_optax.Metadynamics()),
    "sample.data": ("text", TEXTS, HOLE, {"w": object()}, object()),
    "settings": (object(), {"a": object()}, jax.random.key(0), optax.sgd(0.1)),
    "save.state": ({"x": "text"}, {"x": object()}, "text", jax.nn.relu),
    "state_to_arrays.state": ({"x": "text"}, {"x": object()}, "text", jax.nn.relu),
    "snapshot.state": (None, 0.85, "text", PARAMS, ctld_optax.Metadynamics),
    "ctld_state.state": (None, 0.85, "text", PARAMS, ctld_optax.Metadynamics),
    "bias_potential.state": (None, 0.85, "text", PARAMS, ctld_optax.Metadynamics),
    "bias_filling.state": (None, 0.85, "text", PARAMS, ctld_optax.Metadynamics),
    "dashboard.state": (0.85, "text", PARAMS, ctld_optax.Metadynamics),
    "dashboard.value": (*(wrong for wrong in ARRAYS if wrong is not None), 0.85, jnp.ones(2)),
    "Recorder.like": ("text", {"a": "text"}, None, {"a": jnp.ones(2)}, {"a": 1j}, object(), {}),
    "Recorder.record.values": (None, {"loss": "text"}, {"loss": jnp.ones(2)}, {"other": 1.0}, 0.85, {"loss": object()}),
    "diagnostics.alpha": (*ARRAYS, float("nan"), []),
    "plotting.alpha": ARRAYS,
    "alpha": ARRAYS, "r_alpha": ARRAYS, "beta": ARRAYS, "samples": ARRAYS,
    "step": (*(wrong for wrong in ARRAYS if wrong is not None), 0.85, jnp.ones(2)),
    "losses": (*ARRAYS, [], np.ones((2, 2))), "temperatures": (*ARRAYS, -1.0, np.zeros(64), np.geomspace(1e-1, 1e-3, 64)),
    "kinetic_energy": ARRAYS, "kinetic_temperature_target.temperature": ARRAYS,
    "report.trajectory": (None, 0.85, "text", PARAMS, object(), ctld_optax, diagnostics.Snapshot, ctld_optax.Metadynamics),
    "report.samples": ("text", 0.85, {}, TEXTS, PARAMS, jnp.ones(2), object(), ctld_optax.Metadynamics),
    "report.state": (0.85, "text", PARAMS, ctld_optax.Metadynamics),
    "report.grads": (TEXTS, {"w": object()}, "text", ctld_optax.Metadynamics),
    "FixedMetric.mass": (None, "text", TEXTS, {}, True, 1j, -1.0, float("nan"), object(), ctld_optax.FixedMetric),
    "PerLayer.rule": (None, "text", TEXTS, {}, True, 1j, object(), ctld_optax.PerLayer),
    "Prior.mask": ("text", 0.85, TEXTS, object(), {"w": 1.0}),
    "like": (HOLE, TEXTS, {"w": jnp.ones((2, 3))}, "text", None, jnp.ones(3), object()),
    "optimizer_state": ("text", TEXTS, object(), jax.nn.relu, ctld_optax.Metadynamics),
    "sampler_state": ("text", TEXTS, object(), None, 0.85, PARAMS, jax.nn.relu, ctld_optax.Metadynamics),
    "report.value": (*(wrong for wrong in ARRAYS if wrong is not None), 0.85, jnp.ones(2)),
}  # fmt: skip


def targets(good):
    """What is called, by its name, and a good call of it: functions, classes, their methods, both halves of transformations."""
    for name, found in public_objects():
        if is_result(found):
            continue
        arguments = known_good(good, name, found)
        yield name, found, arguments
        if isinstance(found, type) and not found.__module__.split(".")[-2].startswith("_"):
            instance = found(**arguments)
            for method, bound in inspect.getmembers(instance, inspect.ismethod):
                if not method.startswith("_"):
                    yield f"{name}.{method}", bound, known_good(good, f"{name}.{method}", bound)
            if hasattr(instance, "close"):
                instance.close()
        made = inspect.signature(found).return_annotation
        if isinstance(made, type) and issubclass(made, optax.GradientTransformation):
            # Onto heavy-ball SGD a switch is another program than onto others.
            others = [arguments | {"optimizer": optax.adam(0.1)}] if "optimizer" in arguments else []
            for transformation in (found(**each) for each in [arguments, *others]):
                good[f"{name.split('.')[-1]}.update.state"] = transformation.init(PARAMS)
                for half in (transformation.init, transformation.update):
                    half_name = f"{name}.{'init' if half is transformation.init else 'update'}"
                    yield half_name, half, known_good(good, half_name, half)


def known_good(good, name, function):
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        argument = good_argument(good, name, parameter.name)
        if argument is inspect.Parameter.empty:
            assert parameter.default is not parameter.empty or parameter.kind in {2, 4}, f"no good {parameter.name} of {name}"
        elif parameter.kind not in {2, 4}:
            arguments[parameter.name] = argument
    return arguments


def arms(annotation):
    """The members of a union, or the annotation itself."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return [annotation]
    return [arm for part in typing.get_args(annotation) for arm in arms(part)]


def allowed(annotation, name, is_data):
    """Labels of what in `POOL` the annotation of an argument allows, or a test of its own looks at."""
    kinds = arms(annotation)
    if np.dtype in kinds:
        return {"None"}  # a dtype may be named by a text or a class, but by none of these
    labels = set()
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        labels |= BY_KIND.get(origin, set())
        if inspect.isclass(origin) and origin.__module__.startswith(("ctld_optax", "optax")):
            labels |= {label for label, wrong in POOL.items() if isinstance(wrong, origin)}
    if float in kinds:
        labels |= NUMBERS if is_data else {"a number", "an integer array"}
        labels -= {"a key"} | (set() if is_data else {"an array"})
        labels |= {"negative", "minus one"} if name.endswith("value") else set()
    elif bool in kinds:
        labels |= {"True"}
    elif int in kinds and jax.Array in kinds:
        labels |= {"minus one"}
    return labels


def wrong_arguments(name, function):
    """(parameter, label, wrong argument) for each parameter."""
    is_data = function.__module__ == "ctld_optax.posterior"
    for parameter in inspect.signature(function).parameters.values():
        annotation = parameter.annotation
        if parameter.kind in {2, 4} or parameter.name == "extra_args":
            continue
        of_its_own = good_argument(TREES, name, parameter.name)
        assert of_its_own is not parameter.empty or annotation is not Any, f"{name}: what is wrong for {parameter.name}?"
        if of_its_own is not parameter.empty:
            for number, wrong in enumerate(of_its_own):
                yield parameter.name, str(number), wrong
        elif annotation is not Any:
            data = is_data and bool in arms(annotation) and float in arms(annotation)
            for label in POOL.keys() - allowed(annotation, parameter.name, data):
                yield parameter.name, label, POOL[label]


def swapped(arguments, function):
    """Neighbours in another's place, where one of them must be an instance of a class of ours and the other is none."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name in arguments]
    for first, second in itertools.pairwise(parameters):
        pair = {first.name: arguments[second.name], second.name: arguments[first.name]}
        for parameter in (first, second):
            kinds = arms(parameter.annotation)
            ours = [kind for kind in kinds if inspect.isclass(kind) and kind.__module__.startswith("ctld_")]
            if ours and float not in kinds and not isinstance(pair[parameter.name], tuple(ours)):
                yield pair
                break


def fault(call, name):
    """What is wrong with the answer to a wrong call, or None. `name` is that of the argument, or of two, "one|other"."""
    try:
        call()
    except Exception as error:  # noqa: BLE001
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error)
        if not isinstance(error, TypeError | ValueError):
            return f"{type(error).__name__}: {said[:100]}"
        if not pathlib.Path(frame.filename).is_relative_to(ROOT):
            return f"raised in {frame.filename}:{frame.lineno}: {said[:100]}"
        return None if re.search(name.replace("params", "param"), said) else f"does not name it: {said[:150]}"
    return "accepted"


@pytest.mark.filterwarnings("ignore:Animation was deleted")
def test_every_wrong_call_is_answered(good):
    faults, count = [], 0
    for name, function, arguments in targets(good):
        wrong = [(parameter, label, {parameter: value}) for parameter, label, value in wrong_arguments(name, function)]
        wrong += [("|".join(pair), "in another's place", pair) for pair in swapped(arguments, function)]
        count += len(wrong)
        for parameter, label, changes in wrong:
            found = fault(functools.partial(function, **(arguments | changes)), parameter)
            if found:
                faults.append(f"{name}({parameter}={label}): {found}")
    print(f"{count} wrong calls")
    assert not faults, "\n".join(faults)
    assert count >= 200


@pytest.mark.filterwarnings("ignore:Animation was deleted")
@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_every_known_good_call_is_accepted_under_strict_promotion_too(x64, tmp_path):
    # Or the wrong ones might be refused for another reason.
    faults = []
    plt.close("all")
    with compat.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        for name, function, arguments in targets(good_arguments(tmp_path)):
            try:
                function(**arguments)
            except Exception as error:  # noqa: BLE001
                # optax.adam itself breaks it.
                files = [pathlib.Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
                if name != "ctld_optax.phase_switch.update" or not any(OPTAX in file.parents for file in files):
                    faults.append(f"{name}: {type(error).__name__}: {str(error)[:150]}")
    assert not faults, "\n".join(faults)
