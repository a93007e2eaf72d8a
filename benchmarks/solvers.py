"""Other solvers of the probability-flow ODE, at the same times and for the same network as UCGM-S, to compare it with.

All of them start at the first time of a grid, call the network once at each of its points and end with the data
estimate of the last, as UCGM-S does. The schedulers of diffusers are run as they are, on the same ratios of signal to
noise: they keep x / sqrt(gamma^2 + alpha^2) and are given the data estimate.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from tests.closed_forms import slopes
from ucgm_jax.method.transports import Array, Transport

# (x, t) -> (data, noise) estimates for a time t of the grid.
Estimates = Callable[[Array, float], tuple[Array, Array]]

DIFFUSERS = {
    "DPM-Solver++(2M)": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "DPM-Solver++(3M)": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC-2": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "UniPC-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
}


def velocity_solver(estimates: Estimates, transport: Transport, x: Array, times: np.ndarray, order: int) -> Array:
    """Euler's method (order 1) or that of Adams and Bashforth (order 2) for dx/dt = alpha' z_hat + gamma' x_hat."""
    previous = None
    for i, t in enumerate(times):
        data, noise = estimates(x, t)
        if i == len(times) - 1:
            return data
        alpha_slope, gamma_slope = slopes(transport, t)
        velocity, step = alpha_slope * noise + gamma_slope * data, times[i + 1] - t
        ahead = 0.0
        if order == 2 and previous is not None:
            ahead = step / (2 * (t - times[i - 1])) * (velocity - previous)
        x, previous = x + step * (velocity + ahead), velocity
    raise ValueError("times is empty")


def diffusers_solver(name: str, estimates: Estimates, transport: Transport, x: Array, times: np.ndarray) -> Array:
    """One of diffusers' schedulers.

    Raises:
      ImportError: diffusers or PyTorch is not installed.
    """
    import diffusers
    import torch

    kind, options = DIFFUSERS[name]
    scheduler = getattr(diffusers, kind)(prediction_type="sample", **options)
    scheduler.set_timesteps(len(times))
    alpha, gamma = transport.alpha(times), transport.gamma(times)
    scheduler.sigmas = torch.from_numpy(np.append(alpha / gamma, 0.0).astype(np.float32))
    scheduler.timesteps = torch.arange(len(times) - 1, -1, -1)
    scale = np.hypot(alpha, gamma)
    sample = torch.from_numpy(np.array(x) / scale[0])
    for i, t in enumerate(times):
        data, _ = estimates(jnp.asarray(sample.numpy() * scale[i], x.dtype), t)
        sample = scheduler.step(torch.from_numpy(np.array(data)), scheduler.timesteps[i], sample).prev_sample
    return jnp.asarray(sample.numpy())
