"""The training loop of all experiments: many trials side by side under one `vmap`, compiled once."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ctld_optax
from benchmarks.harness.sweep import Method, Point, Trainer
from ctld_optax import diagnostics


class Task(NamedTuple):
    """What is trained. `data` is shared by all trials, `frozen` is a trial's own; neither is a constant of the program.

    params = init(key); memory = begin(data), what the loss carries from one step to the next, such as a recurrent state;
    value, memory = loss(params, memory, data, frozen, step, key); train, validation, test = evaluate(params, data, frozen).
    """

    init: Callable[[Any], Any]
    begin: Callable[[Any], Any]
    loss: Callable[..., Any]
    evaluate: Callable[..., Any]
    data: Any


class Fit:
    """Trains replicas of a task with one method. Every call runs the same compiled program.

    The trials share nothing: each has its own weights, minibatches, dropout and noise, all from its seed.

    Args:
      task: what is trained.
      method: how.
      steps: number of steps, a multiple of `points`.
      points: measurements on the way, equally spaced.
      record: (loss, optimizer's state) -> what `follow` keeps of each single step.
      compile_start: whether the first weights are drawn by a compiled program, too, which rounds their last digit otherwise.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        *,
        steps: int,
        points: int,
        record: Callable[[jax.Array, Any], Any] = lambda _loss, _state: None,
        compile_start: bool = True,
    ) -> None:
        if steps % points:
            raise ValueError(f"steps must be a multiple of the {points} points of a curve, got {steps}.")
        self.steps, self.chunk, self.data = steps, steps // points, task.data

        def transformation(hyper: Any, seed: jax.Array) -> optax.GradientTransformationExtraArgs:
            key = jax.random.fold_in(jax.random.key(seed), 1)
            return optax.with_extra_args_support(method.make(hyper, key, steps))

        def start(hyper: Any, seed: jax.Array, data: Any) -> Any:
            params = task.init(jax.random.fold_in(jax.random.key(seed), 0))
            return params, transformation(hyper, seed).init(params), task.begin(data)

        def advance(carry: Any, hyper: Any, seed: jax.Array, frozen: Any, done: jax.Array, data: Any) -> Any:
            tx = transformation(hyper, seed)
            stream = jax.random.fold_in(jax.random.key(seed), 2)

            def step(carry: Any, index: jax.Array) -> tuple[Any, Any]:
                params, opt_state, memory = carry
                loss = jax.value_and_grad(task.loss, has_aux=True)
                (value, memory), grads = loss(params, memory, data, frozen, index, jax.random.fold_in(stream, index))
                updates, opt_state = tx.update(grads, opt_state, params, value=value)
                return (optax.apply_updates(params, updates), opt_state, memory), record(value, opt_state)

            carry, recorded = jax.lax.scan(step, carry, done + jnp.arange(self.chunk))
            measured = (*task.evaluate(carry[0], data, frozen), noise_temperature(carry[1], done + self.chunk))
            return carry, measured, recorded

        self.start = jax.vmap(start, (0, 0, None))
        if compile_start:
            self.start = jax.jit(self.start)
        self.advance = jax.jit(jax.vmap(advance, (0, 0, 0, 0, None, None)))

    def follow(self, hyper: Mapping[str, jax.Array], seeds: jax.Array, frozen: Any = ()) -> Iterator[tuple[Any, Point, Any]]:
        """Point by point: parameters so far, what is measured there, and what was recorded since the last point.

        Parameters and measurements have a leading axis (trials,), as `frozen` has; records have (trials, steps).
        """
        hyper = dict(hyper)
        carry = self.start(hyper, seeds, self.data)
        for done in range(0, self.steps, self.chunk):
            carry, measured, recorded = self.advance(carry, hyper, seeds, frozen, jnp.int32(done), self.data)
            yield carry[0], Point(done + self.chunk, *(np.asarray(value) for value in measured)), recorded

    def __call__(self, hyper: Mapping[str, jax.Array], seeds: jax.Array, frozen: Any = ()) -> tuple[Any, list[Point]]:
        """Trained parameters, and the curve."""
        params: Any = None
        curve: list[Point] = []
        for params, point, _ in self.follow(hyper, seeds, frozen):  # noqa: B007 - the last ones are returned
            curve.append(point)
        return params, curve


def curves_of(task: Task, *, steps: int, points: int) -> Callable[[Method], Trainer]:
    """`Experiment.prepare` of an experiment that is one fit a trial."""

    def prepare(method: Method) -> Trainer:
        fit = Fit(task, method, steps=steps, points=points)

        def train(hyper: Mapping[str, jax.Array], seeds: jax.Array) -> list[Point]:
            return fit(hyper, seeds)[1]

        return train

    return prepare


def noise_temperature(opt_state: Any, steps_done: Any) -> jax.Array:
    """1/g(alpha), 0 from the hand-over on; NaN for a method that is no sampler with a hand-over."""
    if not isinstance(opt_state, ctld_optax.PhaseSwitchState):
        return jnp.full((), jnp.nan)
    sampler = diagnostics.snapshot(opt_state)
    return jnp.where(sampler.count < steps_done, 0.0, 1.0 / sampler.beta)
