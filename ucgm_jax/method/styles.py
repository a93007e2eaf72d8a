"""Styles of sampling, and which settings have a meaning in which."""

from __future__ import annotations

from typing import Any

from ucgm_jax.method.checks import check, one_of

STYLES = ("solver", "any", "few")


def check_style(settings: Any) -> None:
    """Raises a ValueError for what has no meaning in a style."""
    style, jumps = settings.style, settings.style != "solver"
    order = "1: a jump's output is no velocity to correct" if jumps else "1 or 2"
    kappa = f"0 with style={style}: a jump's output is a mean over its way already"
    renoise = "in [0, 1], and 0 but for style=any without stochasticity_ratio"
    apart = style == "any" and settings.stochasticity_ratio == 0
    check(
        settings,
        style=one_of(style, STYLES),
        order=(not jumps or settings.order == 1, order),
        extrapolation_ratio=(not jumps or settings.extrapolation_ratio == 0, kappa),
        renoise_ratio=(0 <= settings.renoise_ratio <= 1 and (apart or settings.renoise_ratio == 0), renoise),
    )
