"""The README's code runs as it stands."""

import pathlib
import re
import tomllib

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_quick_start_runs_and_learns(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    quick_start = next(block for block in blocks if block.startswith("import jax"))
    lines = [line for line in quick_start.splitlines() if line.strip()]
    assert len(lines) <= 20
    exec(compile(quick_start, str(README), "exec"), {})  # noqa: S102 - our own text
    loss = float(capsys.readouterr().out.split()[-1])
    assert loss < 0.01  # y has variance 0.5; at the saddle the loss stays there


def test_the_install_line_names_the_bounds():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]
    bounds = dict(line.split(">=") for line in project["dependencies"])
    pythons = [line.rsplit(" ", 1)[1] for line in project["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    (line,) = re.findall(r"^pip install \. +# (.*)$", README.read_text(), flags=re.MULTILINE)
    assert line.startswith(
        f"Python {pythons[0]} to {pythons[-1]}, JAX {bounds['jax']} or newer, Optax {bounds['optax']} or newer"
    )
