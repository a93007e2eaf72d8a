"""An exported sampler: the same samples to the last bit, in a process that has not imported the training code."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.training.small import small_config
from ucgm_jax import config, exported
from ucgm_jax.commands import export
from ucgm_jax.exported import ExportedSampler
from ucgm_jax.method import transports
from ucgm_jax.networks import names
from ucgm_jax.parallel import meshes
from ucgm_jax.parallel.meshes import MeshSettings
from ucgm_jax.sampling import exporting
from ucgm_jax.sampling.generator import Generator

FACTS = {"network": "TiT-S/4", "shape": (8, 8, 1), "num_classes": 10}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A generator, its weights and the artifact made of them: stochastic and guided, so that all of it is used."""
    settings = config.build(
        small_config(sampler__steps=3, sampler__stochasticity_ratio=0.5, guidance__scale=1.5, network__depth=1)
    )
    network = names.build(settings.network, (8, 8, 1), 10)
    mesh = meshes.make_mesh(MeshSettings(), jax.devices()[:1])
    generator = Generator(
        network, transports.get(settings.transport), settings.sampler, settings.guidance, mesh, batch_size=4
    )
    # Fresh weights predict 0 everywhere: the last layer starts at 0.
    parameters = jax.tree.map(lambda p: p + 0.05, network.init(jax.random.key(0)))
    path = tmp_path_factory.mktemp("exported") / "sampler.npz"
    np.savez(path, **exporting.export(generator, parameters, FACTS, export.PLATFORMS))
    return generator, parameters, path


SCRIPT = """
import sys, numpy as np
from ucgm_jax.exported import ExportedSampler
x = ExportedSampler(sys.argv[1])(np.arange(10), seed=3, first_index=2)
np.save(sys.argv[2], x)
others = [name for name in sys.modules if name.startswith("ucgm_jax.") and name != "ucgm_jax.exported"]
assert not others, others
assert not {"flax", "optax", "orbax"} & set(sys.modules)
"""


def test_same_samples_without_the_training_code(made, tmp_path):
    generator, parameters, path = made
    ours = generator(parameters, np.arange(10), seed=3, first_index=2)
    # What the test's own process has set of the compiler has to hold there too: bits are compared.
    subprocess.run([sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "x.npy")], check=True)
    theirs = np.load(tmp_path / "x.npy")
    np.testing.assert_array_equal(theirs, ours)
    assert theirs.shape == (10, 8, 8, 1) and np.ptp(theirs) > 0.1


def test_artifact_is_for_all_platforms_and_says_what_it_is(made):
    sampler = ExportedSampler(made[2])
    assert sampler.facts["platforms"] == ["cpu", "cuda", "tpu"]
    assert sampler.facts["network"] == "TiT-S/4"


def test_mistakes(made, tmp_path):
    with pytest.raises(ValueError, match="labels: must be from 0 to 9"):
        ExportedSampler(made[2])([10])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz: is not an exported sampler"):
        ExportedSampler(tmp_path / "other.npz")
    for options, message in (({"seed": -1}, "seed=-1: "), ({"first_index": 2**32 - 1}, "first_index=4294967295: ")):
        with pytest.raises(ValueError, match=f"{message}must be from 0"):
            ExportedSampler(made[2])([1], **options)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04."],
    ids=["empty", "text", "zip", "npy", "pickle"],
)
def test_foreign_files_are_one_line_without_pickles(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match="x.npz: is not an exported sampler, or damaged$"):
        ExportedSampler(tmp_path / "x.npz")


