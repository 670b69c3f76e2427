"""A record of a run of any length in a buffer of fixed size, kept inside the compiled step.

    recorder = Recorder({"loss": 0.0, "sampler": diagnostics.snapshot(opt_state)}, capacity=1024)
    log = recorder.init()

    def step(carry, batch):
        params, opt_state, log = carry
        ...
        log = recorder.record(log, {"loss": loss, "sampler": diagnostics.snapshot(opt_state)})
        return (params, opt_state, log), None

    for chunk in chunks:  # of some thousands of steps each
        carry, _ = jax.lax.scan(step, carry, chunk)
        writer.append(recorder.read(carry[-1]))  # one of ctld_optax.writers

`recorder.read(log).values["sampler"]` is a trajectory for `diagnostics` and `plotting`; `.step` says which steps it holds.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ctld_optax._checked import checked
from ctld_optax._validate import check_count

MOST = 2**16  # places are rotated in 32 bits, which holds two of them


class RecorderState(NamedTuple):
    """State of a :class:`Recorder`: plain arrays, the same shapes and dtypes from `init` to every `record`.

    Attributes:
      count: shape (), int32: number of steps recorded, those included that are no longer kept.
      rows: shape (capacity, words), int32: the bits of the scalars, one row a step.

    Example:
      >>> recorder = ctld_optax.recorder.Recorder({"loss": 0.0}, capacity=4)
      >>> isinstance(recorder.init(), ctld_optax.recorder.RecorderState)
      True
    """

    count: Any
    rows: jax.Array


class Recording(NamedTuple):
    """What :meth:`Recorder.read` gives: NumPy arrays with time on the last axis.

    Attributes:
      step: shape (kept,): equally spaced multiples of the stride; the first step of a run is 1.
      values: like what is recorded; each scalar an array of shape (kept,), or (replicas, ..., kept).

    Example:
      >>> recorder = ctld_optax.recorder.Recorder({"loss": 0.0}, capacity=4)
      >>> log = recorder.init()
      >>> for number in range(8):
      ...     log = recorder.record(log, {"loss": 0.5 * number})
      >>> recording = recorder.read(log)
      >>> recording.step, recording.values["loss"]
      (array([4, 8]), array([1.5, 3.5], dtype=float32))
    """

    step: np.ndarray
    values: Any


class Recorder:
    r"""Keeps every s-th row of the scalars it is given, s the smallest power of two with which all fit in the buffer.

    A row is what one step gave, not a mean over steps, so that a histogram of alpha stays what it is. When the buffer is full,
    s doubles, and the rows at odd multiples of the old s make room for those to come. No row is moved for that: with
    capacity :math:`2^c` and :math:`s = 2^k`, the row of step j s stands at

    .. math:: \text{place}_k(j) = \text{the } c \text{ bits of } j \text{, rotated left by } k,

    so that a row that is kept stays where it is (:math:`\text{place}_{k+1}(j) = \text{place}_k(2j)`) and a new one takes the
    place of one that is not (:math:`\text{place}_{k+1}(2^{c-1} + i) = \text{place}_k(2i + 1)`). What is not to be kept goes
    to place 0, which belongs to no step. All scalars of a step are the words of one row: a step costs one small write, in
    place and with no branch, and one array more to hand in and out of the compiled program.

    Args:
      like: what will be recorded: a pytree of real scalars (numbers, arrays of shape () or ShapeDtypeStructs). Only its
        structure and dtypes matter. What is narrower than 32 bits is kept in 32.
      capacity: rows of the buffer, a power of two in [4, 65536]. Of a long run between half and all of them are in use.

    Raises:
      ValueError, TypeError: for any other capacity, for `like` without scalars, or with something that is none.

    Example:
      >>> recorder = ctld_optax.recorder.Recorder({"loss": 0.0}, capacity=4)
      >>> log = recorder.init()
      >>> for number in range(8):
      ...     log = recorder.record(log, {"loss": 0.5 * number})
      >>> recording = recorder.read(log)
      >>> recording.step  # the buffer was full twice: every fourth row
      array([4, 8])
    """

    @checked()
    def __init__(self, like: Any, capacity: int = 1024) -> None:
        check_count("capacity", capacity, 4)
        if capacity > MOST or capacity & (capacity - 1):
            raise ValueError(f"capacity must be a power of two up to {MOST}, got {capacity}. Write 1024, for example.")
        self.capacity = capacity
        leaves, self._structure = jax.tree.flatten(like)
        if not leaves:
            raise ValueError(f"like must hold at least one scalar to be recorded, got none in {like!r}.")
        _check_scalars("like", like)
        self._dtypes = [_kept_dtype(leaf) for leaf in leaves]
        self._bits = capacity.bit_length() - 1

    def init(self) -> RecorderState:
        """An empty record."""
        words = sum(dtype.itemsize // 4 for dtype in self._dtypes)
        return RecorderState(jnp.zeros((), jnp.int32), jnp.zeros((self.capacity, words), jnp.int32))

    @checked(state="Write state = recorder.init().")
    def record(self, state: RecorderState, values: Any) -> RecorderState:
        """Takes in the scalars of one step.

        Raises:
          ValueError: if `values` have another structure than `like` had, or are no scalars.
        """
        leaves, structure = jax.tree.flatten(values)
        if structure != self._structure:
            raise ValueError(
                f"values, what is recorded, must be like what the recorder was made for, {self._structure}; got {structure}."
            )
        _check_scalars("values", values)
        count = optax.safe_increment(state.count)
        level = self._level(32 - jax.lax.clz(count))
        is_kept = count & ((1 << level) - 1) == 0
        place = jnp.where(is_kept, self._place(count >> level, level), 0)
        words = [
            jax.lax.bitcast_convert_type(jnp.asarray(leaf).astype(dtype), jnp.int32).reshape(-1)
            for leaf, dtype in zip(leaves, self._dtypes, strict=True)
        ]
        return RecorderState(count, jax.lax.dynamic_update_index_in_dim(state.rows, jnp.concatenate(words), place, 0))

    @checked()
    def read(self, state: RecorderState) -> Recording:
        """The rows that are kept, in order, on the host.

        Raises:
          ValueError: for replicas that have not made the same number of steps; read those one by one.
        """
        counts = np.unique(np.asarray(state.count))
        if counts.size != 1:
            raise ValueError(f"the replicas have recorded {counts.min()} to {counts.max()} steps: read them one by one.")
        count = int(counts[0])
        level = int(self._level(count.bit_length()))
        kept = np.arange(1, (count >> level) + 1)
        rows = np.asarray(state.rows)[..., self._place(kept, level), :]
        ends = np.cumsum([dtype.itemsize // 4 for dtype in self._dtypes])
        columns = np.split(rows, ends[:-1], axis=-1)
        leaves = [np.ascontiguousarray(words).view(dtype)[..., 0] for words, dtype in zip(columns, self._dtypes, strict=True)]
        return Recording(kept << level, jax.tree.unflatten(self._structure, leaves))

    def _level(self, bit_length: Any) -> Any:
        """The k of the stride 2^k from the number of bits of the step: the smallest with step >> k < capacity."""
        excess = bit_length - self._bits
        return (excess + abs(excess)) // 2  # 0 if it is negative, of a traced integer and a Python one

    def _place(self, j: Any, level: Any) -> Any:
        turn = level % self._bits
        return (j << turn | j >> (self._bits - turn)) & (self.capacity - 1)


def _check_scalars(name: str, values: Any) -> None:
    for path, value in jax.tree_util.tree_leaves_with_path(values):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if not isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | float | int):
            raise TypeError(f"a recorder takes real numbers, {where} is {value!r:.60}, of type {type(value).__name__}.")
        if np.shape(value) != ():
            raise ValueError(f"a recorder takes scalars, {where} has shape {np.shape(value)}. Record its mean, for example.")


def _kept_dtype(value: Any) -> np.dtype[Any]:
    """That of `value`, but at least 32 bits wide."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(value))
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool):
        raise TypeError(f"a recorder takes real numbers, got dtype {dtype}.")
    narrow = jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32
    return np.dtype(narrow if dtype.itemsize < 4 else dtype)
