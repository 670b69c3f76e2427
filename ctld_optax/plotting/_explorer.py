"""Many runs behind sliders, in one piece of HTML that needs nothing else: no server, no network, no kernel."""

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ctld_optax import diagnostics
from ctld_optax._checked import checked
from ctld_optax._validate import as_numbers, check_count
from ctld_optax.checkpoint import explained
from ctld_optax.plotting import _pictures as pictures

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Explorer</title>'
LEVELS = 255  # a row is a byte: finer than a pixel of the picture


class Explorer:
    """What :func:`explorer` returns: Jupyter shows it with its sliders, and :meth:`save` writes it as a page.

    Example:
      >>> import pathlib, tempfile
      >>> rows = ctld_optax.diagnostics.Snapshot(*8 * [jnp.ones((2, 100))])
      >>> shown = ctld_optax.plotting.explorer(rows, {"height": [0.1, 1.0]})
      >>> shown.save(pathlib.Path(tempfile.mkdtemp()) / "explorer.html")
    """

    def __init__(self, content: str) -> None:
        self._content = content

    def _repr_html_(self) -> str:
        return self._content

    @checked()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a page of its own, to open in any browser, whole or not at all. An older one of that name makes room.

        Raises:
          ValueError: if something else stands there. OSError: if it cannot be written; what was there is as it was.
        """
        path = Path(path)
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(HEAD.encode())):
            raise ValueError(f"path must be new or that of an explorer, and {path} is none. Choose another, or move it away.")
        body = f'<body style="font-family:sans-serif;max-width:60rem;margin:1rem auto">{self._content}</body>'
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with explained(path, "What was there is as it was. Make room, or choose another folder."):
            try:
                partial.write_text(f"{HEAD}\n{body}\n", encoding="utf-8")
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)


@checked()
def explorer(
    trajectories: diagnostics.Snapshot,
    knobs: Mapping[str, Sequence[Any]],
    *,
    readings: Mapping[str, Any] | None = None,
    step: Any = None,
    max_rows: int = 300,
) -> Explorer:
    """The temperatures of many runs, with a slider for each knob: which setting does what.

    The runs are made before, all of them: hyperparameters may be traced, so that `jax.vmap` over `ctld` does many at once.

    Args:
      trajectories: snapshots with an axis for each knob, in their order, and time last.
      knobs: names, and the values (numbers or texts) that were tried of each.
      readings: names of figures to be shown beside the picture, and arrays of them, of the shape of the knobs.
      step: number of each row, shape (rows,); None: 1, 2, 3, ...
      max_rows: more rows than these are thinned out evenly.

    Returns:
      An object that Jupyter shows, and that `save(path)` writes as a page.

    Raises:
      ValueError: for arrays that do not have the shape that the knobs say.

    Example:
      >>> heights = jnp.asarray([0.01, 0.1, 1.0])
      >>> def run(height):
      ...     bias = ctld_optax.Metadynamics(height=height)
      ...     sampler = ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias)
      ...     def step(state, _):
      ...         state = sampler.update(jnp.zeros(9), state, jnp.zeros(9), value=1.0)[1]
      ...         return state, ctld_optax.diagnostics.snapshot(state)
      ...     return jax.lax.scan(step, sampler.init(jnp.zeros(9)), length=300)[1]
      >>> rows = jax.vmap(run)(heights)
      >>> shown = ctld_optax.plotting.explorer(rows, {"height": heights.tolist()})
    """
    shape = tuple(len(values) for values in knobs.values())
    alpha, heat = as_numbers("trajectories.alpha", trajectories.alpha), diagnostics.temperature(trajectories)
    if not shape or 0 in shape or alpha.shape[:-1] != shape:
        raise ValueError(
            f"trajectories must have an axis for each knob and time last: the knobs {list(knobs)} say {(*shape, 'rows')}, "
            f"alpha has shape {alpha.shape}."
        )
    found = {name: as_numbers(f"readings[{name!r}]", array) for name, array in (readings or {}).items()}
    for name, array in found.items():
        if array.shape != shape:
            raise ValueError(f"readings[{name!r}] must have the shape of the knobs, {shape}, got {array.shape}.")
    check_count("max_rows", max_rows, 2)
    numbers = pictures.steps(step, alpha.reshape(-1, alpha.shape[-1])[0])
    chosen = pictures.thinned(numbers.size, max_rows)
    limit, hottest = float(np.abs(alpha).max(initial=1e-9)), max(float(heat.max()), 1.01)
    content: dict[str, Any] = {
        "knobs": [{"name": name, "values": [_text(value) for value in values]} for name, values in knobs.items()],
        "readings": [{"name": name, "values": [f"{x:.3g}" for x in array.ravel()]} for name, array in found.items()],
        "step": numbers[chosen].tolist(),
        "hottest": hottest,
        "limit": limit,
        "levels": LEVELS,
        "heat": _packed(np.log(heat[..., chosen]) / np.log(hottest)),
        "alpha": _packed(0.5 + 0.5 * alpha[..., chosen] / limit),
    }
    data = json.dumps(content)
    name = "explorer-" + hashlib.sha256(data.encode()).hexdigest()[:12]
    sliders = "".join(_slider(i, knob, values) for i, (knob, values) in enumerate(knobs.items()))
    filled = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    for mark, text in {"NAME": name, "SLIDERS": sliders, "DATA": data.replace("</", "<\\/")}.items():
        filled = filled.replace(f"%{mark}%", text)
    return Explorer(filled)


def _packed(shares: np.ndarray) -> str:
    """Numbers from 0 to 1 as bytes, and these as text."""
    return base64.b64encode(np.round(LEVELS * shares).astype(np.uint8).tobytes()).decode()


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float | np.number | jax.Array) else str(value)


def _slider(index: int, name: str, values: Sequence[Any]) -> str:
    return (
        f'<label><span>{html.escape(name)}</span><input type="range" min="0" max="{len(values) - 1}" '
        f'value="{(len(values) - 1) // 2}" step="1" data-knob="{index}"><output></output></label>'
    )
