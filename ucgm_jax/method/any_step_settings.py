"""Settings of any-step training; `any_step` says what they do, and which published method each choice is."""

from __future__ import annotations

import dataclasses
import math

from ucgm_jax.method.checks import at_least, check, interval, one_of
from ucgm_jax.method.times import PairSettings
from ucgm_jax.method.weightings import TIME_WEIGHTINGS, WEIGHTINGS

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