def test_an_artifact_that_is_cut_off_or_of_another_format(made, tmp_path):
    whole = made[2].read_bytes()
    for length in (len(whole) - 1, len(whole) // 2):
        (tmp_path / "x.npz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="x.npz: is not an exported sampler, or damaged$"):
            ExportedSampler(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", facts=np.frombuffer(b'{"format": 99}', np.uint8))
    with pytest.raises(ValueError, match="y.npz: has format 99, this program reads 1"):
        ExportedSampler(tmp_path / "y.npz")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--artifact=/nowhere.npz"], "/nowhere.npz: No such file"),
        (["--labels=x"], "labels=x: must be numbers such as 0-2,5"),
        (["--labels=3-1", "--count=5"], "labels: must be from 0 to 9, at least one"),
        (["--labels=10"], "labels: must be from 0 to 9"),
        (["--count=-3"], "count=-3: must be at least 0"),
        (["--seed=-1"], "seed=-1: must be from 0 to 4294967295"),
        (["--seed=99999999999"], "seed=99999999999: must be from 0"),
        (["--out=x.png"], "out=x.png: must end in .npz"),
        (["--out={file}/y.npz"], "{file}: File exists"),
        (["--out={file}/new/y.npz"], "{file}/new: Not a directory"),
    ],
)
def test_mistakes_of_the_command(made, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "file").write_text("mine")
    fill = lambda text: text.format(file=tmp_path / "file")
    flags = [f"--artifact={made[2]}", f"--out={tmp_path / 'new' / 'x.npz'}", *map(fill, arguments)]
    monkeypatch.setattr("sys.argv", ["exported", *flags])
    with pytest.raises(SystemExit) as stop:
        exported.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(f"error: {fill(message)}") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_makes_the_folder(made, tmp_path, monkeypatch):
    out = tmp_path / "new" / "x.npz"
    monkeypatch.setattr("sys.argv", ["exported", f"--artifact={made[2]}", f"--out={out}", "--labels=3,7", "--count=3"])
    exported.main()
    stored = np.load(out)
    assert stored["labels"].tolist() == [3, 7, 3] and stored["x"].shape == (3, 8, 8, 1)


def _changed(made, path, **changes):
    """The artifact with other arrays, sealed anew where "checksum" is among the changes, and other facts."""
    with np.load(made[2]) as stored:
        arrays = dict(stored)
    facts = json.loads(arrays["facts"].tobytes()) | changes.pop("facts", {})
    facts = {name: value for name, value in facts.items() if value is not ...}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    sealed = changes.pop("sealed", False)
    arrays |= changes
    if sealed:
        arrays[exported.CHECKSUM] = exported.checksum(arrays)
    else:
        del arrays[exported.CHECKSUM]  # as version 0.1 wrote them
    np.savez(path, **arrays)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"facts": {"num_classes": ...}}, "num_classes=None: must be a whole number"),
        ({"facts": {"num_classes": "10"}}, "num_classes='10': must be a whole number"),
        ({"facts": {"batch_size": 10**20}}, "batch_size=1"),
        ({"facts": {"shape": [8, 8]}}, "shape=.8, 8.: must be height, width, channels"),
        ({"facts": {"shape": [9, 9, 1]}}, "its programs take other arrays"),
        ({"facts": {"fixed": 1}}, "its programs take other arrays"),
        ({"samples": np.arange(200, dtype=np.uint8)}, "damaged: "),
        ({"fixed_0000": np.zeros((3, 3), np.float32)}, "its programs take other arrays"),
        ({"fixed_0000": np.full(4, np.nan, np.float32)}, "fixed_0000 has values that are not finite"),
    ],
)
def test_artifacts_are_distrusted(made, tmp_path, sealed, changes, message):
    _changed(made, tmp_path / "x.npz", sealed=sealed, **changes)
    with pytest.raises(ValueError, match=message) as error:
        ExportedSampler(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


def test_facts_that_were_changed_do_not_fit_the_checksum(made, tmp_path):
    with np.load(made[2]) as stored:
        arrays = dict(stored)
    facts = json.loads(arrays["facts"].tobytes()) | {"num_classes": 1000}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=r"x\.npz: damaged: its checksum is another"):
        ExportedSampler(tmp_path / "x.npz")
