"""The documentation site: `sphinx-build -W --keep-going docs build/site`. It needs no network."""

import importlib.metadata
import pathlib
import re
import sys

import ctld_optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import executed
import gallery
import measured

# The notebooks, run where they have not been yet: minutes the first time, nothing after that.
gallery.lay_out(executed.executed())
measured.write()

project = "ctld_optax"
author = "the ctld_optax authors"
project_copyright = "2026, the ctld_optax authors"
release = ctld_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["examples/download"]
nb_execution_mode = "off"

# Pages are Markdown that GitHub shows as well: $...$ for formulas, headings are anchors.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

# Docstrings are Google style, with `code` in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80  # longer ones have a line for each argument
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # they name private modules

# A reference that leads nowhere is an error. Bases outside this package have no pages here.
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(ArrayTree|jax|optax|numpy|matplotlib|typing|collections|object|tuple|NamedTuple).*",
    )
]

# MathJax from the package's own files: one script with all its glyphs, no content delivery network.
_MATHJAX = importlib.metadata.distribution("sphinx-mathjax-offline").locate_file(
    "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
)
mathjax_path = "tex-svg.js"
html_static_path = ["_static", str(_MATHJAX)]

html_theme = "furo"
html_title = "ctld_optax"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_use_index = False
html_domain_indices = False
html_show_sphinx = False


def _adapt_docstring(_app, what, _name, _obj, _options, lines):
    """Makes reStructuredText of what is meant as plain text."""
    if what == "module":
        # What is indented after a paragraph is code.
        text = re.sub(
            r"(?m)^(?! |\.\.)(.*[^:\n]:?)\n\n(?= )", r"\1\n\n::\n\n", "\n".join(lines)
        )
        lines[:] = text.split("\n")
    lines[:] = measured.plain("\n".join(lines)).split("\n")


def _skip_fields(_app, _what, _name, obj, _skip, _options):
    """Fields of named tuples: what they mean stands under `Attributes:`."""
    return (
        True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None
    )


def setup(app):
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-docstring", _adapt_docstring)
