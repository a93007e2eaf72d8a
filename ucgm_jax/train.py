"""Trains or tunes a model: python -m ucgm_jax.train --config=configs/digits.py --workdir=DIR [--config.key=value ...].

Goes on from the newest checkpoint if the work folder has one. On several hosts each runs this same command, with
--coordinator, --process-index and --process-count where the environment does not tell them (`ucgm_jax.hosts`);
--dry-run prints what would start where, and starts nothing. Exit code 75: preempted, everything is saved, start again.
"""

from __future__ import annotations

from ucgm_jax import config, errors, hosts


def main(argv: list[str]) -> int:
    """The command; see the module's docstring."""
    errors.set_up_logging()
    argv, given_hosts = hosts.take_flags(argv)
    run_config, given = config.parse_flags(
        argv,
        workdir=(None, "folder for checkpoints, metrics and samples"),
        **{"dry-run": (False, "print what would start where")},
    )
    settings = config.build(run_config)  # most mistakes are found before the first, slower import
    found = hosts.find(given_hosts)
    if given["dry-run"]:
        print(hosts.plan(found, settings))
        return 0
    hosts.start(found)
    from ucgm_jax import processes
    from ucgm_jax.training import loop

    with processes.leaving_at_once():
        loop.train(run_config, given["workdir"])
    return 0


if __name__ == "__main__":
    errors.run(main)
