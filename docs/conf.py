"""The documentation site: sphinx-build -W docs build/docs

The reference pages are made from the code as the site is built: settings from their dataclasses, commands from their
parsers, the table of configs from the configs. A line {{ name }} of such a page is replaced by what `GENERATED` makes.
"""

from __future__ import annotations

import functools
import importlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import docstrings
from sphinx.errors import ExtensionError

import ucgm_jax
from ucgm_jax import settings_reference
from ucgm_jax.commands import configs, main
from ucgm_jax.settings import Settings

project = "ucgm_jax"
author = "the authors of ucgm_jax"
release = version = ucgm_jax.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_nb"]
exclude_patterns = ["**/__pycache__", "jupyter_execute"]
html_theme = "furo"
html_title = f"ucgm_jax {release}"

# Pages: equations between dollars, links to the headings of other pages.
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# The notebook trains a model: each time, in a folder that is removed; an error in it is an error of the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True

# Reference: types stand in the text of the docstrings too, so those in signatures are short names.
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_type_aliases = {"Array": "Array", "Tree": "Tree"}
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False
nitpicky = True
# Names of other projects, whose documentation is not read here, and types that have no page.
nitpick_ignore_regex = [("py:.*", r"(?!ucgm_jax\.(load|Model|DataSpec|sample)).*")]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("[", "\\[").replace("<", "\\<")


def settings_pages() -> str:
    """One table for each section of the settings."""
    sections: dict[str, list[str]] = {}
    for one in settings_reference.reference():
        section, _, name = one.key.rpartition(".")
        default = '""' if one.default == "" else _escaped(str(one.default))
        line = f"| `{name}` | {_escaped(one.kind)} | {default} | {_escaped(one.meaning)} |"
        sections.setdefault(section, []).append(line)
    parts = []
    for section, lines in sections.items():
        about = (
            (type(functools.reduce(getattr, section.split("."), Settings())).__doc__ or "").partition("\n\n")[0]
            if section
            else ""
        )
        title = f"`{section}`" if section else "The whole run"
        head = ["| key | type | default | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"## {title}", "", _escaped(" ".join(about.split())), "", *head, *lines]))
    return "\n\n".join(parts)


def command_pages() -> str:
    """The help of every command."""
    parts = []
    for name, what in main.COMMANDS.items():
        text = importlib.import_module(f"ucgm_jax.commands.{name}").parser().format_help()
        parts.append(f"## `ucgm {name}`: {what}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def config_table() -> str:
    """The shipped configs, as `ucgm configs` prints them."""
    return f"```text\n{configs.table()}\n```"


GENERATED = {"settings": settings_pages, "commands": command_pages, "configs": config_table}


def fill_in(app, docname: str, source: list[str]) -> None:
    """Puts what is made from the code into a page."""
    for name, make in GENERATED.items():
        mark = f"{{{{ {name} }}}}"
        if mark in source[0]:
            source[0] = source[0].replace(mark, make())


def check_names(app, env) -> None:
    """Refuses a reference that lacks a public name."""
    page = (pathlib.Path(__file__).parent / "reference" / "api.md").read_text()
    missing = [name for name in ucgm_jax.__all__ if f"ucgm_jax.{name}\n" not in page and f"`{name}`" not in page]
    if missing:
        raise ExtensionError(f"docs/reference/api.md: says nothing of {', '.join(missing)}")


def setup(app) -> None:
    """Connects all of the above."""
    app.connect("source-read", fill_in)
    app.connect("env-check-consistency", check_names)
    app.connect("autodoc-process-docstring", docstrings.process, priority=100)
