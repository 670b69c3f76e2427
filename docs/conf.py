"""The documentation site: `sphinx-build -W --keep-going docs build/site`. It needs no network."""

import importlib.metadata
import re

import ctld_optax

project = "ctld_optax"
author = "the ctld_optax authors"
project_copyright = "2026, the ctld_optax authors"
release = ctld_optax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

# Pages are Markdown that GitHub shows as well: $...$ for formulas, headings are anchors.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

# Docstrings are Google style, with `code` in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

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
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_use_index = False
html_show_sphinx = False


def _adapt_docstring(_app, what, _name, _obj, _options, lines):
    """Makes reStructuredText of what is meant as plain text."""
    if what == "module":
        # What is indented after a paragraph is code.
        text = re.sub(
            r"(?m)^(?! |\.\.)(.*[^:\n]:?)\n\n(?= )", r"\1\n\n::\n\n", "\n".join(lines)
        )
        lines[:] = text.split("\n")
    # There |z| names a substitution; here it is an absolute value. (Lines with a backslash are formulas.)
    lines[:] = [
        line if "\\" in line else re.sub(r"\|(\w+)\|", r"\\|\1\\|", line) for line in lines
    ]


def _skip_fields(_app, _what, _name, obj, _skip, _options):
    """Fields of named tuples: what they mean stands under `Attributes:`."""
    return (
        True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None
    )


def setup(app):
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-docstring", _adapt_docstring)
