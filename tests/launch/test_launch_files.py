"""What the launch scripts start, with recorders in place of kubectl, gcloud, mpirun, srun and their like."""

import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from ucgm_jax.commands import flags, main, train
from ucgm_jax.parallel import hosts
from ucgm_jax.parallel.hosts import Hosts

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
PROGRAMS = ("python", "kubectl", "gcloud", "mpirun", "srun", "scontrol", "sleep")
# Notes how it was called; ends with the next of the exit codes given for its name, or with 75 when it gets SIGUSR1.
RECORDER = """#!{python} -IS
import json, os, signal, sys
name = os.path.basename(sys.argv[0])
codes = json.loads(os.environ["CODES"]).get(name, [0])
earlier = [json.loads(line)["command"][0] for line in open(os.environ["RECORD"])]
code = codes[min(earlier.count(name), len(codes) - 1)]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
text = sys.stdin.read() if name == "kubectl" else ""
if name == "python":
    print("process")
with open(os.environ["RECORD"], "a") as file:
    entry = dict(command=[name, *sys.argv[1:]], input=text, environment=dict(os.environ))
    print(json.dumps(entry), file=file)
if code == "signal":
    signal.sigwait([signal.SIGUSR1])
    code = 75
sys.exit(code)
"""

TRAIN = ["--config=configs/digits.py", "--workdir=/shared/my run", '--config.data.path=/it\'s $(HOME) & \\1 #"b"']
KUBERNETES = ["--image=registry.example:5000/ucgm@sha256:1f", "--claim=disk", "--name=job"]
GPUS = [*KUBERNETES, "--pods=2", "--gpus=8"]
TPUS = [*KUBERNETES, "--pods=4", "--tpus=4", "--tpu-accelerator=tpu-v5-lite-podslice", "--tpu-topology=4x4"]
# Script -> what comes before the training's flags.
SCRIPTS = {"slurm.sh": [], "mpi.sh": ["a,b,c,d", "--"], "tpu_pod.sh": ["pod", "us-central2-b", "--"]}
SCRIPTS["kubernetes.sh"] = [*GPUS, "--"]


class Recorded:
    """Runs launch scripts; `calls` are what they called."""

    def __init__(self, folder):
        self.file, self.programs = folder / "calls", folder / "bin"
        self.programs.mkdir()
        for name in PROGRAMS:
            (self.programs / name).write_text(RECORDER.format(python=sys.executable))
            (self.programs / name).chmod(0o755)

    def start(self, script, *arguments, codes=(), **environment):
        self.file.write_text("")
        variables = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "RECORD": str(self.file),
            "CODES": json.dumps(dict(codes)),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = ["bash", str(LAUNCH / script), *arguments]
        return subprocess.Popen(command, env=variables | environment, cwd=LAUNCH.parent, **pipes)

    def run(self, script, *arguments, **options):
        process = self.start(script, *arguments, **options)
        process.out, process.err = process.communicate(timeout=60)
        return process

    @property
    def calls(self):
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    @property
    def commands(self):
        return [call["command"] for call in self.calls]


@pytest.fixture
def recorded(tmp_path):
    return Recorded(tmp_path)


@pytest.fixture
def dry_run(monkeypatch, capsys):
    """Gives a command of a launch script to the real `ucgm train --dry-run`; returns the lines it prints."""

    def run(command, environment):
        assert command[1:4] == ["-m", "ucgm_jax", "train"]
        arguments = [*command[3:], *["--dry-run"] * ("--dry-run" not in command)]
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert main.main(arguments) == 0
        return capsys.readouterr().out.splitlines()

    return run


def received(arguments):
    """The arguments as Kubernetes gives them to the process: $(NAME) is a variable's value, $$ is $."""
    return [re.sub(r"\$\$|\$\(HOME\)", lambda found: {"$$": "$"}.get(found[0], "/root"), text) for text in arguments]


