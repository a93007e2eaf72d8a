"""What may go on in a work folder, and what is refused before anything is written."""

import pytest

from tests.training.small import settings_of
from ucgm_jax.errors import UserError
from ucgm_jax.training import work_folder


def test_the_same_start_may_be_spelled_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    config = lambda start: settings_of(train__init_from=start, train__teacher_from=start)
    work_folder.begin(folder, config("runs/a/"))
    for same in ("runs/a", "./runs//a", str(tmp_path / "runs" / "a")):
        work_folder.check(folder, config(same))
    for other in ("runs/b", ""):
        with pytest.raises(UserError, match=f"train.init_from='{other}': .* was begun with 'runs/a/'"):
            work_folder.check(folder, config(other))


@pytest.mark.parametrize("key, value", [("remat", "full"), ("unroll", 2), ("attention", "xla")])
def test_how_a_network_computes_may_change(tmp_path, key, value):
    work_folder.begin(tmp_path / "run", settings_of())
    work_folder.check(tmp_path / "run", settings_of(**{f"network__{key}": value}))
    with pytest.raises(UserError, match="network.compute_dtype='bfloat16': .* was begun with 'float32'"):
        work_folder.check(tmp_path / "run", settings_of(network__compute_dtype="bfloat16"))


@pytest.mark.parametrize("content", ["not json", "[1, 2]", '{"train": '])
def test_a_damaged_config_is_one_line(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"{path}: cannot be read as the config"):
        work_folder.check(tmp_path, settings_of())
    assert path.read_text() == content


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match=f"workdir={file}: is a file"):
        work_folder.check(file, settings_of())
    for path in (file / "run", file):
        with pytest.raises(UserError, match=f"workdir={path}: (Not a directory|File exists)"):
            work_folder.begin(path, settings_of())
    assert file.read_text() == "mine"
