"""Trains or tunes a model: python -m ucgm_jax.train --config=configs/digits.py --workdir=DIR [--config.key=value ...].

Goes on from the newest checkpoint if the work folder has one.
"""

from __future__ import annotations

from ucgm_jax import config, errors


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    errors.set_up_logging()
    run_config, given = config.parse_flags(argv, workdir=(None, "folder for checkpoints, metrics and samples"))
    config.build(run_config)  # most mistakes are found before the first, slower import
    from ucgm_jax.training import loop

    loop.train(run_config, given["workdir"])
    return 0


if __name__ == "__main__":
    errors.run(main)
