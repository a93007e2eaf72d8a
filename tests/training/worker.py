"""One process of a run on several hosts, for tests: python -m tests.training.worker WORKDIR OPTIONS, as JSON.

OPTIONS: "index", "count" and "port" of the processes; "config", changes of the small config; "seconds", a pause after
each step; "heartbeat". Beside WORKDIR it notes the step and the examples of each batch that it trains on, in
WORKDIR.seen.INDEX.
"""

import json
import sys
import time

from ucgm_jax import errors
from ucgm_jax.commands import flags
from ucgm_jax.parallel import hosts


def record(loop, path, pause):
    """Notes the indices of each batch when the loop takes it."""
    read, place = loop.pipeline.batches, loop.pipeline.to_devices
    taken, first = [], [0]

    def batches(source, *, batch_size, position, **options):
        first[0] = position // batch_size + 1
        for batch in read(source, batch_size=batch_size, position=position, **options):
            taken.append(batch["index"])
            yield batch

    def to_devices(*arguments, **options):
        with open(path, "a") as file:
            for number, batch in enumerate(place(*arguments, **options)):
                print(first[0] + number, *taken[number], file=file, flush=True)
                time.sleep(pause)
                yield batch

    loop.pipeline.batches, loop.pipeline.to_devices = batches, to_devices


def main(argv):
    workdir, options = argv[1], json.loads(argv[2])
    hosts.HEARTBEAT_SECONDS, hosts.SHUTDOWN_SECONDS = options["heartbeat"], options["heartbeat"]
    alone, several = options["count"] == 1, (f"127.0.0.1:{options['port']}", options["index"], options["count"])
    hosts.start(hosts.find(*(() if alone else several), environment={}))
    from tests.training.small import small_config, train
    from ucgm_jax.parallel import processes
    from ucgm_jax.training import loop

    record(loop, f"{workdir}.seen.{options['index']}", options["seconds"])
    with processes.ending_all_on_failure():
        train(small_config(**options["config"]), workdir)
    return 0


if __name__ == "__main__":
    errors.set_up_logging()
    sys.exit(flags.run(flags.parser("worker", ""), lambda: main(sys.argv)))
