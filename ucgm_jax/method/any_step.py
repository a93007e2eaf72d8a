r"""Any-step training: one network F(x_t, t, r, c) that jumps from t to any r in [0, t], in one step or in many.

The jump G (`jump`) is right when it lands where the probability-flow ODE through x_t is at r. With data x, noise z and
F* = alpha_hat(t) z* + gamma_hat(t) x*, what an ordinary network regresses (guided: `instantaneous_target`), R says how
wrong it is, in units of F. rho is `jump.slope`, F' the target network, s = max(t - delta, r):

    recursive    R = (G(F^-, x_t, t, r) - X_N) / ((t - s) rho(t))     X_0 = alpha(s) z* + gamma(s) x*, the known first
                                                                      piece; X_N after N jumps of F' from s to r
    derivative   R = (d/dt G(F^-(x_t, t, r), x_t, t, r)) / rho(t)     along the path of (x*, z*): the limit delta -> 0

    target = F^- - clip(R, -1, 1);   rows with r = t, and all with N = 0:  target = F*

Under Linear these are ((t - r) F - S) / delta - v and F - v + (t - r) dF/dt, v = z - x. Published methods as settings:

    flow matching  order 0 (UCGM with lambda = 0)
    RCGM           recursive, order 2, target_decay 0.99, model_weight zeta (Sun and Lin, OpenReview GnawtLKGkP)
    MeanFlow       derivative, no clip, adaptive_sum, target_decay 0, data_weight omega, model_weight kappa (2505.13447)
    iMF            MeanFlow with tangent "model", model_weight 1 - 1 / w (2512.02012; there w is drawn for each row)
    FACM           derivative, every r = 0, flow_anchor, relaxation 0.5, adaptive_mean, "sine"; distilled: target_decay
                   1, data_weight 0, model_weight w, unguided_data_weight 0 (2507.03738)
    TiM            difference, no clip (2509.04394)
    alpha-Flow     recursive, order 1, first_share a (2510.20771)
    shortcut       recursive, order 1, first_share 0.5, first_piece "model", rows on a grid (2410.12557: there R / 2)
    UCGM, sCM      recursive or difference with every r = 0, up to a positive factor on R (2505.07447; 2410.11081)

TwinFlow (2512.05150) adds rows of its own to RCGM: `twinflow`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ucgm_jax.method.checks import at_least, check, interval, one_of
from ucgm_jax.method.objective import Auxiliary, Batch, cosine_distance, dropped_rows
from ucgm_jax.method.prediction import expand_time, predict
from ucgm_jax.method.residuals import derivative_residual, output_and_derivative, recursive_residual
from ucgm_jax.method.times import PairSettings
from ucgm_jax.method.transports import Array, Transport
from ucgm_jax.method.weightings import TIME_WEIGHTINGS, WEIGHTINGS, row_losses, time_weights

FORMS = ("recursive", "derivative", "difference")
PIECES = ("equal", "random")
BY = ("data", "model")


@dataclasses.dataclass(frozen=True)
class AnyStepSettings:
    """Settings of any-step training; in brackets the symbol or the published name.

    Attributes:
      form: how the residual is had: "recursive", "derivative" (forward mode) or "difference" (of two further calls).
      order: [N, estimate_order] jumps of the target network after the first piece; 0 is flow matching in every form.
      first_step: [delta] length of the first piece, above 0.
      first_share: [a] instead, the first piece's share of t - r, in (0, 1]; 0 for first_step.
      first_piece: who makes it: the known pair ("data"), or a jump of the target network ("model").
      pieces: the rest in "equal" pieces, or with "random" ends (`times.piece_ends`).
      tangent: the path of the derivative form: of the known pair ("data"), or along the model's own ("model").
      clip: bound of each entry of R; 0 for none.
      relaxation: [p] multiplies the clipped R by 1 - (1 - t)^p; 0 does not.
      flow_anchor: weight of a further loss of every row, mean square and 1 - cosine of F(x_t, t, t, c) against F*.
      data_weight, model_weight: [omega, kappa] inside guidance_range
        F* = omega F_data + kappa F'(x_t, t, t, c) + (1 - omega - kappa) F'(x_t, t, t, null); (1, zeta) is RCGM's.
      guidance_range: [enhanced_range] guided times, both ends included.
      unguided_data_weight: [u] elsewhere, and on rows without label, F* = u F_data + (1 - u) F'(x_t, t, t, c); 0.5 is
        UCGM's rule.
      label_drop: share of the batch that is trained with the null label.
      target_decay: [d] in [0, 1]; 0: F' is the online network; between: a moving average; 1: F' is the frozen start in
        F*, and the online network in X_N, where a model of one time would know nothing of its second.
      weighting, weighting_constant, weighting_power: of each row's error; `weightings.row_losses`.
      cosine_loss: add 1 - cosine similarity along channels.
      time_weighting: by t and r; `weightings.time_weights`.
      pairs: how t and r are drawn.
    """

    form: str = "recursive"
    order: int = 2
    first_step: float = 0.01
    first_share: float = 0.0
    first_piece: str = "data"
    pieces: str = "equal"
    tangent: str = "data"
    clip: float = 1.0
    relaxation: float = 0.0
    flow_anchor: float = 0.0
    data_weight: float = 1.0
    model_weight: float = 0.0
    guidance_range: tuple[float, float] = (0.0, 1.0)
    unguided_data_weight: float = 1.0
    label_drop: float = 0.1
    target_decay: float = 0.99
    weighting: str = "square"
    weighting_constant: float = 0.001
    weighting_power: float = 1.0
    cosine_loss: bool = False
    time_weighting: str = "none"
    pairs: PairSettings = PairSettings()

    def __post_init__(self):
        at_least(self, 0, "order", "clip", "relaxation", "flow_anchor", "weighting_constant", "weighting_power")
        finite = ("data_weight", "model_weight", "unguided_data_weight")
        shares = ("first_share", "label_drop", "target_decay")
        check(
            self,
            form=one_of(self.form, FORMS),
            first_step=(0 < self.first_step <= 1, "in (0, 1]"),
            first_piece=one_of(self.first_piece, BY),
            pieces=one_of(self.pieces, PIECES),
            tangent=one_of(self.tangent, BY),
            **{name: (math.isfinite(getattr(self, name)), "finite") for name in finite},
            **{name: (0 <= getattr(self, name) <= 1, "in [0, 1]") for name in shares},
            guidance_range=interval(self.guidance_range),
            weighting=one_of(self.weighting, WEIGHTINGS),
            time_weighting=one_of(self.time_weighting, TIME_WEIGHTINGS),
        )

    @property
    def is_guided(self) -> bool:
        """Whether F* takes anything from the target network."""
        return (self.data_weight, self.model_weight, self.unguided_data_weight) != (1.0, 0.0, 1.0)

    @property
    def calls_null(self) -> bool:
        """Whether F* takes anything from the network without label."""
        return self.is_guided and self.data_weight + self.model_weight != 1.0

    @property
    def has_random_pieces(self) -> bool:
        """Whether the loss needs ends of pieces that were drawn."""
        return self.form == "recursive" and self.pieces == "random" and self.order > 1

    @property
    def forward_units(self) -> int:
        """Cost of the loss and its gradient in forward passes of the network: 3 for the pass with a gradient."""
        anchor, guidance = 3 * (self.flow_anchor != 0), self.is_guided + self.calls_null
        if self.order == 0:
            return 3 + anchor + guidance
        recursion = self.order + (self.first_piece == "model")
        further = {"recursive": recursion, "derivative": 1, "difference": 2}[self.form]
        own_path = self.form != "recursive" and self.tangent == "model"
        return 3 + anchor + guidance + further + own_path

    @property
    def uses_target_network(self) -> bool:
        """Whether the loss calls a target network that is not the online one."""
        chain = self.form == "recursive" and self.order > 0 and self.target_decay < 1
        return self.is_guided or chain


def instantaneous_target(
    settings: AnyStepSettings,
    transport: Transport,
    batch: Batch,
    x_t: Array,
    target_network: Callable,
    null_label: int,
) -> Array:
    """F* of every row, (B, ...): what F(x_t, t, t, c) should be, guided as the settings say. Labels already dropped."""
    times, t = expand_time(batch.t, x_t), batch.t
    plain = transport.target(batch.x, batch.z, times)
    if not settings.is_guided:
        return plain
    by_label = lambda labels: target_network(x_t, t, t, labels)
    data, model, alone = settings.data_weight, settings.model_weight, settings.unguided_data_weight
    if settings.calls_null:
        # Both in one call, along a new axis: sharded batches stay where they are, dropout is the same in both.
        labelled, null = jax.vmap(by_label)(jnp.stack([batch.labels, jnp.full_like(batch.labels, null_label)]))
    else:
        labelled = null = by_label(batch.labels)
    low, high = settings.guidance_range
    guided = expand_time((low <= t) & (t <= high) & ~batch.dropped, x_t)
    inside = data * plain + model * labelled + (1 - data - model) * null
    return jnp.where(guided, inside, alone * plain + (1 - alone) * labelled)


def loss(
    settings: AnyStepSettings,
    transport: Transport,
    batch: Batch,
    r: Array,
    *,
    network: Callable,
    frozen_network: Callable,
    target_network: Callable | None,
    null_label: int,
    inner_ends: Array | None = None,
) -> tuple[Array, Auxiliary]:
    """The loss of every example of a batch.

    Args:
      settings: the objective's settings.
      transport: with noise at t = 1; a network with noise at t = 0 trains through its mirror, as in `objective.loss`.
      batch: data, noise, times and labels.
      r: (B,) target times in [0, t].
      network: (x, t, r, labels) -> F; gradients flow through this one alone.
      frozen_network: the same function of the same weights and the same dropout noise; used without gradient.
      target_network: F', without gradient; for a frozen teacher of one time see `jump.for_two_times`. May be None where
        `settings.uses_target_network` is false.
      null_label: the label that stands for none.
      inner_ends: (B, N - 1) ends of random pieces, from `times.piece_ends`.

    Returns:
      (B,) losses, weighted, and the `Auxiliary` values.

    Raises:
      ValueError: the transport has noise at t = 0, or the target network or random ends are needed and missing.
    """
    if transport.noise_time != 1:
        raise ValueError(f"transport={transport.name!r}: noise must sit at t = 1; train through its mirror")
    if settings.uses_target_network and target_network is None:
        raise ValueError(f"target_decay={settings.target_decay!r}: needs a target network")
    random = settings.has_random_pieces
    if random and inner_ends is None:
        raise ValueError("pieces='random': needs inner_ends")
    t, dropped = batch.t, batch.dropped
    dropped = dropped_rows(t.shape[0], settings.label_drop) if dropped is None else dropped
    labels = jnp.where(dropped, null_label, batch.labels)
    batch = batch._replace(labels=labels, dropped=dropped)
    times, x_t = expand_time(t, batch.x), transport.interpolate(batch.x, batch.z, expand_time(t, batch.x))
    instant = instantaneous_target(settings, transport, batch, x_t, target_network, null_label)
    instant = jax.lax.stop_gradient(instant)

    if settings.form == "recursive" or settings.order == 0:
        output = network(x_t, t, r, labels)
        residual = jax.lax.stop_gradient(output) - instant
        if settings.order:
            residual = recursive_residual(
                transport,
                jax.lax.stop_gradient(output),
                instant,
                x_t,
                t,
                r,
                labels,
                frozen_network if settings.target_decay in (0, 1) else target_network,
                order=settings.order,
                first_step=settings.first_step,
                first_share=settings.first_share,
                first_by_model=settings.first_piece == "model",
                inner_ends=inner_ends if random else None,
            )
    else:
        own = settings.tangent == "model"
        path = predict(transport, frozen_network(x_t, t, t, labels) if own else instant, x_t, times)
        difference = settings.form == "difference"
        output, derivative = output_and_derivative(
            transport, network, frozen_network, path, x_t, t, r, labels, by_difference=difference
        )
        fixed = jax.lax.stop_gradient(output)
        residual = derivative_residual(transport, fixed, derivative, instant, path, times, expand_time(r, x_t))
    target = jax.lax.stop_gradient(_target(settings, output, residual, instant, t, r))

    losses = row_losses(settings.weighting, output, target, settings.weighting_constant, settings.weighting_power)
    if settings.cosine_loss:
        losses += cosine_distance(output, target)
    losses *= time_weights(settings.time_weighting, t, r)
    if settings.flow_anchor:
        losses += settings.flow_anchor * _anchor_losses(network(x_t, t, t, labels), instant)
    return losses, Auxiliary(jax.lax.stop_gradient(output), target, labels)


def _target(settings: AnyStepSettings, output: Array, residual: Array, instant: Array, t: Array, r: Array) -> Array:
    if settings.order == 0:
        return instant
    if settings.clip:
        residual = jnp.clip(residual, -settings.clip, settings.clip)
    if settings.relaxation:
        residual *= expand_time(1 - (1 - t) ** settings.relaxation, output)
    return jnp.where(expand_time(r == t, output), instant, output - residual)


def _anchor_losses(output: Array, instant: Array) -> Array:
    square = jnp.mean(jnp.square(output - instant), axis=tuple(range(1, output.ndim)))
    return square + cosine_distance(output, instant)
