"""The emoji example's preparation, on a small package of the same layout."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from configs import emoji, emoji_small
from launch import emoji as script
from ucgm_jax import config
from ucgm_jax.data import sources
from ucgm_jax.errors import UserError


@pytest.fixture
def package(tmp_path):
    """Three emoji of two categories, one of them in two skin tones, and one without a picture."""
    entry = lambda image, **more: {"image": image, "has_img_twitter": True} | more
    tones = {"1F3FB": entry("c-1.png"), "1F3FC": entry("c-2.png", has_img_twitter=False)}
    listed = [
        entry("a.png", category="Food & Drink"),
        entry("b.png", category="Smileys & Emotion"),
        entry("c.png", category="Smileys & Emotion", skin_variations=tones),
        entry("d.png", category="Flags", has_img_twitter=False),
    ]
    folder = tmp_path / "package"
    (folder / script.PICTURES).mkdir(parents=True)
    (folder / script.LIST).write_text(json.dumps(listed))
    for number, name in enumerate(("a.png", "b.png", "c.png", "c-1.png")):
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[:32] = (40 * number, 10, 200, 255)  # the lower half is transparent
        Image.fromarray(pixels).save(folder / script.PICTURES / name)
    return folder


def tarball(folder):
    path = folder.with_suffix(".tgz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "package")
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_with_white_where_it_was_transparent(tmp_path, package, packed):
    out = tmp_path / "made" / "images"
    assert script.main([f"--package={tarball(package) if packed else package}", f"--out={out}"]) == 0
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert found == ["food-and-drink/a.png"] + [f"smileys-and-emotion/{name}.png" for name in ("b", "c-1", "c")]
    with Image.open(out / found[2]) as image:
        assert image.mode == "RGB" and image.getpixel((5, 5)) == (120, 10, 200)
        assert image.getpixel((5, 60)) == (255, 255, 255)
    for settings in (emoji.get_config(), emoji_small.get_config()):
        settings.data.path = str(out)
        source = sources.build(config.build(settings).data)
        assert (
            len(source) == 4 and source.spec.num_classes == 2 and source.spec.shape == (settings.data.size,) * 2 + (3,)
        )
        batch = source.read(np.arange(4), np.zeros(4, bool))
        assert batch["label"].tolist() == [0, 1, 1, 1] and batch["x"].max() == 1


def test_packages_that_do_not_fit(tmp_path, package):
    out = tmp_path / "images"

    def refused(path):
        with pytest.raises(UserError) as error:
            script.prepare(path, out)
        assert not out.exists() and "\n" not in str(error.value)
        return str(error.value)

    assert "none.tgz: not the package emoji-datasource-twitter" in refused(tmp_path / "none.tgz")
    (tmp_path / "damaged.tgz").write_bytes(b"nothing")
    assert "damaged.tgz: not the package" in refused(tmp_path / "damaged.tgz")
    (package / script.PICTURES / "c.png").unlink()
    assert "c.png" in refused(package)
    (package / script.LIST).write_text("{}")
    assert "emoji.json lists no pictures" in refused(package)
    (package / script.LIST).write_text("[3]")
    assert "emoji.json is not a list of emoji" in refused(package)
    out.mkdir()
    with pytest.raises(UserError, match="is already there"):
        script.prepare(package, out)
