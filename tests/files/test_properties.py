"""Whatever is read, and whatever is set: right, or refused in one line."""

import io
import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ucgm_jax import settings_reference
from ucgm_jax.checkpoints import converted
from ucgm_jax.commands import config_files, flags
from ucgm_jax.data import encoding_job, manifest, picture_files, statistics
from ucgm_jax.errors import UserError
from ucgm_jax.evaluation import reference
from ucgm_jax.exported import ExportedSampler
from ucgm_jax.files import json_files, pickles, safetensors
from ucgm_jax.files.reading import DamagedFile, conform, read_npy, read_npz
from ucgm_jax.sampling import labels

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def one_line(function, *arguments):
    """The result, or None if it is refused; anything else than a refusal of ours, in one line, fails."""
    try:
        return function(*arguments)
    except ValueError as refusal:
        ours = isinstance(refusal, (UserError, DamagedFile, picture_files.BadImage))
        assert ours or function is ExportedSampler, repr(refusal)
        assert str(refusal) and "\n" not in str(refusal)
        return None


# --- safetensors ------------------------------------------------------------------------------------------------------

offsets = st.one_of(st.integers(-8, 40), st.integers(), st.floats(), st.text(max_size=2), st.none())
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F64", "BOOL", "F8_E4M3", "f32", "", None, 3]),
        "shape": st.one_of(st.lists(st.one_of(st.integers(-2, 4), st.integers()), max_size=3), json_values),
        "data_offsets": st.one_of(st.lists(offsets, min_size=2, max_size=2), json_values),
    }
)
headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), st.one_of(entries, json_values), max_size=3)


@QUICK
@given(headers, st.one_of(st.none(), st.integers(0, 2**64 - 1), st.integers(0, 200)), st.integers(0, 40))
def test_safetensors_headers(tmp_path, header, length, size):
    text = json.dumps(header).encode()
    told = len(text) if length is None else length
    (tmp_path / "w.safetensors").write_bytes(told.to_bytes(8, "little") + text + bytes(size))
    file = one_line(safetensors.SafetensorsFile, tmp_path / "w.safetensors")
    if file is not None:  # then it is all there, and no byte belongs to two tensors
        assert sum(array.nbytes for array in file.values()) == size


@QUICK
@given(st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(
    st.sampled_from([*safetensors.CODES]), st.lists(st.integers(0, 3), max_size=3)), max_size=4))  # fmt: skip
def test_safetensors_round_trip(tmp_path, signature):
    signature.pop("__metadata__", None)
    random = np.random.default_rng(0)
    state = {key: random.integers(0, 2, shape).astype(dtype) for key, (dtype, shape) in signature.items()}
    safetensors.write(tmp_path / "w.safetensors", {k: (a.dtype.name, a.shape) for k, a in state.items()}, state.items())
    file = safetensors.SafetensorsFile(tmp_path / "w.safetensors")
    assert {key: (a.tobytes(), a.shape, a.dtype) for key, a in file.items()} == {
        key: (a.tobytes(), a.shape, a.dtype) for key, a in state.items()
    }


# --- every kind of file, cut and flipped ------------------------------------------------------------------------------


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(kind, **options):
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind, **options)
    return file.getvalue()


