"""Checkpoints: a train state as plain NumPy arrays, files that are whole or not there, and the newest that is sound.

Orbax, pickle and JAX's own tools keep a state as it is, typed key included, and need nothing from here. msgpack and npz know
no typed keys (and npz no bfloat16); for these, :func:`state_to_arrays` and :func:`state_from_arrays`. :func:`save` and
:func:`restore_latest` write npz files that way, for programs that can be killed at any moment.

A restored run continues bit for bit, under the sampler that it was saved under: one with another bias or other walls reads
nonsense out of the same arrays. `settings=` writes down what the sampler was, and compares it at restore.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ctld_optax._checked import checked
from ctld_optax._dynamics.preconditioner import Still
from ctld_optax._validate import SCHEDULE_STEPS

# The rest without an underscore is shared with the writers.
__all__ = ["CheckpointError", "load", "restore_latest", "save", "state_from_arrays", "state_to_arrays"]

FORMAT = "ctld_optax.state"
VERSION = 1
HEADER = "__header__"


class CheckpointError(ValueError):
    """A saved state that cannot be trusted: damaged, cut off, of another program, or of another state.

    Example:
      >>> arrays = ctld_optax.checkpoint.state_to_arrays({"w": jnp.ones(3)})
      >>> try:
      ...     ctld_optax.checkpoint.state_from_arrays(arrays, like={"v": jnp.ones(3)})
      ... except ctld_optax.checkpoint.CheckpointError as error:
      ...     print(str(error)[:43])
      the saved state is that of another program
    """


@checked()
def state_to_arrays(state: Any, *, settings: Any = None) -> dict[str, np.ndarray]:
    """Any pytree of arrays (params, optimizer state, typed keys, step counts) as a flat dict of NumPy arrays.

    Names are key paths, such as `"opt_state.momentum['w']"`. A typed key becomes its key data, and a dtype that NumPy does
    not have (bfloat16) its bits; the header, a JSON text held as bytes under `"__header__"`, says so, with shape, dtype
    and SHA-256 of each array, the format's version, and the SHA-256 of itself. Shards that this process cannot see must be
    gathered first.

    Args:
      state: the pytree.
      settings: what the state belongs to, to be compared when it is read: the sampler that :func:`ctld_optax.ctld` gave, or a
        dict of names to samplers, their parts (`PolynomialTempering()`), schedules, numbers, texts, None, and lists and dicts
        of them. Its key and its `param_specs` do not count: a run may go on with any.

    Raises:
      TypeError: for a leaf that is no array and no number, or settings of another kind.
      ValueError: for two leaves with the same name.

    Example:
      >>> sorted(ctld_optax.checkpoint.state_to_arrays({"w": jnp.ones(3), "step": 4}))
      ["['step']", "['w']", '__header__']
    """
    arrays: dict[str, np.ndarray] = {}
    leaves: dict[str, Any] = {}
    for name, leaf in _named_leaves(state):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            raise TypeError(f"state, at {name}, must be an array or a number to be saved, got {type(leaf).__name__}.")
        if name in leaves:
            raise ValueError(f"two leaves have the name {name}, and one of them would be lost: give their node other keys.")
        description = _describe(leaf)
        data: Any = leaf
        array = np.asarray(jax.random.key_data(data) if "key" in description else leaf)
        # Little-endian bits whatever the machine, so that a file can be read elsewhere.
        array = array.view(_bits(array.dtype)).reshape(array.shape) if _is_foreign(array.dtype) else array
        arrays[name] = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).reshape(array.shape)
        leaves[name] = description | {"sha256": _digest(arrays[name])}
    content = {"format": FORMAT, "version": VERSION, "leaves": leaves}
    if settings is not None:
        content["settings"] = _flat(settings)
    body = json.dumps(content, sort_keys=True)
    header = json.dumps({"body": body, "sha256": hashlib.sha256(body.encode()).hexdigest()})
    return {HEADER: np.frombuffer(header.encode(), np.uint8), **arrays}


@checked()
def state_from_arrays(arrays: Mapping[str, Any], like: Any, *, settings: Any = None) -> Any:
    """The inverse of :func:`state_to_arrays`.

    Args:
      arrays: what :func:`state_to_arrays` gave, after a round trip through a file.
      like: a state of the same structure, shapes and dtypes: a fresh one, or `jax.eval_shape(tx.init, params)`. Restored
        arrays are put where its own are (its leaves' `sharding`).
      settings: as in :func:`state_to_arrays`; must agree with those that were saved. None compares nothing, for a run that is
        to go on under other settings. A setting that only one of the two has is not compared.

    Raises:
      CheckpointError: if anything differs from what was saved (a missing, foreign, cut, changed or swapped array, another
        format or version, another setting) or from `like` (names, shapes, dtypes, kind of key). It says what, and how.

    Warns:
      RuntimeWarning: if settings were saved and none are given, or the other way round, as in files of earlier releases.

    Example:
      >>> arrays = ctld_optax.checkpoint.state_to_arrays({"w": jnp.ones(3)})
      >>> ctld_optax.checkpoint.state_from_arrays(arrays, like={"w": jnp.zeros(3)})
      {'w': Array([1., 1., 1.], dtype=float32)}
    """
    described, saved_settings = _read_header(arrays)
    _compare_settings(saved_settings, settings)
    wanted = dict(_named_leaves(like))
    missing, foreign = sorted(wanted.keys() - described.keys()), sorted(described.keys() - wanted.keys())
    if missing or foreign:
        raise CheckpointError(
            f"the saved state is that of another program than `like`: it lacks {missing[:5]} and has {foreign[:5]} besides. "
            "Build the optimizer and the parameters as they were when it was saved."
        )
    names = arrays.keys() - {HEADER}
    if names != described.keys():
        raise CheckpointError(f"the header and the arrays disagree about {sorted(names ^ described.keys())[:5]}.")
    restored = []
    for name, leaf in _named_leaves(like):
        description = dict(described[name])
        saved_digest = description.pop("sha256", None)
        array = np.asarray(arrays[name])
        if saved_digest != _digest(array):
            raise CheckpointError(f"{name} is damaged, or another array stands under its name: its checksum is wrong.")
        expected = _describe(leaf)
        if description != expected:
            raise CheckpointError(
                f"{name} was saved as {description}, and in `like`, what the program now has, it is {expected}."
            )
        restored.append(_restore(array, description, leaf))
    return jax.tree.unflatten(jax.tree.structure(like), restored)


@checked()
def save(directory: str | os.PathLike[str], step: int, state: Any, *, keep: int = 3, settings: Any = None) -> Path:
    """Writes `directory/step_00000042.npz` for step 42; of the sound ones of this run up to there, the `keep` newest stay.

    The file is complete under that name or is not there: it is written under another name, flushed to disk, and renamed.
    A kill, a power cut or a full disk at any moment leaves the older ones as they were. Two programs may save in one folder.

    Only older checkpoints of this run are ever deleted, those with the same names, shapes and dtypes and no other settings;
    `keep` - 1 of them are read for it. What is damaged, of another run or of a later step counts for nothing and stays. If
    anything but a checkpoint of this run stands in the place of the new one, it is renamed, with a `RuntimeWarning`.

    Args:
      directory: is made.
      step: >= 0.
      state: as in :func:`state_to_arrays`.
      keep: >= 1.
      settings: as in :func:`state_to_arrays`.

    Raises:
      ValueError: for a negative step, or keep < 1; or as :func:`state_to_arrays`. TypeError: as :func:`state_to_arrays`.
      OSError: if it cannot be written.

    Example:
      >>> import tempfile
      >>> tx = ctld_optax.ctld(0.01, 1e-3, key=0)
      >>> state = {"params": jnp.ones(3), "opt_state": tx.init(jnp.ones(3))}
      >>> path = ctld_optax.checkpoint.save(tempfile.mkdtemp(), 1_000, state, settings=tx)
      >>> path.name
      'step_00001000.npz'
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be >= 0 and keep >= 1, got step={step}, keep={keep}.")
    directory = Path(directory)
    arrays = state_to_arrays(state, settings=settings)
    path = directory / f"step_{step:08d}.npz"
    with explained(path, "The checkpoints that were there are as they were. Make room, or save to another folder."):
        make_folder(directory)
        _write_whole(path, arrays)
        _flush_directory(directory)
    _delete_leftovers(directory)
    _delete_old(directory, step, arrays, keep)
    return path


@checked()
def load(path: str | os.PathLike[str], like: Any, *, settings: Any = None) -> Any:
    """The state in one file of :func:`save`.

    Raises:
      CheckpointError: if it is no whole npz file, or as :func:`state_from_arrays`. FileNotFoundError: if it is not there.

    Example:
      >>> import tempfile
      >>> path = ctld_optax.checkpoint.save(tempfile.mkdtemp(), 7, {"w": jnp.ones(3)})
      >>> ctld_optax.checkpoint.load(path, like={"w": jnp.zeros(3)})
      {'w': Array([1., 1., 1.], dtype=float32)}
    """
    arrays = _read_arrays(Path(path))
    try:
        return state_from_arrays(arrays, like, settings=settings)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


@checked()
def restore_latest(directory: str | os.PathLike[str], like: Any, *, settings: Any = None) -> tuple[int, Any] | None:
    """Step and state of the newest sound checkpoint in a directory, or None if the directory holds none at all.

    A checkpoint that is damaged, or was saved under other `settings`, is passed over for the one before with a
    `RuntimeWarning` that says why, and left where it is.

    Raises:
      CheckpointError: if there are checkpoints but none is sound; it says what is wrong with each. Starting afresh is
        then the caller's decision.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> path = ctld_optax.checkpoint.save(folder, 7, {"w": jnp.ones(3)})
      >>> step, state = ctld_optax.checkpoint.restore_latest(folder, like={"w": jnp.zeros(3)})
      >>> step
      7
    """
    faults: list[str] = []
    for step, path in sorted(_saved_steps(Path(directory)).items(), reverse=True):
        try:
            state = load(path, like, settings=settings)
        except (CheckpointError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        for fault in faults:
            warnings.warn(f"passed over a checkpoint for that of step {step}: {fault}", RuntimeWarning, stacklevel=3)
        return step, state
    if faults:
        raise CheckpointError(f"no checkpoint in {directory} is sound:\n" + "\n".join(faults))
    return None


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        culprit = next(path for path in (folder, *folder.parents) if path.exists())
        raise NotADirectoryError(f"{culprit} is a file, and {folder} was to be a folder. Choose another path.") from error


@contextlib.contextmanager
def explained(path: Path, advice: str) -> Generator[None]:
    # An OSError that says what was to be written and what to do; of the same kind, so that callers may still tell them apart.
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # ours, and it says so already
            raise
        raise OSError(error.errno, f"{path} could not be written: {error.strerror}. {advice}") from error


def locked(file: int, *, without_locks: bool = True) -> bool:
    # Whether this process now holds the file alone. The system lets go of it when the process ends, however it ends.
    try:
        import fcntl  # noqa: PLC0415 - POSIX only
    except ImportError:
        return without_locks
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return without_locks
    return True


def _write_whole(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes under another name, flushes, and renames; what stands there is replaced if it is of this run."""
    file, partial = _open_partial(path)
    try:
        with file:
            # What np.savez does, which however takes no array that is called "file".
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
            if os.path.lexists(path) and not _is_of_this_run(path, arrays):
                aside = next(
                    p for n in itertools.count(1) if not os.path.lexists(p := path.with_name(f"{path.name}.aside-{n}"))
                )
                path.rename(aside)
                message = f"{path} was damaged or of another run, and this checkpoint takes its place: it is now {aside}."
                warnings.warn(message, RuntimeWarning, stacklevel=5)
            partial.replace(path)  # while the lock is held, so that no one takes it for a leftover
    except BaseException:
        partial.unlink(missing_ok=True)  # it would hold on to the room that a full disk lacks
        raise


def _open_partial(path: Path) -> tuple[IO[bytes], Path]:
    """A new file that no other writer, be it a thread of this process, writes to; locked, so that none deletes it either."""
    while True:
        partial = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")
        file = partial.open("xb")
        # Between the two lines another program may have taken it for a leftover, which it then still holds or has deleted.
        if locked(file.fileno()) and os.fstat(file.fileno()).st_nlink:
            return file, partial
        file.close()
        partial.unlink(missing_ok=True)


def _delete_leftovers(directory: Path) -> None:
    """What killed writers left. A file that its writer still holds is none."""
    for leftover in directory.glob(".step_*.partial"):
        with contextlib.suppress(OSError), leftover.open("r+b") as file:
            if locked(file.fileno(), without_locks=False):
                leftover.unlink()


def _delete_old(directory: Path, step: int, arrays: Mapping[str, np.ndarray], keep: int) -> None:
    older = sorted((old for old in _saved_steps(directory).items() if old[0] < step), reverse=True)
    sound = 1  # the one just written
    for _, path in older if len(older) >= keep else ():
        if not _is_of_this_run(path, arrays):
            continue
        if sound >= keep:
            path.unlink(missing_ok=True)
        elif _is_sound(path):
            sound += 1


def _is_of_this_run(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a checkpoint has the names, shapes and dtypes of `arrays`, and no other settings. Reads the header only."""
    try:
        (leaves, settings), (own_leaves, own_settings) = _read_header(_read_arrays(path, HEADER)), _read_header(arrays)
    except (CheckpointError, OSError):
        return False
    without_checksums = [
        {name: {**leaf, "sha256": None} for name, leaf in described.items()} for described in (leaves, own_leaves)
    ]
    return without_checksums[0] == without_checksums[1] and not _differences(settings or {}, own_settings or {})


def _is_sound(path: Path) -> bool:
    try:
        arrays = _read_arrays(path)
        leaves, _ = _read_header(arrays)
    except (CheckpointError, OSError):
        return False
    return leaves.keys() == arrays.keys() - {HEADER} and all(leaves[name]["sha256"] == _digest(arrays[name]) for name in leaves)


def _read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """All arrays of a file, or those named."""
    try:
        # Opened here: np.load would leave a file open that it cannot read.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    except FileNotFoundError:
        raise
    # Whatever zipfile, zlib and NumPy make of bytes that are not what they expect: there is no list of it.
    except Exception as error:
        raise CheckpointError(f"{path} is no whole npz file ({type(error).__name__}: {error}).") from error


def _saved_steps(directory: Path) -> dict[int, Path]:
    found = {path: re.fullmatch(r"step_(\d{8,})\.npz", path.name) for path in directory.glob("step_*.npz")}
    return {int(match[1]): path for path, match in found.items() if match}


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the new name itself
    finally:
        os.close(descriptor)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return [(name.removeprefix(".") or "leaf", leaf) for name, leaf in named]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_implementation(leaf: Any) -> str:
    """The name that `jax.random.key(..., impl=name)` takes, also of an abstract key."""
    names: list[str] = []
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), leaf)
    return names[0]


def _describe(leaf: Any) -> dict[str, Any]:
    """What must agree between the saved and the living: JSON, so lists for tuples."""
    if _is_key(leaf):
        return {"key": _key_implementation(leaf), "shape": list(leaf.shape)}
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return {"dtype": np.dtype(dtype).name, "shape": list(np.shape(leaf))}


def _is_foreign(dtype: np.dtype) -> bool:
    """Whether a dtype is one of ml_dtypes', which npz would save as raw bytes without a name."""
    return dtype.kind == "V" or not dtype.isbuiltin


def _bits(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"u{dtype.itemsize}")


def _digest(array: np.ndarray) -> str:
    """Over dtype, shape and bytes. The header holds it under the array's name, so arrays that change places are found out."""
    described = json.dumps([array.dtype.str, list(array.shape)])
    return hashlib.sha256(described.encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _read_header(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the arrays are, and the settings, if any were saved."""
    if HEADER not in arrays:
        raise CheckpointError(f"there is no {HEADER!r}: these arrays were not made by ctld_optax.checkpoint.state_to_arrays.")
    try:
        header = json.loads(np.asarray(arrays[HEADER]).tobytes().decode())
        body = header["body"]
        sound = header["sha256"] == hashlib.sha256(body.encode()).hexdigest()
        content = json.loads(body)
        form, version, leaves = content["format"], content["version"], content["leaves"]
        settings = content.get("settings")  # files of earlier releases have none
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the header is damaged ({type(error).__name__}: {error}).") from error
    if not sound:
        raise CheckpointError("the header is damaged: its checksum is wrong.")
    if form != FORMAT:
        raise CheckpointError(f"the format is {form!r}, not {FORMAT!r}.")
    if version != VERSION:
        raise CheckpointError(f"the format's version is {version!r}, and this release reads version {VERSION} only.")
    return leaves, settings


def _compare_settings(saved: Mapping[str, Any] | None, given: Any) -> None:
    now = None if given is None else _flat(given)
    if saved is None or now is None:
        if saved is not None or given is not None:
            lacking = "restored without settings, but saved with some" if given is None else "saved without any"
            warnings.warn(
                f"a checkpoint was {lacking}: whether the sampler is the same was not compared.", RuntimeWarning, stacklevel=4
            )
        return
    if not saved.keys() & now.keys():
        raise CheckpointError(f"the settings saved are {sorted(saved)[:5]}, those given {sorted(now)[:5]}. Name them alike.")
    if different := _differences(saved, now):
        listed = "; ".join(f"{name} was {saved[name]!r} and is now {now[name]!r}" for name in different[:5])
        raise CheckpointError(
            f"it was saved under other settings, under which its arrays mean something else: {listed}. "
            "Build the sampler as it was, or, to go on with this one all the same, restore without settings=."
        )


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the settings that both have and that disagree."""

    def agree(a: Any, b: Any) -> bool:
        # The last digits of a schedule are the machine's.
        numbers = type(a) in {int, float} and type(b) in {int, float}
        return math.isclose(a, b, rel_tol=1e-5) if numbers else a == b

    return sorted(name for name in saved.keys() & now.keys() if not agree(saved[name], now[name]))


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Settings as names and JSON values: "tempering.delta" -> 0.4. An object's class stands under the object's own name."""
    kernel = getattr(settings, "kernel", None)  # of what ctld gave
    if kernel is not None:
        return _flat(_arguments(kernel), name)
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {name or "class": type(settings).__name__} | _flat(_fields(settings), name)
    if isinstance(settings, Mapping | list | tuple) and not isinstance(settings, optax.GradientTransformation):
        pairs = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
        flat = [_flat(value, f"{name}.{part}" if name else str(part)) for part, value in pairs]
        return {setting: value for part in flat for setting, value in part.items()}
    if callable(settings) and not isinstance(settings, type | optax.GradientTransformation):
        return _values_of_schedule(settings, name)
    return {name or "value": _plain(settings, name)}


def _arguments(kernel: Any) -> dict[str, Any]:
    """The settings of a sampler by the names that `ctld` gives them, less those that may differ between two sessions."""
    half = {name: value for name, value in _fields(kernel.alpha).items() if name != "integrator"}
    half = {HALF.get(name, name): value for name, value in half.items()}
    apart = {"alpha", "key", "param_specs"}
    if isinstance(kernel.preconditioner, Still):
        apart |= {"preconditioner"}  # its coordinates are in the state
    whole = {WHOLE.get(name, name): value for name, value in _fields(kernel).items() if name not in apart}
    return whole | half | {"noise": kernel.source.__name__}


WHOLE = {"decay": "momentum", "source": "noise"}
HALF = {"walls": "confinement", "step_size": "alpha_step_size", "decay": "alpha_momentum"}


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}


def _values_of_schedule(schedule: Callable[[Any], Any], name: str) -> dict[str, float]:
    """A function cannot be compared, its values can; a number that ctld has made a schedule of is one here too."""
    try:
        return {f"{name or 'value'}({step})": float(schedule(jnp.asarray(step, jnp.int32))) for step in SCHEDULE_STEPS}
    except TypeError as error:
        raise TypeError(f"{_setting(name)} is a function that is no schedule, count -> number ({error}).") from error


def _plain(setting: Any, name: str) -> Any:
    if setting is None or isinstance(setting, bool | int | float | str):
        return setting
    if isinstance(setting, type | np.dtype):
        return np.dtype(setting).name
    if isinstance(setting, jax.Array | np.ndarray | np.generic) and not _is_key(setting):
        array = np.asarray(setting)
        return array.item() if array.size == 1 else f"array {array.shape} {_digest(array)[:16]}"
    raise TypeError(
        f"{_setting(name)} must be what ctld gave, one of its parts, a schedule, a number, a text, None, or a list or dict "
        f"of them, got {type(setting).__name__}. Of a wrapper, such as phase_switch, pass the sampler that went into it; for "
        'any other transformation write its numbers down, such as {"learning_rate": 1e-2, "temperature": 1e-3}.'
    )


def _setting(name: str) -> str:
    return f"settings, at {name}," if name else "settings"


def _restore(array: np.ndarray, description: Mapping[str, Any], like: Any) -> Any:
    """One leaf, where `like` has its own."""
    if "key" in description:
        return _place(jax.random.wrap_key_data(jnp.asarray(array), impl=description["key"]), like)
    dtype = np.dtype(description["dtype"]) if not hasattr(like, "dtype") else np.dtype(like.dtype)
    if _is_foreign(dtype):
        array = array.view(dtype).reshape(array.shape)
    if isinstance(like, bool | int | float):
        return type(like)(array.item())
    if isinstance(like, np.ndarray | np.generic):
        return np.asarray(array, dtype)
    return _place(jnp.asarray(array, dtype), like)


def _place(array: jax.Array, like: Any) -> jax.Array:
    # A scalar that no one has placed must stay so: one tied to the first device would not mix with sharded parameters.
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    return array if sharding is None else jax.device_put(array, sharding)
