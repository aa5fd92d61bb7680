"""Matrix-free products with curvature matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from latephase.curvature.ggn import GGN
from latephase.curvature.hessian import Hessian
from latephase.curvature.ladder import CurvatureError, CurvatureWarning
from latephase.curvature.options import Options
from latephase.curvature.point import Point, evaluate
from latephase.curvature.returned import Forward
from latephase.parameters import Parameters
from latephase.transaction import Transaction, settled

Op = TypeVar("Op", GGN, Hessian)

__all__ = ["GGN", "CurvatureError", "CurvatureWarning", "Hessian", "ggn", "hessian"]


def ggn(
    forward: Forward,
    params: Iterable[Tensor],
    *,
    product_dtype: torch.dtype | None = None,
    compile: bool = False,  # noqa: A002 — PyTorch's own word for it
) -> GGN:
    """Return the generalised Gauss-Newton matrix of a loss at the present parameters, as an operator.

    Args:
        forward: Returns `(loss, outputs)`; called once.
        params: The parameters to differentiate by, in the order of the vectors' entries. P entries in all.
        product_dtype: Type in which matrix products and convolutions work within a product, such as
            `torch.bfloat16`; None for the network's own. Everything else, the result included, keeps its type.
        compile: Whether `torch.compile` compiles the products. Takes long at first use.

    Returns:
        An operator `C` with `C @ v` for vectors of shape (P,) and matrices of shape (P, k). `C.backend` names the
        way products are computed and `C.explain()` says why. It belongs to the present parameters: once they change,
        products raise RuntimeError.

    Raises:
        CurvatureError: If the closure has no curvature products; the message names the operations in the way.
        ValueError: If the loss does not depend on the outputs, or not on the parameters.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> def forward():
        ...     outputs = model(x)
        ...     return torch.nn.functional.mse_loss(outputs, y, reduction="sum"), outputs
        >>> ggn(forward, model.parameters()) @ torch.tensor([1.0, 3.0])
        tensor([2., 6.])
    """
    options = Options(product_dtype, compile)
    return _at_present_point(lambda point: GGN(point, options), forward, params)


def hessian(forward: Forward, params: Iterable[Tensor]) -> Hessian:
    """Return the Hessian of a loss at the present parameters, as an operator.

    Args:
        forward: Returns `(loss, outputs)` or the loss alone; called once.
        params: The parameters to differentiate by, in the order of the vectors' entries. P entries in all.

    Returns:
        An operator `C` like that of `ggn`.

    Raises:
        CurvatureError: If the closure has no second derivatives; the message names the operations in the way.
        ValueError: If the loss does not depend on the parameters.

    Example:
        >>> import torch
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> hessian(lambda: theta.prod() ** 2, [theta]) @ torch.tensor([1.0, 0.0])
        tensor([8., 8.])
    """
    return _at_present_point(Hessian, forward, params)


def _at_present_point(operator: Callable[[Point], Op], forward: Forward, params: Iterable[Tensor]) -> Op:
    parameters = Parameters([{"params": list(params)}])

    def attempt(transaction: Transaction) -> Op:
        point = evaluate(forward, parameters, transaction.repeat())
        made = operator(point)
        if not made.needs_graph:
            point.drop_graph()
        return made

    return settled(parameters, attempt)
