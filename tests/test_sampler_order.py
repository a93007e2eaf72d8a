"""The command of docs/sampler_order.md runs, at small size, and its page shows what it found."""

import json

from benchmarks import sampler_order


def test_small(tmp_path):
    out, page = tmp_path / "order.json", tmp_path / "page.md"
    page.write_text(f"# Words before\n\n{sampler_order.MARK}\nan older table\n")
    sampler_order.main(["--small", f"--out={out}", f"--page={page}"])
    result, text = json.loads(out.read_text()), page.read_text()
    assert text.startswith("# Words before") and "an older table" not in text
    for row in result["mixtures"]:
        errors = row["errors"]
        assert errors["second order, time"][0] < errors["kappa = 0 (DDIM)"][0]
        assert f"{errors['second order, time'][0]:.4f}" in text
    (slopes,) = result["slopes"]
    assert slopes["second order, time"] > 1.7 > 1.3 > slopes["kappa = 0 (DDIM)"]
