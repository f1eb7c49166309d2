"""Configure Sphinx: MyST pages, the tutorials with their outputs, and a reference of the public names."""

import sys
from importlib import metadata
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from sources import write_reference, write_tutorials  # noqa: E402 - found by the line above

project = "candy_monai"
author = "the candy_monai authors"
release = metadata.version("candy-monai")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # the tutorials hold their outputs; tests run them
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"candy_monai {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

default_role = "py:obj"  # names in single backticks become links where they are public, and stay code elsewhere
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]
add_module_names = False
toc_object_entries_show_parents = "hide"

write_reference(HERE / "reference")
write_tutorials(HERE.parent / "tutorials", HERE / "tutorials")


def _returns_have_no_type(_app, _what, _name, _thing, _options, lines):
    """Keep napoleon from parsing words before a colon in ``Returns:`` as a type, since types are in the signature."""
    for index, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            text = lines[index + 1]
            indent = len(text) - len(text.lstrip())
            lines[index + 1] = f"{text[:indent]}: {text[indent:]}"


def _options_are_not_broken(_app, doctree, _name):
    """Keep browsers from breaking the words of code, such as ``--num-folds``, at a hyphen, unless they are long."""
    for code in doctree.findall(nodes.literal):
        if max(map(len, code.astext().split()), default=0) <= 24:
            code["classes"].append("unbroken")


def setup(app):
    """Connect the above; the first one before napoleon, which has the default priority of 500."""
    app.connect("autodoc-process-docstring", _returns_have_no_type, priority=400)
    app.connect("doctree-resolved", _options_are_not_broken)
