"""The README's code runs as it stands."""

import pathlib
import re

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_quick_start_runs_and_learns(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    quick_start = next(block for block in blocks if block.startswith("import jax"))
    lines = [line for line in quick_start.splitlines() if line.strip()]
    assert len(lines) <= 20
    exec(compile(quick_start, str(README), "exec"), {})  # noqa: S102 - our own text
    loss = float(capsys.readouterr().out.split()[-1])
    assert loss < 0.01  # y has variance 0.5; at the saddle the loss stays there
