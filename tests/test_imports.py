"""What `import ctld_optax` brings with it beside Optax: nothing of any extra, and no backend that starts."""

import json
import os
import subprocess
import sys

import pytest

LOADED = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def fresh(code, **environment):
    """A program in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)  # noqa: PLW1510


def loaded_by(code):
    """Top-level names of the modules that are loaded then, the standard library's left out."""
    done = fresh(f"{code}; {LOADED}")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout)) - set(sys.stdlib_module_names)


def test_nothing_is_loaded_that_optax_does_not_load():
    # In particular neither Matplotlib, PyArrow, ArviZ nor Flax.
    assert loaded_by("import ctld_optax") - loaded_by("import optax") == {"ctld_optax"}


def test_the_extras_are_seen_where_they_are_loaded():
    pytest.importorskip("matplotlib")
    assert "matplotlib" in loaded_by("import ctld_optax.plotting")


def test_no_backend_starts():
    # On a platform that does not exist an import goes well, and the first array does not.
    nowhere = {"JAX_PLATFORMS": "no_such_platform"}
    done = fresh("import ctld_optax", **nowhere)
    assert done.returncode == 0, done.stderr
    done = fresh("import ctld_optax, jax.numpy; jax.numpy.zeros(())", **nowhere)
    assert done.returncode != 0
    assert "no_such_platform" in done.stderr


# Another process moves ArviZ's note of the day away between the writing and the moving of ours: what its import does then.
OVERTAKEN = """
import pathlib
left, replace = 1, pathlib.Path.replace
def overtaken(path, target):
    global left
    left, last = left - 1, left
    replace(path, target)
    if last > 0:
        raise FileNotFoundError(path)
pathlib.Path.replace = overtaken
"""


def test_two_processes_may_import_arviz_at_once(tmp_path):
    pytest.importorskip("arviz")
    afresh = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    by_hand = fresh(f"{OVERTAKEN}\nimport arviz", **afresh)
    if "FileNotFoundError" not in by_hand.stderr:
        pytest.skip("this ArviZ notes nothing")
    (tmp_path / "arviz" / "daily_warning").unlink()
    done = fresh(f"{OVERTAKEN}\nfrom ctld_optax._arviz import arviz\nprint(arviz('a test').ess.__name__)", **afresh)
    assert (done.returncode, done.stdout) == (0, "ess\n"), done.stderr
