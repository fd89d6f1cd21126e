"""How the documentation site is built: ``make docs`` writes it to ``out/docs``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import riemae  # noqa: E402 (the path above comes first)

project = "riemae"
author = "The riemae authors"
copyright = author
version = release = riemae.__version__

extensions = [
    "api_pages",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "mathml",
    "written_pages",
]
exclude_patterns = ["gallery/*.md", "notebooks/*.md"]
nitpicky = False  # annotations name torch's types, whose pages are elsewhere

html_theme = "furo"
html_title = "riemae"
html_static_path = ["theme"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"source_directory": "docs/", "navigation_with_keys": True}

# The renderer is in extensions/mathml.py: formulas are in the page, without a script or a font.
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# Tables of benchmarks begin below their first heading, and pages from them may skip a level.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
