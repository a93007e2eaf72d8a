"""Where weights lie: one file, or a folder with one, or with shards and the index that says which holds what."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ucgm_jax.conversion.tables import ConversionError
from ucgm_jax.files import json_files
from ucgm_jax.files.reading import DamagedFile, conform, plain_name
from ucgm_jax.files.safetensors import SafetensorsFile

INDEX = ".index.json"
PREFERRED = ".safetensors"


class ShardedSafetensors(Mapping):
    """Keys to arrays of several .safetensors files, as their index has them.

    Args:
      index: a JSON file with {"weight_map": {key: file beside it}}.

    Raises:
      UserError: it is no such file, or does not agree with the shards.
    """

    def __init__(self, index: pathlib.Path):
        stored = json_files.read(index, "an index of shards", "weight_map")
        try:
            files: dict[str, str] = conform(stored["weight_map"], {str: plain_name}, "weight_map")
        except DamagedFile as error:
            raise ConversionError(f"{index}: {error}") from error
        shards = {name: SafetensorsFile(index.parent / name) for name in sorted(set(files.values()))}
        for key, name in files.items():
            if key not in shards[name]:
                raise ConversionError(f"{index}: {name} does not hold {key[:200]}")
        for name, shard in shards.items():
            unknown = [key for key in shard if files.get(key) != name]
            if unknown:
                raise ConversionError(f"{index}: does not name {unknown[0][:200]}, which {name} holds")
        self._shards = {key: shards[name] for key, name in files.items()}

    def __getitem__(self, key: str) -> Any:
        return self._shards[key][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


def in_folder(folder: pathlib.Path, readable: tuple[str, ...]) -> pathlib.Path | None:
    """The index of shards in a folder, or the only file of weights, .safetensors first; None if there is none.

    Raises:
      ConversionError: there are several.
    """
    inside = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    for kind in (f"{PREFERRED}{INDEX}", PREFERRED, *readable):
        found = [path for path in inside if path.name.endswith(kind)]
        if len(found) > 1:
            raise ConversionError(f"{folder}: {len(found)} files of weights, name one: {found[0].name}, ...")
        if found:
            return found[0]
    return None
