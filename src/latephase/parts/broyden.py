"""The updates of Broyden's family of a dense approximation of the inverse Hessian, self-scaled.

The choice of scale and member is Al-Baali's as Urbán, Stefanou and Pons 2024 (arXiv 2405.04230) give it, the second of
their two.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """Which member of Broyden's family the update is, and how H is scaled.

    Attributes:
        phi: 1 for BFGS, 0 for DFP.
        tau: What H is divided by before the step's own curvature is added.
    """

    phi: float
    tau: float


def self_scaled(h: float, b: float, n: int) -> Choice:
    """Return the choice of Urbán et al. 2024, equations 13 to 23.

    Args:
        h: yᵀHy / sᵀy.
        b: sᵀBs / sᵀy, where B is the inverse of H. By Cauchy and Schwarz hb ≥ 1.
        n: The number of parameters.
    """
    a = max(h * b - 1, torch.finfo(torch.float64).eps)
    rho = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
    theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))  # of the update of B; 0 is BFGS, 1 DFP
    sigma = 1 + theta * a
    root = sigma ** (-1 / max(n - 1, 1))
    scale = min(1.0, 1 / b)
    tau = min(scale * root, sigma) if theta <= 0 else scale * min(root, 1 / theta)
    return Choice((1 - theta) / sigma, tau)


def update(H: Tensor, s: Tensor, y: Tensor, sBs: float, choose: Callable[..., Choice] = self_scaled) -> None:
    """Update the approximation H of the inverse Hessian in place, such that afterwards Hy = s.

    Args:
        H: [P, P].
        s: The step, [P].
        y: By how much the gradient changed along it, [P], with sᵀy > 0.
        sBs: sᵀBs, where B is the inverse of H.
        choose: Given h, b and P as `self_scaled` is, returns φ and τ.
    """
    Hy, rho = H @ y, 1 / float(s @ y)
    yHy = float(y @ Hy)
    phi, tau = choose(yHy * rho, sBs * rho, len(s))
    v = rho * s - Hy / yHy
    # H ← (H − Hy yᵀH / yᵀHy + φ · yᵀHy · v vᵀ) / τ + s sᵀ / sᵀy
    H.addr_(Hy, Hy, alpha=-1 / yHy).addr_(v, v, alpha=phi * yHy).div_(tau).addr_(s, s, alpha=rho)
