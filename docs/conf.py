"""How Sphinx makes the site: `make docs`. Nothing is fetched, neither to build it nor to look at it."""

from dsv4_shard.version import __version__

project = "dsv4-shard"
version = release = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
napoleon_custom_sections = [("Options", "params_style")]

myst_heading_anchors = 3
default_role = "code"  # `names` in docstrings, as in Markdown
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "model_config"}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"dsv4-shard {__version__}"
html_copy_source = False
html_show_copyright = False
