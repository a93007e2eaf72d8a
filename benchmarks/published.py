"""The published PyTorch implementation, timed beside ours where an NVIDIA GPU, torch and a checkout of it are.

Its networks and its method are called as its own training loop calls them: bfloat16 by autocast, gradients cleaned and
clipped, the evaluation average updated.
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

from ucgm_jax.settings import Settings

NOT_RUN = {"not_run": "no --published=PATH"}


def _torch(path: str) -> tuple[Any, str]:
    """torch, or why it cannot be used; the checkout becomes importable."""
    try:
        import torch
    except ImportError:
        return None, "torch is not installed"
    if not torch.cuda.is_available():
        return None, "torch has no NVIDIA GPU"
    if path not in sys.path:
        sys.path.insert(0, path)
    return torch, ""


def _model(torch: Any, settings: Settings) -> Any:
    from networks import NETWORKS  # of the checkout

    model = NETWORKS[settings.network.name](input_size=32, in_channels=4, num_classes=1000)
    return model.to("cuda")


def _wrapped(torch: Any, model: Any) -> Any:
    """The model inside a module that has it as `module`, as its method expects of distributed training."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

        def forward(self, *arguments, **named):
            return self.module(*arguments, **named)

    return Wrapped()


def _method(settings: Settings) -> Any:
    from methods.unigen import UCGMTS  # of the checkout

    objective = settings.objective
    return UCGMTS(
        transport_type=settings.transport,
        consistc_ratio=objective.consistency_ratio,
        ema_decay_rate=objective.target_decay,
        enhanced_ratio=objective.enhancement_ratio,
        lab_drop_ratio=objective.label_drop,
        enhanced_range=list(objective.enhancement_range),
        scaled_cbl_eps=objective.huber_constant,
        wt_cosine_loss=objective.cosine_loss,
        weight_funcion="Cosine" if objective.weighting == "cosine" else None,
        time_dist_ctrl=list(objective.time_distribution),
    ).to("cuda")


def _seconds(torch: Any, function: Any, repeats: int) -> float:
    for _ in range(3):  # compiles, then warms up
        function()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def training_step(path: str, settings: Settings, repeats: int) -> dict[str, Any]:
    """Times of its training step at these settings, bfloat16 autocast, model under torch.compile."""
    torch, reason = _torch(path)
    if torch is None:
        return {"not_run": reason}
    from methods.unigen import update_ema  # of the checkout

    plain, method = _model(torch, settings), _method(settings)
    average, model = copy.deepcopy(plain).requires_grad_(False), _wrapped(torch, torch.compile(plain))
    chosen = settings.optimizer
    kind = {"adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}[chosen.name]
    optimizer = kind(model.parameters(), lr=chosen.learning_rate, betas=(chosen.beta1, chosen.beta2))
    size = settings.train.batch_size
    x, labels = torch.randn(size, 4, 32, 32, device="cuda"), torch.randint(0, 1000, (size,), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = method.training_step(model, x.clone(), labels.clone())
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        if chosen.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.max_gradient_norm)
        for parameter in plain.parameters():
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, nan=0.0, posinf=0.0, neginf=0.0)
        optimizer.step()
        update_ema(average, plain, settings.train.ema_decay)

    seconds = _seconds(torch, step, repeats)
    return {"milliseconds": round(1e3 * seconds, 2), "images_per_second": round(size / seconds, 2)}


def sampler(path: str, settings: Settings, batch: int, repeats: int) -> dict[str, Any]:
    """Times of its sampler at the settings' steps, bfloat16 autocast, model under torch.compile."""
    torch, reason = _torch(path)
    if torch is None:
        return {"not_run": reason}
    model, method = torch.compile(_model(torch, settings).eval()), _method(settings)
    noise, labels = torch.randn(batch, 4, 32, 32, device="cuda"), torch.randint(0, 1000, (batch,), device="cuda")
    chosen = settings.sampler
    options = {
        "sampling_steps": chosen.steps,
        "sampling_order": chosen.order,
        "extrapol_ratio": chosen.extrapolation_ratio,
        "stochast_ratio": chosen.stochasticity_ratio,
        "time_dist_ctrl": list(chosen.schedule),
        "rfba_gap_steps": list(chosen.gaps),
    }

    def run() -> None:
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
            method.uni_sample(noise, model, y=labels, **options)

    seconds = _seconds(torch, run, repeats)
    return {"milliseconds": round(1e3 * seconds, 2), "images_per_second": round(batch / seconds, 2)}
