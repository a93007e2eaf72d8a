"""What the data of a network are: given by data sets, kept by checkpoints, read by sampling and decoding."""

from __future__ import annotations

import dataclasses
from typing import Any

from ucgm_jax.autoencoders.normalisation import Normalisation
from ucgm_jax.autoencoders.published import latents_name
from ucgm_jax.errors import UserError
from ucgm_jax.files.reading import conform, whole
from ucgm_jax.settings import Settings

POINTS = ("two_moons", "s_curve", "swiss_roll")  # data sets that are no images


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The space that a network's samples lie in.

    Attributes:
      shape: (H, W, C) of one example.
      num_classes: number of labels.
      kind: "pixels" (images in [-1, 1]), "points" (one pixel with D channels) or "latents".
      data_set: name of the data set (`data.name`); "" where it is not known, as of converted weights.
      autoencoder: published name of the autoencoder whose latents these are; "" for other data, or where not known.
      normalisation: from the autoencoder's latents to the data; None for other data, or where not known.
    """

    shape: tuple[int, int, int]
    num_classes: int
    kind: str = "pixels"
    data_set: str = ""
    autoencoder: str = ""
    normalisation: Normalisation | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> DataSpec:
        """The inverse of `to_json`.

        Raises:
          ValueError, TypeError, KeyError: it is not what `to_json` gives.
        """
        texts = {name: str for name in ("kind", "data_set", "autoencoder")}
        conform(stored, texts | {"shape": [whole(1)], "num_classes": whole(), "normalisation": (dict, None)})
        normalisation = stored["normalisation"] and Normalisation.from_json(stored["normalisation"])
        height, width, channels = map(int, stored["shape"])
        return cls(**stored | {"shape": (height, width, channels), "normalisation": normalisation})

    def check_autoencoder(self, name: str, key: str = "autoencoder.name") -> None:
        """Refuses an autoencoder whose latents these are not.

        Args:
          name: published name.
          key: of the setting that has it, for the message.

        Raises:
          UserError: naming both.
        """
        if self.kind == "latents" and self.autoencoder and latents_name(name) != latents_name(self.autoencoder):
            raise UserError(f"{key}={name!r}: the data are latents of {self.autoencoder}")


def described(settings: Settings, normalisation: Normalisation | None = None) -> DataSpec:
    """What a config itself says of its data, where neither these nor a stored `DataSpec` are at hand.

    A config without a data set, as of converted weights, says latents by their number of channels alone.
    """
    data = settings.data
    shape = (data.size, data.size, data.channels)
    if data.name == "latents" or (not data.name and data.size > 1 and data.channels not in (1, 3)):
        autoencoder = settings.autoencoder.name if data.name else ""
        return DataSpec(shape, data.num_classes, "latents", data.name, autoencoder, normalisation)
    kind = "points" if data.name in POINTS or data.size == 1 else "pixels"
    return DataSpec(shape, data.num_classes, kind, data.name)