MOMENTS = {"mu": np.zeros(3), "sigma": np.eye(3)}
MANIFEST = {
    "autoencoder": "idae_f1c3", "weights": "", "image_size": 8, "latent_shape": [3, 8, 8], "classes": ["a"],
    "examples": 2, "format": "safetensors", "skipped": [],
    "shards": [{"file": "latents_00000.safetensors", "examples": 2, "bytes": 9, "sha256": "0"}],
}  # fmt: skip
REPORT = {
    "shard": MANIFEST["shards"][0], "labels": [0, 0], "skipped": [],
    "moments": {"count": 2, "mean": [0.0], "deviations": [1.0]},
}  # fmt: skip
# Name of the file -> contents, how it is read, and whether any change of its bytes that is not refused must leave
# what is read the same, as files with checksums promise.
KINDS = {
    "arrays.npz": (npz(x=np.arange(6.0)), lambda path: read_npz(path, "x")["x"].tobytes(), True),
    "labels.npy": (npy(np.arange(6)), lambda path: read_npy(path).tobytes(), False),
    "ref.npz": (npz(**MOMENTS), lambda path: reference.load(path).covariance.tobytes(), True),
    "images.npz": (
        npz(arr_0=np.zeros((2, 4, 4, 3), np.uint8)),
        lambda path: b"".join(map(bytes, reference.npz_batches(path))), True,
    ),
    "ref.pkl": (pickle.dumps({"fid": MOMENTS}), lambda path: pickles.read_statistics(path)["mu"].tobytes(), False),
    "latents_stats.npz": (npz(mean=np.zeros(3), std=np.ones(3)), lambda path: statistics.load(path).std, True),
    "manifest.json": (json.dumps(MANIFEST).encode(), lambda path: manifest.read(path.parent).examples, False),
    "report.json": (json.dumps(REPORT).encode(), lambda path: manifest.read_report(path, 1)["labels"], False),
    "conversion.json": (
        json.dumps({"dtypes": {"a": "bfloat16"}, "autoencoder": "x"}).encode(),
        lambda path: converted.autoencoder_name(path.parent), False,
    ),
    "sampler.npz": (
        npz(facts=np.frombuffer(b'{"format": 1, "fixed": 0}', np.uint8), checksum=np.zeros(32, np.uint8)),
        ExportedSampler, False,
    ),
    **{
        f"picture.{kind}": (picture(kind, **options), lambda path: picture_files.read(path, 8).shape, False)
        for kind, options in {"png": {}, "jpeg": {}, "webp": {}, "gif": {}, "tiff": {}, "bmp": {}, "ppm": {}}.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@QUICK
@given(data=st.data())
def test_cut_and_flipped(tmp_path, name, data):
    contents, read, promises = KINDS[name]
    path = tmp_path / name
    path.write_bytes(contents)
    expected = one_line(read, path)
    assert (expected is not None) == (name != "sampler.npz")
    changed = bytearray(contents)
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(contents) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(contents) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    found = one_line(read, path)
    assert found is None or not promises or found == expected


@pytest.mark.parametrize("name, read", [
    ("manifest.json", lambda path: manifest.read(path.parent)), ("x.json", lambda path: manifest.read_report(path, 1)),
    ("conversion.json", lambda path: converted.read_record(path.parent)),
    ("x.json", lambda path: json_files.read(path, "a config")),
])  # fmt: skip
@QUICK
@given(value=json_values, known=st.sampled_from([MANIFEST, REPORT, {"dtypes": {}}]), data=st.data())
def test_json_of_any_kind(tmp_path, name, read, value, known, data):
    key = data.draw(st.sampled_from([None, *known]))
    (tmp_path / name).write_text(json.dumps(value if key is None else known | {key: value}))
    one_line(read, tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, '{"a":' * 100 + "1" + "}" * 100, "\ud800", "1" * 10**5])
def test_json_that_is_deep_or_no_text(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"x\.json: cannot be read as a config") as error:
        json_files.read(tmp_path / "x.json", "a config")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "", "a\0", 3, None, "a\\b"])
def test_manifests_name_files_beside_them_alone(tmp_path, name):
    shard = MANIFEST["shards"][0] | {"file": name}
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | {"shards": [shard]}))
    with pytest.raises(UserError, match=r"shards\[0\]\.file=.*: must be the name of a file in the same folder"):
        manifest.read(tmp_path)


def test_pipes_are_not_waited_for(tmp_path):
    for name, read in (("x.json", lambda path: json_files.read(path, "a config")), ("x.npz", read_npz)):
        os.mkfifo(tmp_path / name)
        with pytest.raises((UserError, DamagedFile), match="not a file"):
            read(tmp_path / name)