def manifest(text):
    service, job = yaml.safe_load_all(text)
    return service, job, job["spec"]["template"]["spec"]


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_syntax(script):
    assert subprocess.run(["bash", "-n", str(LAUNCH / script)], check=False).returncode == 0


SLURM = lambda index: Hosts("SLURM", "node0:61441", index, 2)
MPI = lambda index: Hosts("flags and Open MPI", "a:8476", index, 4)
PODS = lambda index: Hosts("flags and Kubernetes", "job-0.job:8476", index, 2)
SLICE = lambda index: Hosts("TPU pod", "job-0.job:8476", index, 4)


@pytest.mark.parametrize(
    "script, arguments, places, expected",
    [
        ("slurm.sh", ["2"], ["node 0", "node 1"], SLURM),
        ("mpi.sh", ["a,b,c,d", "--"], ["a", "b", "c", "d"], MPI),
        ("kubernetes.sh", [*GPUS, "--"], ["# job-0.job", "# job-1.job"], PODS),
        ("kubernetes.sh", [*TPUS, "--"], [f"# job-{index}.job" for index in range(4)], SLICE),
    ],
)
def test_dry_run_asks_each_process_what_it_would_be(recorded, script, arguments, places, expected):
    result = recorded.run(script, "--dry-run", *arguments, *TRAIN)
    assert result.returncode == 0, result.err
    assert len(recorded.calls) == len(places)  # nothing but python is called
    for index, call in enumerate(recorded.calls):
        assert call["command"][:4] == ["python", "-m", "ucgm_jax", "train"] and call["command"][-1] == "--dry-run"
        config, rest = flags.split_config(call["command"][4:-1])
        given = train.parser().parse_args(rest)
        assert [*config, f"--workdir={given.workdir}"] == [TRAIN[0], TRAIN[2], TRAIN[1]]
        where = given.coordinator, given.process_index, given.process_count
        assert hosts.find(*where, call["environment"]) == expected(index)
    lines = [line for line in result.out.splitlines() if line.rstrip(":") in places or line.endswith("  process")]
    mark = "# " * (script == "kubernetes.sh")
    assert lines == [line for place in places for line in (f"{place}:", f"{mark}  process")]


@pytest.mark.parametrize("script, program", [("slurm.sh", "srun"), ("mpi.sh", "mpirun"), ("tpu_pod.sh", "gcloud")])
def test_start_runs_the_command_that_the_dry_run_printed(recorded, script, program):
    cores = {"SLURM_CPUS_PER_TASK": "32"}
    count = ["3"] * (script == "slurm.sh")
    printed = recorded.run(script, "--dry-run", *count, *SCRIPTS[script], *TRAIN, **cores).out.splitlines()
    assert recorded.run(script, *SCRIPTS[script], *TRAIN, **cores).returncode == 0
    assert recorded.commands in [[shlex.split(line)] for line in printed if line.split()[:1] == [program]]


