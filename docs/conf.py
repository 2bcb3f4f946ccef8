"""Sphinx configuration: ``sphinx-build -W -n docs build/docs``.

The pages are the project's own Markdown files and one page for each public name. Both are written to docs/site before
Sphinx reads it, and not committed: the Markdown files in the layout of the repository, so that their links hold, the
reference from every ``__all__``, so that nothing has to be listed here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from site_pages import write_site
from sphinx.util.nodes import make_refnode

import torch_propkernel

project = "torch_propkernel"
author = "torch_propkernel developers"
copyright = author  # the name that Sphinx asks for
version = release = torch_propkernel.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
include_patterns = ["site/**"]
root_doc = "site/README"
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"{project} {version}"
html_additional_pages = {"index": "index.html"}  # leads to the front page
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # result files are made of tables of several runs, each with its own heading

autodoc_default_options = {"show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the properties among the attributes have entries of their own
napoleon_custom_sections = ["Reference"]
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
add_module_names = False

HOSTS = "torch|concurrent|gpytorch|linear_operator|botorch|numpy|sklearn|matplotlib|collections|pathlib|os|abc|enum"
# Hosts are documented elsewhere, and a build asks for no network: no inventory resolves their names. A class of this
# package that is in no __all__ is named by its file and has no page.
nitpick_ignore_regex = [
    (r"py:.*", rf"({HOSTS})\..*"),
    (r"py:.*", r"Tensor|LinearOperator|Axes|Figure|ArrayLike|UnsupportedError"),
    (r"py:class", r"torch_propkernel\.\w+\.\w+\.\w+"),
]

write_site()


def resolve_short_name(app, env, node, contnode):
    """Resolve a public name without its module or at the root of the package, if only one object has this name."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].removeprefix("torch_propkernel.")
    known = env.get_domain("py").objects.items()
    found = [(full, entry) for full, entry in known if full.endswith(f".{name}") and not entry.aliased]
    if len(found) != 1:
        return None
    [(full, entry)] = found
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, full)


def show_factories(app, what, name, obj, options, signature, return_annotation):
    """Write default factories of dataclasses so that the signature is one of Python."""
    return (signature or "").replace("<factory>", "...") or None, return_annotation


def setup(app):
    """Connect both."""
    app.connect("missing-reference", resolve_short_name)
    app.connect("autodoc-process-signature", show_factories)
