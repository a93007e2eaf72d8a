"""Sizes that cannot fit are refused by an estimate, rather than by running out of memory."""

from __future__ import annotations

import os

from ucgm_jax.errors import UserError


def host_memory() -> int:
    """Bytes of memory that this host has; 2**40 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**40


def check_room(key: str, needs: int, has: int | None = None, where: str = "this host") -> None:
    """Refuses what needs more bytes than there are.

    Args:
      key: what asks for it, such as "batch_size=4096".
      needs: bytes, at the least.
      has: bytes that there are; None for the host's memory.
      where: they are, for the message.

    Raises:
      UserError: it does not fit.
    """
    has = host_memory() if has is None else has
    if needs > has:
        raise UserError(f"{key:.100}: needs at least {_size(needs)}, {where} has {_size(has)}")


def _size(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size < 2**60 else "10^9 GiB and more"
