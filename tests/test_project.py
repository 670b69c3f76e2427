"""What stands around the code: who to cite, the hooks, the forms, and notebooks that run once."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

import ctld_optax

ROOT = pathlib.Path(__file__).parents[1]


def loaded(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


executed = loaded("executed")


def test_the_citation_is_whole_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format asks for
    assert citation["version"] == ctld_optax.__version__
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]] == ["Ye", "Zhu", "Mantiuk"]
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Paper"] == paper["url"]
    assert urls["Source"] == citation["repository-code"]


def test_hooks_and_workflows_call_what_is_there():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    tests = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    commands = {pathlib.Path(hook["entry"].split()[0]).name for hook in hooks}
    assert commands == {"ruff", "pyright"}
    assert all(any(line.startswith(command) for line in tests) for command in commands)
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    (script,) = [step["run"] for step in jobs["everything"]["steps"] if "run" in step]
    assert (ROOT / script.removeprefix("bash ")).exists()
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    assert {"code", "report", "versions"} <= {field.get("id") for field in form["body"]}


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ('"""Other words."""\ndef f(x):\n    return x + 1  # a comment\n', True),
        ('def f(x):\n    """Says what."""\n\n    return (x + 1)\n', True),
        ("def f(x):\n    return x + 2\n", False),
        ('def f(x):\n    print("""not a docstring""")\n    return x + 1\n', False),
    ],
)
def test_a_notebook_runs_again_where_code_has_changed(tmp_path, other, is_same):
    (tmp_path / "one.py").write_text('"""Words."""\ndef f(x):\n    return x + 1\n')
    (tmp_path / "other.py").write_text(other)
    assert (executed.code_of(tmp_path / "one.py") == executed.code_of(tmp_path / "other.py")) == is_same


@pytest.mark.slow
def test_a_notebook_runs_once_and_its_errors_are_ours(tmp_path):
    for folder in ("docs", "notebooks"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "docs" / "executed.py", tmp_path / "docs")

    def run(code):
        (tmp_path / "notebooks" / "small.py").write_text(f"# %% [markdown]\n# # Small\n\n# %%\n{code}\n")
        command = [sys.executable, str(tmp_path / "docs" / "executed.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        return done, {path: path.stat().st_mtime_ns for path in (tmp_path / "build" / "notebooks").glob("*.ipynb")}

    done, first = run("print(6 * 7)")
    assert done.returncode == 0, done.stderr
    (path,) = first
    assert "42" in path.read_text()
    assert run("print(6 * 7)")[1] == first
    done, kept = run("1 / 0")
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr
    assert kept == first
