"""How the original authors' files differ from the published naming: prefixes, extra heads, older names.

SiT           REPA and REPA-E keep their alignment heads ("projectors."), REPA-E its latent statistics ("bn."); early
              REPA files number the blocks after the aligned ones from 0 again ("decoder_blocks.")
LightningDiT  nothing but "module."
DDT           a Lightning file with two networks, "denoiser." and "ema_denoiser.", and the trainer's alignment head
EDM2          the U-Net inside its preconditioner ("unet."), beside a head that weights the loss ("logvar_")
UNet+         the U-Net inside its preconditioner ("model."), with a layer for augmentation labels
diffusers_kl  files from before diffusers 0.18 call the matrices of attention otherwise
latent_diffusion_kl  parts that serve the autoencoder's own training: discriminator, foundation model, projection
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

from ucgm_jax.conversion.tables import ConversionError

# Left in keys by wrappers of modules, anywhere and in any number: those of PyTorch's data-parallel training, compiling,
# checkpointing of activations and fully sharded training, and Lightning's.
WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"}
# What a trainer's module calls the network in it, and the average beside it, where a family has no names of its own.
TRAINERS = {
    "ema": ("ema_model.", "model_ema.", "ema.", "net_ema.", "ema_net."),
    "model": ("model.", "net.", "network."),
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def new_attention(name: str) -> str:
    """A key of diffusers' attention under its newer name; any other key as it is."""
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name


@dataclasses.dataclass(frozen=True)
class Original:
    """What sets the original files of one family apart.

    Attributes:
      prefixes: choice of weights ("ema" or "model") -> prefix of that network's keys. A file without a key that has
        any of the prefixes is in the published naming.
      extra: prefixes of keys that belong to no network of this project and are left out.
      extra_buffers: those of `extra` that are no parameters: they have no place in an optimiser's order.
      tail: prefix of the blocks that follow the others but are numbered from 0; "" for none.
      rename: older name -> published name, of a single key.
    """

    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: tuple[str, ...] = ()
    extra_buffers: tuple[str, ...] = ()
    tail: str = ""
    rename: Callable[[str], str] = str


ORIGINALS: dict[str, Original] = {
    "SiT": Original(extra=("projectors.", "bn."), extra_buffers=("bn.",), tail="decoder_blocks."),
    "LightningDiT": Original(),
    "TiT": Original(),
    "DDT": Original({"ema": "ema_denoiser.", "model": "denoiser."}, extra=("diffusion_trainer.",)),
    "EDM2": Original(
        {"ema": "unet.", "model": "unet."},
        extra=("logvar_fourier.", "logvar_linear."),
        extra_buffers=("logvar_fourier.",),
    ),
    "UNet+": Original({"ema": "model.", "model": "model."}, extra=("map_augment.",)),
    "diffusers_kl": Original(rename=new_attention),
    "latent_diffusion_kl": Original(extra=("loss.", "foundation_model.", "linear_proj.")),
}


def unwrapped(key: str) -> str:
    """The key without what wrappers of modules put into it."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS) or key


def _prefixes(original: Original, weights: str, names: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """The prefix of the wanted network's keys, and those of other networks beside it; "" for none."""
    names = list(names)
    there = lambda prefix: bool(prefix) and any(name.startswith(prefix) for name in names)
    wanted = original.prefixes.get(weights, "")
    if there(wanted):
        return wanted, tuple(set(original.prefixes.values()) - {wanted})
    if original.prefixes:
        return "", ()
    emas, models = (tuple(filter(there, TRAINERS[kind])) for kind in ("ema", "model"))
    found = {"ema": emas or models, "model": models or emas, "": emas or models}[weights]
    return (found[0], tuple({*emas, *models} - {found[0]})) if found else ("", ())


def published_names(family: str, weights: str, keys: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The published name of every key of a file.

    Args:
      family: of the network or autoencoder.
      weights: "ema" or "model".
      keys: of the file, in its order.

    Returns:
      Published name -> key in the file, and the keys that are left out. Keys that no rule covers keep their name, so
      that the key table finds them unknown.

    Raises:
      ConversionError: two keys have the same published name.
    """
    original = ORIGINALS.get(family, Original())
    names, left_out = dict[str, str](), list[str]()
    plain = {key: unwrapped(key) for key in keys}
    wanted, others = _prefixes(original, weights, plain.values())
    inside = bool(wanted)
    for key, name in plain.items():
        if inside and name.startswith(wanted):
            name = unwrapped(name.removeprefix(wanted))
        elif inside and others and name.startswith(others):
            left_out.append(key)
            continue
        if original.extra and name.startswith(original.extra):
            left_out.append(key)
            continue
        if original.tail:
            name = _renumbered(name, original.tail, plain.values())
        name = original.rename(name)
        if name in names:
            raise ConversionError(f"{names[name]} and {key} are the same tensor of {family}")
        names[name] = key
    return names, left_out


def _renumbered(name: str, tail: str, all_names: Iterable[str]) -> str:
    """A name in the tail, numbered on from the blocks that are not in it."""
    match = re.match(re.escape(tail) + r"(\d+)\.", name)
    if match is None:
        return name
    heads = {int(head[1]) for other in all_names if (head := re.match(r"blocks\.(\d+)\.", other))}
    return f"blocks.{max(heads, default=-1) + 1 + int(match[1])}.{name[match.end() :]}"
