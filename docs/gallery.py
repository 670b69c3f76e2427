"""Puts the executed notebooks where Sphinx finds them: pages, files to download, and a thumbnail of each."""

import base64
import io
import pathlib

import nbformat
from PIL import Image, ImageOps

THUMBNAIL = (560, 350)
PAGES = pathlib.Path(__file__).parent / "examples"


def picture_of(notebook: nbformat.NotebookNode) -> bytes:
    """The PNG that stands for a notebook: the first of a cell with the tag `thumbnail`, else the first of all."""
    cells = sorted(
        notebook.cells, key=lambda cell: "thumbnail" not in cell.metadata.get("tags", [])
    )
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return base64.b64decode(next(one["image/png"] for one in data if "image/png" in one))


def thumbnail(png: bytes) -> Image.Image:
    """The upper left part of a picture, on white: its first panel, large enough to be seen."""
    with Image.open(io.BytesIO(png)) as picture:
        whole = Image.new("RGB", picture.size, "white")
        whole.paste(picture, mask=picture.convert("RGBA").getchannel("A"))
    return ImageOps.fit(whole, THUMBNAIL, Image.Resampling.LANCZOS, centering=(0.0, 0.0))


def lay_out(files: dict[str, pathlib.Path]) -> None:
    """Writes docs/examples anew, from the names of notebooks and their executed files."""
    (PAGES / "download").mkdir(parents=True, exist_ok=True)
    wanted = {PAGES / f"{name}.ipynb" for name in files}
    for old in {*PAGES.glob("*.ipynb")} - wanted:
        old.unlink()
    for name, path in files.items():
        _write(PAGES / "download" / f"{name}.ipynb", path.read_bytes())
        notebook = nbformat.read(path, as_version=4)
        scratch = io.BytesIO()
        thumbnail(picture_of(notebook)).save(scratch, "png")
        _write(PAGES / f"{name}.png", scratch.getvalue())
        link = nbformat.v4.new_markdown_cell(
            f"{{download}}`Download this notebook <download/{name}.ipynb>`", id="download"
        )
        notebook.cells.insert(1, link)
        _write(PAGES / f"{name}.ipynb", nbformat.writes(notebook).encode())


def _write(path: pathlib.Path, content: bytes) -> None:
    """Only what is new, so that Sphinx reads again only what has changed."""
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
