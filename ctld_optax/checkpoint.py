"""Checkpoints: a train state as plain NumPy arrays, files that are whole or not there, and the newest that is sound.

Orbax, pickle and JAX's own tools keep a state as it is, typed key included, and need nothing from here. msgpack and npz know
no typed keys (and npz no bfloat16); for these, :func:`state_to_arrays` and :func:`state_from_arrays`. :func:`save` and
:func:`restore_latest` write npz files that way, for programs that can be killed at any moment.

A restored run continues bit for bit.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = "ctld_optax.state"
VERSION = 1
HEADER = "__header__"


class CheckpointError(ValueError):
    """A saved state that cannot be trusted: damaged, cut off, of another program, or of another state."""


def state_to_arrays(state: Any) -> dict[str, np.ndarray]:
    """Any pytree of arrays (params, optimizer state, typed keys, step counts) as a flat dict of NumPy arrays.

    Names are key paths, such as `"opt_state.momentum['w']"`. A typed key becomes its key data, and a dtype that NumPy does
    not have (bfloat16) its bits; the header, a JSON text held as bytes under `"__header__"`, says so, with shape, dtype
    and SHA-256 of each array, the format's version, and the SHA-256 of itself. Shards that this process cannot see must be
    gathered first.

    Raises:
      TypeError: for a leaf that is no array and no number.
    """
    arrays: dict[str, np.ndarray] = {}
    leaves: dict[str, Any] = {}
    for name, leaf in _named_leaves(state):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            raise TypeError(f"{name} must be an array or a number to be saved, got {type(leaf).__name__}.")
        description = _describe(leaf)
        data: Any = leaf
        array = np.asarray(jax.random.key_data(data) if "key" in description else leaf)
        # Little-endian bits whatever the machine, so that a file can be read elsewhere.
        array = array.view(_bits(array.dtype)).reshape(array.shape) if _is_foreign(array.dtype) else array
        arrays[name] = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).reshape(array.shape)
        leaves[name] = description | {"sha256": _digest(arrays[name])}
    body = json.dumps({"format": FORMAT, "version": VERSION, "leaves": leaves}, sort_keys=True)
    header = json.dumps({"body": body, "sha256": hashlib.sha256(body.encode()).hexdigest()})
    return {HEADER: np.frombuffer(header.encode(), np.uint8), **arrays}


def state_from_arrays(arrays: Mapping[str, Any], like: Any) -> Any:
    """The inverse of :func:`state_to_arrays`.

    Args:
      arrays: what :func:`state_to_arrays` gave, after a round trip through a file.
      like: a state of the same structure, shapes and dtypes: a fresh one, or `jax.eval_shape(tx.init, params)`. Restored
        arrays are put where its own are (its leaves' `sharding`).

    Raises:
      CheckpointError: if anything differs from what was saved (a missing, foreign, cut, changed or swapped array, another
        format or version) or from `like` (names, shapes, dtypes, kind of key). It says which array, and how.
    """
    described = _read_header(arrays)
    wanted = dict(_named_leaves(like))
    missing, foreign = sorted(wanted.keys() - described.keys()), sorted(described.keys() - wanted.keys())
    if missing or foreign:
        raise CheckpointError(
            f"the saved state is that of another program: it lacks {missing[:5]} and has {foreign[:5]} besides. "
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
            raise CheckpointError(f"{name} was saved as {description}, and the program now has {expected}.")
        restored.append(_restore(array, description, leaf))
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def save(directory: str | os.PathLike[str], step: int, state: Any, *, keep: int = 3) -> Path:
    """Writes `directory/step_00000042.npz` for step 42 and deletes all but the `keep` newest.

    The file is complete under that name or is not there: it is written under another name, flushed to disk, and renamed.
    A kill or a power cut at any moment leaves the older ones as they were.

    Raises:
      ValueError: for a negative step, or keep < 1. TypeError: as :func:`state_to_arrays`.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be >= 0 and keep >= 1, got step={step}, keep={keep}.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step_{step:08d}.npz"
    # Named after the process, so that two writers cannot tear each other's file; left behind only by a kill.
    partial = directory / f".{path.name}.{os.getpid()}.partial"
    arrays = state_to_arrays(state)
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _flush_directory(directory)
    for leftover in directory.glob(".step_*.partial"):
        leftover.unlink(missing_ok=True)
    for old in sorted(_saved_steps(directory).items())[:-keep]:
        old[1].unlink(missing_ok=True)
    return path


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """The state in one file of :func:`save`.

    Raises:
      CheckpointError: if it is no whole npz file, or as :func:`state_from_arrays`. FileNotFoundError: if it is not there.
    """
    try:
        # Opened here: np.load would leave a file open that it cannot read.
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    # Whatever zipfile, zlib and NumPy make of bytes that are not what they expect: there is no list of it.
    except Exception as error:
        raise CheckpointError(f"{path} is no whole npz file ({type(error).__name__}: {error}).") from error
    try:
        return state_from_arrays(arrays, like)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def restore_latest(directory: str | os.PathLike[str], like: Any) -> tuple[int, Any] | None:
    """Step and state of the newest sound checkpoint in a directory, or None if the directory holds none at all.

    A damaged checkpoint is passed over for the one before with a `RuntimeWarning` that says why, and left where it is.

    Raises:
      CheckpointError: if there are checkpoints but none is sound; it says what is wrong with each. Starting afresh is
        then the caller's decision.
    """
    faults: list[str] = []
    for step, path in sorted(_saved_steps(Path(directory)).items(), reverse=True):
        try:
            state = load(path, like)
        except (CheckpointError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        for fault in faults:
            warnings.warn(f"passed over a checkpoint for that of step {step}: {fault}", RuntimeWarning, stacklevel=2)
        return step, state
    if faults:
        raise CheckpointError(f"no checkpoint in {directory} is sound:\n" + "\n".join(faults))
    return None


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


def _read_header(arrays: Mapping[str, Any]) -> dict[str, Any]:
    if HEADER not in arrays:
        raise CheckpointError(f"there is no {HEADER!r}: these arrays were not made by ctld_optax.checkpoint.state_to_arrays.")
    try:
        header = json.loads(np.asarray(arrays[HEADER]).tobytes().decode())
        body = header["body"]
        sound = header["sha256"] == hashlib.sha256(body.encode()).hexdigest()
        content = json.loads(body)
        form, version, leaves = content["format"], content["version"], content["leaves"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the header is damaged ({type(error).__name__}: {error}).") from error
    if not sound:
        raise CheckpointError("the header is damaged: its checksum is wrong.")
    if form != FORMAT:
        raise CheckpointError(f"the format is {form!r}, not {FORMAT!r}.")
    if version != VERSION:
        raise CheckpointError(f"the format's version is {version!r}, and this release reads version {VERSION} only.")
    return leaves


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
