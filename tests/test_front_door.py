"""What people call: `import ucgm_jax`, `load`, `Model`; and folders that version 0.1 wrote."""

import json
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

import ucgm_jax
from tests.golden_cases import GOLDEN
from tests.training.small import small_config, train
from ucgm_jax import exported
from ucgm_jax.data_spec import DataSpec
from ucgm_jax.parallel import meshes
from ucgm_jax.parallel.meshes import MeshSettings

OLD = GOLDEN / "version_0_1"
LABELS = list(range(10))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(train__steps=4, train__checkpoint_every=2, optimizer__learning_rate=1e-2), folder)
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return ucgm_jax.load(workdir)


def test_importing_is_light_and_names_are_there():
    code = "import sys, ucgm_jax; assert 'jax' not in sys.modules and 'numpy' not in sys.modules; dir(ucgm_jax)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ucgm_jax.__all__:
        assert getattr(ucgm_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ucgm_jax.nothing


def test_help_does_not_load_jax():
    code = (
        "import sys; from ucgm_jax.commands import main\n"
        "for name in main.COMMANDS:\n"
        "    try: main.main([name, '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "assert main.main(['--help']) == 0 and main.main(['nothing']) == 2\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_samples_and_pictures(model):
    samples = model.sample(labels=[3, 3, 7], steps=2, seed=1, output="samples")
    pictures = model.sample(labels=[3, 3, 7], steps=2, seed=1)
    assert samples.shape == pictures.shape == (3, 8, 8, 1)
    assert (samples.dtype, pictures.dtype) == (np.float32, np.uint8)
    assert np.abs(pictures - (np.clip(samples, -1, 1) + 1) * 127.5).max() <= 0.51
    both = model.sample(labels=[3, 3, 7], steps=2, seed=1, output="both")
    np.testing.assert_array_equal(both["x"], samples)
    np.testing.assert_array_equal(both["images"], pictures)
    np.testing.assert_allclose(
        model.sample([7], steps=2, seed=1, first_index=2, output="samples"), samples[2:], atol=1e-5
    )


def test_a_trajectory_ends_in_the_sample(model):
    how = {"labels": [1, 2], "steps": 5, "extrapolation_ratio": 0.5, "guidance_scale": 2.0, "output": "samples"}
    trajectory = model.sample(**how, trajectory=True)
    assert trajectory.shape == (5, 2, 8, 8, 1)
    np.testing.assert_allclose(trajectory[-1], model.sample(**how), atol=1e-6)
    assert model.sample(**how | {"output": "pictures"}, trajectory=True).shape == (5, 2, 8, 8, 1)


def test_other_ratios_do_not_compile_again(model):
    model.sample([1], steps=3, extrapolation_ratio=0.1)
    before = len(model._generators)
    compiled = [one._run._cache_size() for one in model._generators.values()]
    model.sample([1], steps=3, extrapolation_ratio=0.4, schedule=(1.2, 0.8, 1.1))
    assert len(model._generators) == before
    assert [one._run._cache_size() for one in model._generators.values()] == compiled


def test_the_network_and_what_goes_with_it(model, workdir):
    x, t, labels = np.ones((2, 8, 8, 1), np.float32), np.full(2, 0.5, np.float32), np.array([1, 2])
    expected = model.architecture.apply(model.parameters, x, t, labels)
    np.testing.assert_allclose(model.network(x, t, labels), expected, atol=1e-6)
    assert model.transport.name == "Linear" and model.settings.data.name == "digits"
    assert model.spec == DataSpec((8, 8, 1), 10, "pixels", "digits")
    stored = json.loads((workdir / "checkpoints" / "4" / "data_spec" / "metadata").read_text())
    assert DataSpec.from_json(stored) == model.spec
    assert ucgm_jax.load(workdir, step=2).found.step == 2 == ucgm_jax.load(workdir / "checkpoints" / "2").found.step


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": [10]}, r"labels=\[10\]: must be a list of whole numbers from 0 to 9"),
        ({"labels": [0.5]}, "labels=.*: must be a list of whole numbers"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be from 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: must be finite"),
        ({"output": "movies"}, "output='movies': must be one of pictures"),
        ({"stepz": 3}, "stepz: is no setting of the sampler"),
        ({"batch_size": 3}, "batch_size=3: must be a multiple"),
    ],
)
def test_mistakes_name_the_argument(model, arguments, message):
    with pytest.raises(ucgm_jax.UserError, match=f"^{message}") as caught:
        model.sample(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "folder, options, message",
    [
        ("/nowhere", {}, "folder=/nowhere: no such folder"),
        ("{workdir}", {"step": 3}, "step=3: folder=.* has no such step, its newest is 4"),
        ("{workdir}", {"weights": "moments"}, "weights='moments': must be ema or parameters"),
    ],
)
def test_mistakes_in_opening(workdir, folder, options, message):
    with pytest.raises(ucgm_jax.UserError, match=message):
        ucgm_jax.load(folder.format(workdir=workdir), **options)


# --- version 0.1 ---


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """What version 0.1 wrote, unpacked, and the samples that it drew of it."""
    folder = tmp_path_factory.mktemp("old")
    for name in ("work_folder", "converted"):
        with tarfile.open(OLD / f"{name}.tar.gz") as packed:
            packed.extractall(folder, filter="data")
    with np.load(OLD / "samples.npz") as samples:
        return folder, dict(samples)


@pytest.mark.parametrize("name", ["work_folder", "converted"])
def test_folders_of_version_0_1_give_the_same_samples(old, name):
    folder, samples = old
    one_device = meshes.make_mesh(MeshSettings(), jax.devices()[:1])
    model = ucgm_jax.load(folder / name, mesh=one_device)
    assert model.spec.kind == "pixels" and model.spec.shape == (8, 8, 1) and model.spec.num_classes == 10
    x = model.sample(LABELS, steps=3, output="samples")
    np.testing.assert_allclose(x, samples[name], atol=2e-6)  # tests compile with other optimisations


def test_a_work_folder_of_version_0_1_is_gone_on_with(old):
    folder = old[0] / "work_folder"
    network = {"network__name": "TiT-S/2", "network__depth": 1, "network__unroll": 1}
    like = json.loads((folder / "config.json").read_text())
    config = small_config(**network, train__steps=5)
    for section in ("objective", "optimizer", "train", "network", "sampler"):
        for key, value in like[section].items():
            if key in config[section] and key not in ("steps", "sample_every"):
                config[section][key] = tuple(value) if isinstance(value, list) else value
    train(config, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 5]
    assert ucgm_jax.load(folder).found.step == 5


def test_an_exported_sampler_of_version_0_1_runs():
    x = exported.ExportedSampler(OLD / "exported.npz")(np.arange(10))
    with np.load(OLD / "samples.npz") as samples:
        np.testing.assert_allclose(x, samples["exported"], atol=2e-6)
