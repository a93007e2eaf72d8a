"""How the mistakes of users are found and told."""

import pytest

from ucgm_jax import errors
from ucgm_jax.commands import flags
from ucgm_jax.files import atomic, json_files


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        (b"not json", "Expecting value"),
        (b'{"steps": ', "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        (b"[1, 2]", "holds list, must hold an object"),
        (b'{"a": 1, "c": 2}', "lacks b"),
    ],
)
def test_damaged_json_is_a_mistake_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.UserError, match=message) as caught:
        json_files.read(path, "the plan of an evaluation", "a", "b")
    assert str(caught.value).startswith(f"{path}: cannot be read as the plan of an evaluation: ")
    assert "\n" not in str(caught.value)


def test_json_is_read(tmp_path):
    (tmp_path / "plan.json").write_text('{"steps": [1, 2]}')
    assert json_files.read(tmp_path / "plan.json", "a plan") == {"steps": [1, 2]}


def test_a_path_that_the_system_refuses_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    code = flags.run(flags.parser("x", ""), lambda: (tmp_path / "file" / "x.npz").write_text("x"))
    assert code == 2 and capsys.readouterr().err == f"error: {tmp_path / 'file' / 'x.npz'}: Not a directory\n"


def test_other_failures_of_the_system_keep_their_traceback():
    def main():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        flags.run(flags.parser("x", ""), main)


def test_room_is_made_before_the_work(tmp_path):
    atomic.make_room(tmp_path / "new" / "folder" / "x.npz", "--out")
    assert (tmp_path / "new" / "folder").is_dir() and not list((tmp_path / "new" / "folder").iterdir())
    with pytest.raises(errors.UserError, match=f"--out={tmp_path / 'new'}: is a folder"):
        atomic.make_room(tmp_path / "new", "--out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.UserError, match=f"--out={tmp_path / 'file' / 'x.npz'}: "):
        atomic.make_room(tmp_path / "file" / "x.npz", "--out")
