"""How the mistakes of users are found and told."""

import pytest

from ucgm_jax import errors


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        (b"not json", "Expecting value"),
        (b'{"steps": ', "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        (b"[1, 2]", "holds list, must hold an object"),
    ],
)
def test_damaged_json_is_a_mistake_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.UserError, match=message) as caught:
        errors.read_json(path, "the plan of an evaluation")
    assert str(caught.value).startswith(f"{path}: cannot be read as the plan of an evaluation: ")
    assert "\n" not in str(caught.value)


def test_json_is_read(tmp_path):
    (tmp_path / "plan.json").write_text('{"steps": [1, 2]}')
    assert errors.read_json(tmp_path / "plan.json", "a plan") == {"steps": [1, 2]}