@QUICK
@given(json_values)
def test_kinds(value):
    one_line(conform, value, {"a": [int], "b": (str, None), "c": {str: float}}, "x")


# --- labels, flags, configs -------------------------------------------------------------------------------------------


@QUICK
@given(
    st.one_of(st.text(max_size=12), st.from_regex(r"\A\d{1,20}(-\d{1,20})?(,\d{1,3}(-\d{1,3})?)*\Z")),
    st.integers(0, 20),
)
def test_labels(text, classes):
    found = one_line(labels.parse, text, classes)
    assert found is None or (found and all(0 <= label < max(classes, 1) for label in found))


KEYS = [setting.key for setting in settings_reference.reference()]
VALUES = st.one_of(
    st.sampled_from(["", "-1", "0", "1e60", "nan", "inf", "-inf", "1" + "0" * 400, "None", "[]", "(1,2)", "True", "\0",
                     "a\nb", "1,2,3", "{}", "auto", "9" * 30]),
    st.text(max_size=8), st.integers().map(str), st.floats().map(str),
)  # fmt: skip


@settings(QUICK, max_examples=150)
@given(
    st.sampled_from([setting.key for setting in settings_reference.reference()]),
    VALUES,
    st.sampled_from(["", "[0]", "[9]", ".x"]),
)
def test_config_values(key, value, tail):
    one_line(config_files.settings, ["--config=digits", f"--config.{key}{tail}={value}"])


@QUICK
@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["--count=x", "--steps", "--labels=", "--config", "--"]),
                          VALUES.map(lambda value: f"--count={value}")), max_size=4))  # fmt: skip
def test_flags(arguments):
    from ucgm_jax.commands import sample

    parser = sample.parser()
    one_line(
        parser.parse_args,
        ["--checkpoint=/nowhere", "--out=x.png", *(a for a in arguments if a not in ("-h", "--help"))],
    )
    flags.split_config(arguments)


@pytest.mark.parametrize("changes", [
    {"image_size": 10**6}, {"image_size": 10**40}, {"batch_size": 2**31}, {"threads": 10**9}, {"shard_size": 10**30},
])  # fmt: skip
def test_encodings_that_cannot_fit(tmp_path, changes):
    how = {"image_size": 256, "batch_size": 64} | changes
    with pytest.raises(UserError, match="must be from|needs at least"):
        encoding_job.Preparation(out=tmp_path, autoencoder="idae_f1c3", latent_shape=(3, 8, 8), **how)


@pytest.mark.parametrize("key, value", [
    ("network.hidden_size", "1" + "0" * 60), ("network.depth", 10**8), ("data.prefetch", 10**20),
    ("data.read_threads", 10**8), ("sampler.steps", 10**11), ("optimizer.warmup_steps", "1" + "0" * 400),
    ("optimizer.decay_steps", "1" + "0" * 400), ("train.steps", "1" + "0" * 400), ("optimizer.epsilon", 1e300),
    ("evaluation.samples", 10**15), ("train.evaluate_samples", 10**15),
])  # fmt: skip
def test_sizes_that_cannot_be_counted_to(key, value):
    with pytest.raises(UserError, match=f"^{key}=.*: must be from .* to ") as error:
        config_files.settings(["--config=digits", f"--config.{key}={value}"])
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("change, message", [
    ("network.hidden_size=1000000", r"network\.name='TiT-S/2', its training state: needs at least"),
    ("train.batch_size=8000000000", r"train\.batch_size=8000000000, data\.prefetch=4: needs at least"),
])  # fmt: skip
def test_runs_that_cannot_fit(change, message):
    from ucgm_jax.data import sources
    from ucgm_jax.training.run import Run

    found = config_files.settings(["--config=digits", "--config.network.num_heads=2", f"--config.{change}"])
    with pytest.raises(UserError, match=message):
        Run(found, sources.build(found.data))
