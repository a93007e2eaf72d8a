"""The floors of the house: a room imports from those below it alone, and only commands speak of flags."""

import ast
import pathlib

import pytest

import ucgm_jax

PACKAGE = pathlib.Path(ucgm_jax.__file__).parent
# From the ground up; rooms of one line do not know each other. `exported` is a program of its own.
FLOORS = (
    ("errors", "exported"),
    ("files", "method"),
    ("parallel",),
    ("networks",),
    ("autoencoders",),
    ("conversion",),
    ("settings",),
    ("config", "data_spec", "settings_reference"),
    ("data",),
    ("checkpoints",),
    ("sampling",),
    ("model",),
    ("evaluation", "training"),
    ("planning",),
    ("commands",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or not path.stem.startswith("__")]


def room(path: pathlib.Path) -> str:
    """The package, or top module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> list[str]:
    """The rooms that a file imports from, wherever in it the import stands."""
    rooms = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms += [name.split(".")[1] for name in names if name.startswith("ucgm_jax.")]
    return rooms


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_import_runs_up(path):
    ours = room(path)
    for theirs in imported(path):
        assert theirs == ours or FLOOR[theirs] < FLOOR[ours], f"{ours} imports {theirs}"


def test_method_imports_nothing_else_of_the_project():
    assert {theirs for path in PACKAGE.glob("method/*.py") for theirs in imported(path)} <= {"method"}


def test_flags_are_named_by_commands_alone():
    """An option of another program in an environment variable is not one of ours: those stand in capitals or --xla."""
    for path in FILES:
        if room(path) in ("commands", "exported"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = node.value.replace("=", " ").replace("'", " ").split()
                flags = [word for word in words if word.startswith("--") and word[2:3].isalpha()]
                assert not [flag for flag in flags if not flag.startswith("--xla")], f"{path}: {flags}"


def test_files_and_functions_are_short():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno + 1 <= 60, f"{path}: {node.name}"
