"""Trains or tunes a model: python -m ucgm_jax.train --config=configs/digits.py --workdir=DIR [--config.key=value ...].

Goes on from the newest checkpoint if the work folder has one.
"""

from __future__ import annotations

import logging

from ucgm_jax import config, errors


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ucgm_jax").setLevel(logging.INFO)
    run_config, given = config.parse_flags(argv, workdir=(None, "folder for checkpoints, metrics and samples"))
    config.build(run_config)  # most mistakes are found before the first, slower import
    from ucgm_jax.training import loop

    try:
        loop.train(run_config, given["workdir"])
    except loop.BadSteps as error:
        logging.getLogger("ucgm_jax").error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    errors.run(main)
