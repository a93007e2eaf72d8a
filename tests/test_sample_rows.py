"""ucgm sample with several numbers of steps: one picture, a row for each."""

import pytest
from PIL import Image

from tests.commands import invoke
from tests.training.small import ANY_STEP, small_config, train
from ucgm_jax import UserError
from ucgm_jax.commands import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "any_step"
    train(small_config(train__steps=2, sampler__style="any", **ANY_STEP), folder)
    return folder


def test_a_row_for_each_number_of_steps(folder, tmp_path, capsys):
    heights = []
    for steps in ("1,2,4", "1,2"):
        out = tmp_path / f"{steps}.png"
        invoke(sample, f"--checkpoint={folder}", f"--steps={steps}", "--labels=0-9", f"--out={out}")
        heights.append(Image.open(out).size[1])
    assert heights[0] * 2 == heights[1] * 3
    assert "10 samples of step 2 in 1 step, 2 steps, 4 steps, a row each" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--steps=1,2", "--out={}/x.npz"], "--out=.*must end in .png"),
        (["--steps=1,0", "--out={}/x.png"], "steps=0: must be at least 1"),
        (["--steps=1,many", "--out={}/x.png"], "whole numbers"),
        (["--steps=2", "--order=2", "--out={}/x.png"], "--order=2: must be 1: a jump's output"),
    ],
)
def test_mistakes_are_refused(folder, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        invoke(sample, f"--checkpoint={folder}", *(flag.format(tmp_path) for flag in flags))
    assert not list(tmp_path.iterdir())
