"""Docstrings are plain text with mathematics in it; this makes reStructuredText of them for the site.

Indented lines outside of sections ("Args:" and so on) are formulas, tables or code, and stay as they are. Everywhere
else what reStructuredText would read as markup is protected, and `name` is code.
"""

from __future__ import annotations

import re
import textwrap

SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:")


def protected(line: str) -> str:
    """A line of text with no markup in it but ``code``."""
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(f"`{part}`" if part[:1] == "`" else re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part) for part in parts)


def converted(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText, with sections as napoleon reads them."""
    result: list[str] = []
    in_section = literal = False
    for line in lines:
        indented = line.startswith(" ")
        if line.strip() in SECTIONS and not indented:
            in_section, literal = True, False
        elif in_section and line.strip() and not indented:
            in_section = False
        if in_section or not line.strip():
            result.append(protected(line))
        elif indented:
            if not literal:
                result += ["", "::", ""] if result and result[-1].strip() else ["::", ""]
            literal = True
            result.append(line)
        else:
            if literal and result[-1].strip():
                result.append("")
            literal = False
            result.append(protected(line))
    return result


def process(app, what, name, obj, options, lines: list[str]) -> None:
    """Sphinx's event "autodoc-process-docstring"; runs before napoleon."""
    lines[:] = converted(textwrap.dedent("\n".join(lines)).split("\n"))
    if what == "property":  # napoleon takes "text: more text" in the first line for a type; ".." is an empty comment
        lines[:0] = ["..", ""]
