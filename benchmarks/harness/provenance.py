"""What every result file says of itself: machine, versions, commit."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

PACKAGES = ("ctld-optax", "jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")


def nested() -> dict[str, Any]:
    """Machine, Python, package versions and commit, ready for JSON."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {_processor()}",
        "device": str(jax.devices()[0]),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def flat() -> dict[str, str]:
    """The same in one level, for the columns of a CSV file."""
    everything = nested()
    packages = everything.pop("packages")
    return everything | packages


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _commit() -> str:
    """The commit of the source tree, with a + if it was changed since, or "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        root = pathlib.Path(__file__).parent
        command = ["git", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
