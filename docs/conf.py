"""Settings of the documentation, which `make docs` builds: no network, at build time or when it is read."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for generated.py

warnings.filterwarnings("ignore", module="pytorch_metric_learning")  # its losses are made for the table of them

project = "divcon"
author = "The divcon authors"
copyright = "2026, The divcon authors"
version = release = version_of("divcon")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "generated"]
exclude_patterns = ["results"]
myst_heading_anchors = 3
default_role = "py:obj"  # `divcon.read` in a docstring is a link where the page it is on exists
smartquotes = False  # --out is not a dash

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"divcon {release}"
html_static_path = ["static"]
html_css_files = ["divcon.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "tango"
pygments_dark_style = "monokai"