def test_commands_that_start(recorded, dry_run):
    recorded.run("slurm.sh", *TRAIN, SLURM_CPUS_PER_TASK="32")
    step = ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=32"]
    assert recorded.commands == [[*step, "python", "-m", "ucgm_jax", "train", *TRAIN]]
    variables = {"JOB_ID": "7", "STEP_NODELIST": "n[3-4]", "NTASKS": "2", "PROCID": "1"}
    lines = dry_run(recorded.commands[0][3:], {f"SLURM_{name}": value for name, value in variables.items()})
    assert lines[0] == "process 1 of 2 (SLURM), coordinator n3:61447"
    recorded.run("slurm.sh", *TRAIN)
    assert recorded.commands == [["srun", "--kill-on-bad-exit=1", "python", "-m", "ucgm_jax", "train", *TRAIN]]

    recorded.run("mpi.sh", "a,b,c,d", "--", *TRAIN)
    options = shlex.split("mpirun --host a:1,b:1,c:1,d:1 --map-by node --bind-to none -x PATH -np 4")
    [command] = recorded.commands
    assert command == [*options, "python", "-m", "ucgm_jax", "train", "--coordinator=a:8476", *TRAIN]
    lines = dry_run(command[len(options) :], {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"})
    assert lines[0] == "process 2 of 4 (flags and Open MPI), coordinator a:8476"

    recorded.run("tpu_pod.sh", "pod", "us-central2-b", "--", *TRAIN, UCGM_PYTHON=".venv/bin/python")
    [command] = recorded.commands
    assert command[:-1] == shlex.split("gcloud compute tpus tpu-vm ssh pod --zone=us-central2-b --worker=all")
    remote = shlex.split(command[-1].removeprefix("--command="))
    assert remote[:4] == ["cd", "~/ucgm_jax", "&&", ".venv/bin/python"]
    assert remote[4:] == ["-m", "ucgm_jax", "train", "--coordinator=auto", *TRAIN]
    assert dry_run(remote[3:], {})[0].startswith("processes: found by JAX")


@pytest.mark.parametrize("script, program", [("mpi.sh", "mpirun"), ("tpu_pod.sh", "gcloud")])
def test_starts_again_after_a_preemption_alone(recorded, script, program):
    def names(*codes):
        result = recorded.run(script, *SCRIPTS[script], *TRAIN, codes={program: codes})
        assert result.returncode == codes[-1]
        return [command[0] for command in recorded.commands]

    assert names(75, 134, 0) == [program, "sleep", program, "sleep", program]
    for code in (1, 2, 137):
        assert names(code) == [program]


@pytest.mark.parametrize("code", [0, 1, 2, 75, 134])
def test_slurm_queues_the_job_again_after_a_preemption_alone(recorded, code):
    result = recorded.run("slurm.sh", *TRAIN, codes={"srun": [code]}, SLURM_JOB_ID="7")
    assert result.returncode == code
    assert recorded.commands[1:] == [["scontrol", "requeue", "7"]] * (code in (75, 134))


def test_mpi_passes_a_stop_on_and_does_not_start_again(recorded):
    process = recorded.start("mpi.sh", "a,b", "--", *TRAIN, codes={"mpirun": ["signal"]})
    deadline = time.monotonic() + 60
    while not recorded.calls and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75 and len(recorded.calls) == 1


def test_manifest_for_gpus(recorded, dry_run):
    service, job, pod = manifest(recorded.run("kubernetes.sh", "--dry-run", *GPUS, "--", *TRAIN).out)
    assert service["metadata"]["name"] == job["metadata"]["name"] == pod["subdomain"] == "job"
    assert service["spec"] == {"clusterIP": "None", "selector": {"job-name": "job"}}
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    rules = {rule["action"]: rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"][::2]}
    assert rules == {"Ignore": [75], "FailJob": [2]} and "nodeSelector" not in pod
    [container], [volume] = pod["containers"], pod["volumes"]
    assert container["image"] == "registry.example:5000/ucgm@sha256:1f"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert volume["persistentVolumeClaim"] == {"claimName": "disk"}
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/shared"}]
    command = received(container["command"])
    assert command[4:] == ["--coordinator=job-0.job:8476", "--process-count=2", *TRAIN]
    environment = {"JOB_COMPLETION_INDEX": "1"}
    assert dry_run(command, environment)[0] == "process 1 of 2 (flags and Kubernetes), coordinator job-0.job:8476"


def test_manifest_for_tpus(recorded, dry_run):
    _, job, pod = manifest(recorded.run("kubernetes.sh", "--dry-run", *TPUS, "--", *TRAIN).out)
    assert job["spec"]["completions"] == 4
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    command = received(pod["containers"][0]["command"])
    assert command == ["python", "-m", "ucgm_jax", "train", *TRAIN]
    told = {"JOB_COMPLETION_INDEX": "3", "TPU_WORKER_ID": "3"}
    told["TPU_WORKER_HOSTNAMES"] = ",".join(f"job-{index}.job" for index in range(4))
    assert dry_run(command, told)[0] == "process 3 of 4 (TPU pod), coordinator job-0.job:8476"


@pytest.mark.parametrize("arguments", [GPUS, TPUS])
def test_kubectl_gets_the_manifest_of_the_dry_run(recorded, arguments):
    expected = manifest(recorded.run("kubernetes.sh", "--dry-run", *arguments, "--", *TRAIN).out)
    assert recorded.run("kubernetes.sh", *arguments, "--", *TRAIN, codes={"kubectl": [4]}).returncode == 4
    assert recorded.commands == [["kubectl", "apply", "-f", "-"]]
    assert manifest(recorded.calls[0]["input"]) == expected


def test_template_is_yaml():
    assert manifest((LAUNCH / "kubernetes.yaml").read_text())[1]["kind"] == "Job"


def without(name, arguments=GPUS):
    return [argument for argument in arguments if not argument.startswith(f"--{name}=")]


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("kubernetes.sh", [], "--image: must name the container image"),
        ("kubernetes.sh", [*without("claim"), "--", *TRAIN], "--claim: must name"),
        ("kubernetes.sh", [*without("pods"), "--", *TRAIN], "--pods: must be the number"),
        ("kubernetes.sh", [*GPUS, "--pods=some", "--", *TRAIN], "--pods=some: must be the number"),
        ("kubernetes.sh", [*without("gpus"), "--", *TRAIN], "--gpus: must be the number"),
        ("kubernetes.sh", [*GPUS, "--tpus=4", "--", *TRAIN], "--gpus=8: must not be given with --tpus=4"),
        ("kubernetes.sh", [*without("tpus", TPUS), "--gpus=1", "--", *TRAIN], "--tpus: must be given with"),
        ("kubernetes.sh", [*without("tpu-accelerator", TPUS), "--", *TRAIN], "--tpu-accelerator: must be"),
        ("kubernetes.sh", [*without("tpu-topology", TPUS), "--", *TRAIN], "--tpu-topology: must be"),
        ("kubernetes.sh", [*TPUS, "--pods=2", "--", *TRAIN], "--tpu-topology=4x4: must have as many chips"),
        ("kubernetes.sh", [*GPUS, "--name=My_job", "--", *TRAIN], "--name=My_job: must be"),
        ("kubernetes.sh", [*GPUS, "--", *TRAIN[1:]], "--config: must name a config, such as digits"),
        ("kubernetes.sh", [*GPUS, "--", TRAIN[0]], "--workdir: must be a folder in /shared"),
        ("kubernetes.sh", [*GPUS, "--", TRAIN[0], "--workdir=runs"], "--workdir=runs: must be a folder in /shared"),
        ("kubernetes.sh", [*GPUS, *TRAIN], "--config=configs/digits.py: must be a flag of launch/kubernetes.sh"),
        ("slurm.sh", ["--dry-run"], "--dry-run: must be followed by the number of nodes"),
        ("slurm.sh", ["--dry-run", *TRAIN], "--dry-run: must be followed by the number of nodes"),
        ("mpi.sh", ["a,b"], "usage: "),
        ("tpu_pod.sh", ["--dry-run", "pod"], "usage: "),
    ],
)
def test_what_is_missing_is_named(recorded, script, arguments, message):
    result = recorded.run(script, *arguments)
    assert (result.returncode, result.out, recorded.calls) == (2, "", [])
    assert result.err.startswith(f"error: {message}") and result.err.count("\n") == 1


@pytest.mark.parametrize("script", ["slurm.sh", "mpi.sh", "kubernetes.sh"])
def test_dry_run_ends_with_the_exit_code_of_a_mistake(recorded, script):
    count = ["3"] * (script == "slurm.sh")
    result = recorded.run(script, "--dry-run", *count, *SCRIPTS[script], *TRAIN, codes={"python": [2]})
    assert result.returncode == 2 and len(recorded.calls) == 1
