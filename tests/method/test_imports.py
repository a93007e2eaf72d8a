"""The mathematics stands alone: it needs jax, numpy and Python's own library, and nothing else of this project."""

import ast
import pathlib
import sys

import pytest

import ucgm_jax.method

ALLOWED = {"jax", "numpy", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", sorted(pathlib.Path(ucgm_jax.method.__path__[0]).glob("*.py")), ids=lambda p: p.stem)
def test_imports_jax_and_numpy_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.partition(".")[0] in ALLOWED or name.startswith("ucgm_jax.method"), name
