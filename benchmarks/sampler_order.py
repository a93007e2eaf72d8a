"""Orders and errors of samplers: python -m benchmarks.sampler_order [--small].

Against exact flows of mixtures of Gaussians in 2 and in 64 dimensions: UCGM-S with a constant extrapolation ratio and
with its rules, Heun, and other solvers. Guided models, inside an interval, as well. Writes
benchmarks/results/sampler_order.json and the tables of docs/sampler_order.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import metrics, solvers
from tests import closed_forms
from ucgm_jax.method import sampler, transports
from ucgm_jax.method.guidance import guided
from ucgm_jax.method.sampler import SamplerSettings
from ucgm_jax.method.transports import Transport

RESULTS = pathlib.Path(__file__).parent / "results" / "sampler_order.json"
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "sampler_order.md"
MARK = "<!-- tables: python -m benchmarks.sampler_order -->"

OURS = {
    "kappa = 0 (DDIM)": {},
    "kappa = 0.3": {"extrapolation_ratio": 0.3},
    "kappa = 0.5": {"extrapolation_ratio": 0.5},
    "Heun": {"order": 2},
    "second order, time": {"extrapolation_ratio": "second_order"},
    "second order, log SNR": {"extrapolation_ratio": "second_order", "extrapolation_variable": "log_snr"},
    "second order, noise / signal": {
        "extrapolation_ratio": "second_order",
        "extrapolation_variable": "noise_to_signal",
    },
    "third order, time": {"extrapolation_ratio": "third_order"},
    "third order, log SNR": {"extrapolation_ratio": "third_order", "extrapolation_variable": "log_snr"},
}
VELOCITY = {"Euler in time": 1, "Adams-Bashforth 2 in time": 2}
CALLS = (4, 8, 16, 32)
GAP = 0.03
SCHEDULES = ((1.0, 1.0, 1.0), (1.17, 0.8, 1.1), (0.8, 1.3, 1.0))
COMPARED = ("Linear", "TrigFlow", "TrigLinear", "Random", "EDM")


def rms(difference: jax.Array) -> float:
    """Root of the mean square."""
    return float(jnp.sqrt(jnp.mean(jnp.square(difference))))


def by_ucgm(settings: dict, transport: Transport, network, noise, labels, calls: int) -> jax.Array:
    """Samples with so many calls, or as near below as the order allows."""
    one = SamplerSettings(**{"steps": calls, "gaps": (GAP, GAP), **settings})
    return _integrate(network, sampler.coefficients(one, transport), noise, labels, one.order)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _integrate(network, rows, noise, labels, order: int) -> jax.Array:
    return sampler.integrate(rows, network, noise, labels, None, order=order)[0]


def slopes(points: tuple[int, int], names: Iterable[str], schedules: Iterable[tuple]) -> list[dict]:
    """log2 of the ratio of two errors, of steps h and h / 2, for every transport, schedule and rule."""
    mixture = closed_forms.line([0.3, 0.5, 0.2], [-1.0, 0.5, 2.0], [0.3, 0.5, 0.4])
    noise, labels, rows = jnp.linspace(-2.0, 2.0, 33)[:, None], jnp.zeros(33, int), []
    for transport in map(transports.get, names):
        network = closed_forms.network(mixture.predict, transport)
        for schedule in schedules:
            row = {"transport": transport.name, "schedule": schedule}
            common = {"gaps": (0.05, 0.05), "schedule": schedule}
            ends = sampler.network_times(SamplerSettings(**common), transport)[[0, -1]]
            exact = closed_forms.exact_flow(network, transport, noise, tuple(ends))
            for name in ("kappa = 0 (DDIM)", "second order, time", "third order, time", "Heun"):
                errors, steps = [], []
                for n in points:
                    calls = 2 * n - 1 if "order" in OURS[name] else n
                    samples = by_ucgm(common | OURS[name], transport, network, noise, labels, calls)
                    errors.append(float(jnp.abs(samples - exact).max()))
                    steps.append(n - 1)
                row[name] = round(float(np.log(errors[0] / errors[1]) / np.log(steps[1] / steps[0])), 3)
            rows.append(row)
    return rows


def all_errors(transport: Transport, network, noise, labels, exact, calls: tuple[int, ...]) -> dict[str, list[float]]:
    """RMS distance to the exact samples of every solver, by number of network calls."""
    at = jax.jit(lambda x, t: tuple(closed_forms.split(network, transport, x, t, labels)))
    table = {}
    for name, settings in OURS.items():
        table[name] = [rms(by_ucgm(settings, transport, network, noise, labels, n) - exact) for n in calls]
    times = {n: sampler.network_times(SamplerSettings(steps=n, gaps=(GAP, GAP)), transport) for n in calls}
    for name, order in VELOCITY.items():
        table[name] = [rms(solvers.velocity_solver(at, transport, noise, times[n], order) - exact) for n in calls]
    for name in solvers.DIFFUSERS:
        try:
            table[name] = [rms(solvers.diffusers_solver(name, at, transport, noise, times[n]) - exact) for n in calls]
        except ImportError as error:
            print(f"{name}: not run: {error}")
    return table


def mixtures(count: int, calls: tuple[int, ...], names: Iterable[str]) -> list[dict]:
    """`all_errors` on mixtures in two and in many dimensions, under every transport."""
    rows = []
    for mixture in (closed_forms.ring(), closed_forms.cloud()):
        dimensions = mixture.means.shape[1]
        noise, labels = jax.random.normal(jax.random.key(0), (count, dimensions)), jnp.zeros(count, int)
        for name in names:
            transport = transports.get(name)
            network = closed_forms.network(mixture.predict, transport)
            exact = closed_forms.exact_flow(network, transport, noise, (1 - GAP, GAP))
            table = all_errors(transport, network, noise, labels, exact, calls)
            rows.append({"dimensions": dimensions, "transport": name, "errors": table})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def guided_mixtures(count: int, calls: tuple[int, ...]) -> list[dict]:
    """Errors under guidance of scale 2, at all times and inside an interval whose ends lie between points."""
    rows, transport = [], transports.LINEAR
    for mixture in (closed_forms.ring(), closed_forms.cloud()):
        dimensions, labels = mixture.means.shape[1], jnp.arange(count) % 5
        noise = jax.random.normal(jax.random.key(0), (count, dimensions))
        for interval in ((0.0, 1.0), (0.25, 0.75)):
            network = guided(closed_forms.labelled_network(mixture, transport), 2.0, interval, null_label=5)
            edges = (1 - GAP, *(edge for edge in interval[::-1] if GAP < edge < 1 - GAP), GAP)
            exact = closed_forms.exact_flow(network, transport, noise, edges, labels)
            table = {
                name: [rms(by_ucgm(OURS[name], transport, network, noise, labels, n) - exact) for n in calls]
                for name in ("kappa = 0 (DDIM)", "kappa = 0.5", "second order, time", "third order, time")
            }
            rows.append({"dimensions": dimensions, "interval": interval, "errors": table})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _table(errors: dict[str, list[float]], calls: tuple[int, ...]) -> list[str]:
    best = [min(values[i] for values in errors.values()) for i in range(len(calls))]
    show = lambda value, least: f"**{value:.4f}**" if value == least else f"{value:.4f}"
    lines = [f"| | {' | '.join(map(str, calls))} |", "|---|" + "---|" * len(calls)]
    for name, values in errors.items():
        lines.append(f"| {name} | {' | '.join(map(show, values, best))} |")
    return lines


def page(result: dict) -> str:
    """The tables of docs/sampler_order.md."""
    lines, calls = [], tuple(result["calls"])
    if result["slopes"]:
        names = list(result["slopes"][0])[2:]
        lines += ["", "## Slopes", "", f"| transport | schedule | {' | '.join(names)} |"]
        lines += ["|---|---|" + "---|" * len(names)]
    for row in result["slopes"]:
        lines.append(f"| {row['transport']} | {tuple(row['schedule'])} | {' | '.join(str(row[n]) for n in names)} |")
    for row in result["mixtures"]:
        lines += ["", f"## {row['transport']}, {row['dimensions']} dimensions", "", *_table(row["errors"], calls)]
    for row in result["guided"]:
        lines += ["", f"## Guided in {tuple(row['interval'])}, {row['dimensions']} dimensions, Linear", ""]
        lines += _table(row["errors"], calls)
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="fewer samples and coarser slopes: does it run?")
    parser.add_argument("--out", default=str(RESULTS))
    parser.add_argument("--page", default=str(PAGE), help="the page whose tables are written anew")
    given = parser.parse_args(argv)
    count, calls = (16, (8,)) if given.small else (128, CALLS)
    result = {"machine": metrics.machine(), "samples": count, "calls": calls}
    with jax.enable_x64(True):
        result["mixtures"] = mixtures(count, calls, COMPARED[:1] if given.small else COMPARED)
        result["guided"] = guided_mixtures(count, calls)
        if given.small:
            result["slopes"] = slopes((40, 80), COMPARED[:1], SCHEDULES[:1])
        else:
            result["slopes"] = slopes((1000, 2000), transports.TRANSPORTS, SCHEDULES)
    pathlib.Path(given.out).write_text(json.dumps(result, indent=1) + "\n")
    path = pathlib.Path(given.page)
    head = path.read_text().split(MARK)[0] if path.exists() else "# Orders of samplers\n\n"
    path.write_text(head + MARK + "\n" + page(result))


if __name__ == "__main__":
    main()
