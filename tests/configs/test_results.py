"""The results page says what the configs say."""

import json
import re
import shlex

from docs import results
from ucgm_jax.commands import evaluate, flags


def test_the_page_is_up_to_date():
    measured = json.loads((results.HERE / "measured.json").read_text())
    assert (results.HERE / "results.md").read_text() == results.render(measured)


def test_the_commands_have_the_flags_that_are_required():
    for page in (results.HEADER, (results.HERE / "evaluation.md").read_text()):
        command = re.search(r"(?:python -m ucgm_jax\.|ucgm )evaluate ((?:.*\\\n)*.*)", page)[1]
        config_flags, rest = flags.split_config(shlex.split(command.replace("\\\n", "")))
        given = evaluate.parser().parse_args(rest)
        assert config_flags in (["--config=configs/ROW.py"], ["--config=ROW"])
        wanted = (given.inception, given.reference, given.autoencoder_weights, given.statistics, given.out)
        assert all(wanted) and given.checkpoint == "CHECKPOINT"


def test_a_measured_row_shows_its_figure_beside_the_published_one():
    row = "sampling_multi_steps/in1k256_sit_xl_repae_linear"
    assert results.line(row, {}).endswith("| SiT-XL/1 | 40x2 | 1.06 | not measured here |")
    assert results.line(row, {row: {"fid": 1.071, "samples": 50_000}}).endswith("| 1.06 | 1.07 |")
    assert results.line(row, {row: {"fid": 9.5, "samples": 5000}}).endswith("| 1.06 | 9.50 (5,000 samples) |")
