"""One process of a run on several hosts, for tests: python -m tests.training.worker WORKDIR OPTIONS, as JSON.

OPTIONS: "index", "count", "port" of the processes; "config", changes of the small config; "seconds", a pause after each
step; "heartbeat". Beside WORKDIR it notes the examples that each of its steps trained on, in WORKDIR.seen.INDEX.
"""

import json
import time

from ucgm_jax import errors, hosts


def record(loop, path, pause):
    """Notes the indices of each batch when the loop takes it."""
    original = loop.pipeline.to_devices

    def to_devices(host_batches, sharding, **options):
        taken = []

        def noted():
            for batch in host_batches:
                taken.append(batch["index"])
                yield batch

        with open(path, "a") as file:
            for number, batch in enumerate(original(noted(), sharding, **options)):
                file.write(" ".join(map(str, taken[number])) + "\n")
                file.flush()
                time.sleep(pause)
                yield batch

    loop.pipeline.to_devices = to_devices


def main(argv):
    workdir, options = argv[1], json.loads(argv[2])
    hosts.HEARTBEAT_SECONDS = options.get("heartbeat", 10)
    hosts.SHUTDOWN_SECONDS = 10
    count = options.get("count", 1)
    flags = [f"--coordinator=127.0.0.1:{options['port']}", f"--process-count={count}"] if count > 1 else []
    flags += [f"--process-index={options['index']}"] if count > 1 else []
    hosts.start(hosts.find(hosts.take_flags(["worker", *flags])[1], {}))
    from tests.training.small import small_config
    from ucgm_jax.training import loop

    record(loop, f"{workdir}.seen.{options.get('index', 0)}", options.get("seconds", 0))
    loop.train(small_config(**options.get("config", {})), workdir)
    return 0


if __name__ == "__main__":
    errors.set_up_logging()
    errors.run(main)
