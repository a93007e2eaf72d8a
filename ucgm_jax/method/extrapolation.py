r"""How far UCGM-S extrapolates its estimates: a constant ratio, or rules of second and third order.

Between t and the coming time t' (before it t_1, t_2, ...) the sampler composes its next input from the estimates
x_hat(s), z_hat(s) that the network made at the times s = t, t_1, t_2, ... Freeze the two weights at t':

    G(s) = gamma(t') x_hat(s) + alpha(t') z_hat(s)

Along the probability-flow ODE x_s = gamma x_hat + alpha z_hat has the slope gamma' x_hat + alpha' z_hat
(arXiv 2505.07447, Remark 1), so that gamma(s) x_hat'(s) + alpha(s) z_hat'(s) = 0 at every s. Hence

    G(t') = x_{t'}, the next input that is wanted, and G'(t') = 0.

The rule of order p therefore fits c_0 + c_2 q^2 + ... + c_p q^p, in q = s - t', to G(t), ..., G(t_{p-1}) and takes c_0:
one more order than there are points, from the slope that is known. With weights w_j that sum to 1,

    c_0 = sum_j w_j G(t_j) = G(t) + sum_{j>0} kappa_j (G(t) - G(t_j)),     kappa_j = -w_j

which is the extrapolation of both estimates by kappa_j, whatever the transport. With h = t' - t and g = t - t_1,

    second order    kappa_1 = h^2 / (g (2 h + g)),  1/3 on equal steps;
    third order     kappa_1 = 9/11 and kappa_2 = -2/11 on equal steps, from a 3 x 3 system elsewhere.

Local errors are O(h^{p+1}) once p - 1 earlier estimates are there. The first step is Euler's: its O(h^2) stays in the
end, so that third order is that of all steps but the first two. Both conditions on G hold in every smooth, increasing
function of the time, which may take its place (`VARIABLES`); in u = alpha / gamma, where d(x / gamma) / du = z_hat,
second order is exact for z_hat linear in u. These are the formulas of backward differentiation (BDF), with the slope at
t' known to be 0 in place of a call there, and share its stability: steps must not grow too fast, by less than
1 + sqrt(2) from one to the next for second order and by less than about 1.5 for third.
App. D.1.8 finds kappa = h / (2 g), 1/2 on equal steps: that is for
extrapolating the velocity alone, and leaves an error of first order here.

Where guidance begins or ends, F jumps between two steps by some d, and G by h (gamma' d_x + alpha' d_z) as
gamma d_x + alpha d_z = 0. A step over the edge makes an error of that order in any case, which no rule takes away, so
that nothing starts again there.
"""

from __future__ import annotations

import numpy as np

from ucgm_jax.method.transports import Transport

# The rules, and how many earlier estimates each of them uses.
RULES = {"second_order": 1, "third_order": 2}

# Functions of (alpha, gamma, t) in which the estimates are taken to be polynomials.
VARIABLES = {
    "time": lambda alpha, gamma, t: t,
    "log_snr": lambda alpha, gamma, t: 2 * np.log(gamma / alpha),
    "noise_to_signal": lambda alpha, gamma, t: alpha / gamma,
}


def allowed(rule: float | str) -> tuple[bool, str]:
    """The rule of `checks.check` for an extrapolation ratio."""
    valid = rule in RULES if isinstance(rule, str) else 0 <= rule < np.inf
    return valid, f"at least 0, or {' or '.join(RULES)}"


def ratios(rule: float | str, variable: str, transport: Transport, t: np.ndarray) -> np.ndarray:
    """The extrapolation ratios kappa_j of every step.

    Args:
      rule: a constant kappa, from the third step on as published; or one of `RULES`, from the second on, with what
        earlier estimates there are.
      variable: one of `VARIABLES`; no matter for a constant.
      transport: of the network.
      t: (n,) times of the grid, float64.

    Returns:
      (n, k) float64, k earlier estimates: x_hat + sum_j kappa_j (x_hat - x_hat_j). The last step composes nothing: 0.
    """
    if not isinstance(rule, str):
        return np.where(np.arange(len(t)) >= 2, rule, 0.0)[:, None]
    result = np.zeros((len(t), RULES[rule]))
    with np.errstate(divide="ignore"):  # at either end one of them is infinite
        points = VARIABLES[variable](transport.alpha(t), transport.gamma(t), t)
    known = 0  # estimates, with that of this step, that the rule may use
    for i in range(len(t) - 1):
        known = min(known + 1, RULES[rule] + 1) if np.isfinite(points[i]) else 0
        if known > 1:
            result[i, : known - 1] = -_weights(points[i + 1 - known + np.arange(known)[::-1]] - points[i + 1])[1:]
    return result


def _weights(q: np.ndarray) -> np.ndarray:
    """w (m,) such that sum_j w_j p(q_j) = p(0) for every polynomial p of degree m with p'(0) = 0."""
    m = len(q)
    powers = np.stack([(q / q[0]) ** power for power in (0, *range(2, m + 1))])
    return np.linalg.solve(powers, np.eye(m)[0])
