"""Every block of Python in the README, in CONTRIBUTING and on the pages runs as it stands; those of one page share their names.

This file needs nothing but these pages and an installed package: CI runs a copy of it outside the source.
"""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOUND = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
PAGES = sorted(path for path in FOUND if "```python" in path.read_text())


def blocks(page):
    """Each block, with the line that it starts at."""
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield match[1], text.count("\n", 0, match.start(1))


def test_pages_are_found():
    assert len(PAGES) > 8
    assert all("```python" not in block for page in PAGES for block, _ in blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page):
    namespace = {"__name__": page.stem}
    for block, line in blocks(page):
        # Line numbers in a traceback are those of the page.
        exec(compile("\n" * line + block, str(page), "exec"), namespace)  # noqa: S102 - our own pages
