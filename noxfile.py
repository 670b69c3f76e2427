"""The package in old and new surroundings: `nox` runs every leg and prints a table.

A leg is an environment of its own with the versions of `PINS`, in which run: the README's quick start, from the installed
package and far from the source, warnings as errors; the core tests; the laws; and a part of the gauntlet.

    nox                     all legs
    nox -s oldest           one
    nox -s oldest -- fast   a part of one, for .ci/run
    nox -s table            what the legs of the last time found
"""

import json
import os
import pathlib
import re
import tomllib
from xml.etree import ElementTree as ET

import nox

ROOT = pathlib.Path(__file__).parent
RESULTS = ROOT / ".nox" / "versions"  # one JSON file a leg
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("plot", "posterior", "record")  # those of the package itself; the other extras are of this repository
BOUNDS = [*PROJECT["dependencies"], *(line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra])]
PINS = {
    # The bounds of pyproject.toml themselves, the frameworks of that time, and a Python that SciPy had wheels for.
    "oldest": ("3.11", [line.replace(">=", "==") for line in BOUNDS] + ["flax==0.10.4", "equinox==0.11.10", "scipy<1.15"]),
    "middle": ("3.12", ["jax==0.7.2", "jaxlib==0.7.2", "optax==0.2.6", "numpy==2.2.6", "flax==0.12.0"]),
    "newest": ("3.13", []),
}
TOOLS = ["chex", "equinox", "flax", "msgpack", "orbax-checkpoint", "pytest>=8.3", "pytest-xdist", "scipy", "tensorboard"]
SHOWN = ("python", "jax", "optax", "numpy", "flax")

CORE = """
    test_accumulate test_algorithm1 test_compat test_ctld test_diagnostics test_imports test_metadynamics test_noise
    test_phase_switch test_preconditioner test_public_names test_recorder test_tempering test_validation baselines
    compat/test_checkpoints compat/test_frameworks compat/test_rounding compat/test_shards compat/test_walkers
"""
FAST = "test_compat test_ctld test_imports test_noise test_recorder compat/test_checkpoints compat/test_shards"
NOT_HERE = ("tests/laws/test_logistic_regression.py", "tests/laws/test_step_size.py")  # beside blackjax's samplers


def files(names: str) -> list[str]:
    paths = [ROOT / "tests" / name for name in names.split()]
    return [str(path.relative_to(ROOT) if path.is_dir() else path.relative_to(ROOT).with_suffix(".py")) for path in paths]


GAUNTLET = "tests/compat/test_gauntlet.py"
GROUPS = {
    "core tests": files(CORE),
    "laws": ["tests/laws"],
    "gauntlet subset": [GAUNTLET, "-k=-ctld] or sgd]"],  # the rows ctld, phase_switch onto sgd and AnnealSGD, all columns
}
FEW = {
    "core tests": files(FAST),
    "laws": ["tests/laws/test_gaussian.py"],
    "gauntlet subset": [GAUNTLET, "-k=-ctld]"],
}

nox.options.sessions = [*PINS, "minimal", "table"]
nox.options.default_venv_backend = "uv|virtualenv"
# The shims of pyenv find no Python but the one that is set; its versions themselves come first.
os.environ["PATH"] = os.pathsep.join([*map(str, (pathlib.Path.home() / ".pyenv/versions").glob("3.*/bin")), os.environ["PATH"]])


def leg(session: nox.Session) -> None:
    """Quick start, core tests, laws and gauntlet under the versions of one row of `PINS`."""
    pins = PINS[session.name][1]
    session.install(f".[{','.join(EXTRAS)}]", *TOOLS, *pins)
    outcome = {"quick start": quick_start(session)}
    for group, chosen in (FEW if "fast" in session.posargs else GROUPS).items():
        outcome[group] = tests(session, chosen, "-n", "2")
    finish(session, outcome)


for name, (python, _) in PINS.items():
    nox.session(leg, name=name, python=python)


@nox.session(python="3.13")
def minimal(session: nox.Session) -> None:
    """No extras: the package is imported, learns, and passes tests that need none."""
    session.install(".")
    outcome = {"quick start": quick_start(session)}
    session.install("pytest>=8.3")
    outcome["core tests"] = tests(session, files("test_compat test_imports test_coupling test_metadynamics test_tempering"))
    finish(session, outcome)


@nox.session(venv_backend="none")
def table(_session: nox.Session) -> None:
    """Prints what each leg found."""
    columns = ["quick start", *GROUPS]
    print("| leg | " + " | ".join((*SHOWN, *columns)) + " |\n" + "|---" * (1 + len(SHOWN) + len(columns)) + "|")
    for path in [RESULTS / f"{name}.json" for name in (*PINS, "minimal")]:
        if path.is_file():
            found = json.loads(path.read_text())
            cells = [*(found["versions"].get(one, "") for one in SHOWN), *(found["outcome"].get(one, "") for one in columns)]
            print(f"| {path.stem} | " + " | ".join(cells) + " |")


def quick_start(session: nox.Session) -> str:
    """Runs the README's first program far from the source; what it printed last."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    with session.chdir(session.create_tmp()):
        pathlib.Path("quick_start.py").write_text(next(block for block in blocks if "def step" in block))
        printed = str(session.run("python", "-W", "error", "quick_start.py", silent=True, success_codes=range(256))).strip()
    session.log(printed)
    return printed if re.fullmatch(r"loss 0\.00\d\d", printed) else "FAILED"


def tests(session: nox.Session, chosen: list[str], *more: str) -> str:
    """Runs pytest; how many tests passed, and how long they took."""
    report = pathlib.Path(session.create_tmp()) / "report.xml"
    report.unlink(missing_ok=True)
    ignored = [f"--ignore={path}" for path in NOT_HERE]
    session.run("python", "-m", "pytest", "-q", *chosen, *ignored, *more, f"--junitxml={report}", success_codes=range(256))
    if not report.is_file():
        return "FAILED"
    suite = ET.parse(report).getroot()[0]  # noqa: S314 - pytest's own, just written
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    words = [f"{passed} passed", *([f"{counts['skipped']} skipped"] if counts["skipped"] else [])]
    words = [f"FAILED: {failed}", *words] if failed or not passed else words
    return ", ".join(words) + f" ({float(suite.attrib['time']):.0f} s)"


def finish(session: nox.Session, outcome: dict[str, str]) -> None:
    """Keeps a row of the table; a leg in which anything failed has failed."""
    code = (
        "import importlib.metadata as m, json, platform;"
        "have = {d.name.lower() for d in m.distributions()};"
        f"print(json.dumps({{'python': platform.python_version()}} | {{n: m.version(n) for n in {SHOWN[1:]} if n in have}}))"
    )
    versions = json.loads(str(session.run("python", "-c", code, silent=True)))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{session.name}.json").write_text(json.dumps({"versions": versions, "outcome": outcome}))
    session.log(", ".join(f"{name}: {found}" for name, found in outcome.items()))
    if any(found.startswith("FAILED") for found in outcome.values()):
        session.error("see above")
