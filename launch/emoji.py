"""Makes class folders of images from npm's package emoji-datasource-twitter: one folder for each of its categories.

    python launch/emoji.py --package=emoji-datasource-twitter-16.0.0.tgz --out=runs/emoji/images

The pictures are 64 x 64 with transparency, which becomes white. They are Twitter's (Twemoji, CC-BY 4.0).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pathlib
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from PIL import Image

from ucgm_jax.commands import flags
from ucgm_jax.data.picture_files import to_rgb
from ucgm_jax.errors import UserError

LIST, PICTURES = "emoji.json", "img/twitter/64"


class Package:
    """The files of an npm package.

    Args:
      path: its folder, or its .tgz.

    Raises:
      UserError: it cannot be opened.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self._archive = path, None
        if not path.is_dir():
            with self._errors():
                self._archive = tarfile.open(path)  # noqa: SIM115

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, tarfile.TarError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--package={self.path}: not the package emoji-datasource-twitter: {reason}") from error

    def read(self, path: str) -> bytes:
        """The bytes of one file.

        Raises:
          UserError: the package lacks it.
        """
        with self._errors():
            if self._archive is None:
                return (self.path / path).read_bytes()
            return self._archive.extractfile(f"package/{path}").read()


def folder_name(category: str) -> str:
    """A category such as "Food & Drink" as a folder's name: "food-and-drink"."""
    return re.sub(r"[^a-z0-9]+", "-", category.lower().replace("&", "and")).strip("-")


def pictures(listed: list[Mapping[str, Any]]) -> dict[str, str]:
    """File name -> category of every picture in the package's list, skin tones included."""
    result = {}
    for emoji in listed:
        for one in (emoji, *emoji.get("skin_variations", {}).values()):
            if one["has_img_twitter"]:
                result[one["image"]] = emoji["category"]
    return result


def prepare(package: pathlib.Path, out: pathlib.Path) -> dict[str, int]:
    """Writes the class folders.

    Args:
      package: the package's folder, or its tarball.
      out: folder to make; must not exist. It appears once it is whole.

    Returns:
      How many pictures each class folder has.

    Raises:
      UserError: the package is not as expected, or `out` is there already.
    """
    if out.exists():
        raise UserError(f"--out={out}: is already there")
    files, partial, counts = Package(package), out.with_name(out.name + ".partial"), {}
    try:
        found = pictures(json.loads(files.read(LIST)))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"--package={package}: {LIST} is not a list of emoji") from error
    shutil.rmtree(partial, ignore_errors=True)
    for file in sorted(found):
        name = folder_name(found[file])
        (partial / name).mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(files.read(f"{PICTURES}/{file}"))) as image:
            to_rgb(image).save(partial / name / file)
        counts[name] = counts.get(name, 0) + 1
    if not counts:
        raise UserError(f"--package={package}: {LIST} lists no pictures")
    partial.rename(out)
    return counts


def parser() -> flags.Parser:
    """All flags."""
    result = flags.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--package", required=True, help="the package's folder, or its .tgz")
    result.add_argument("--out", default="runs/emoji/images", help="folder to make")
    return result


def run(package: str, out: str) -> None:
    """Writes the class folders and prints how many pictures each has."""
    counts = prepare(pathlib.Path(package), pathlib.Path(out))
    for label, (name, count) in enumerate(sorted(counts.items())):
        print(f"{label}  {name:<20}{count:>6}")
    print(f"{sum(counts.values())} images of {len(counts)} classes: {out}")


def main(arguments: Sequence[str]) -> int:
    """The command; see the module's docstring."""
    known = parser()
    return flags.run(known, lambda: run(**vars(known.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
