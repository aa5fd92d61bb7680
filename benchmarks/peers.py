"""Ways to multiply by the generalised Gauss-Newton matrix: ours, and other libraries' as their users call them.

Each way is a function that takes a task and returns `v -> Cv` on flat vectors. What it computes once per point it
computes before it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp

from benchmarks.networks import Task
from latephase.curvature import ggn

Product = Callable[[Tensor], Tensor]


def latephase(task: Task) -> Product:
    """Our operator."""
    return ggn(task.closure(), task.params).__matmul__


def backpack_kept(task: Task) -> Product:
    """BackPACK on the graph of one forward pass, as the paper's authors' `step` uses it."""
    from backpack.hessianfree.ggnvp import ggn_vector_product_from_plist

    loss, outputs = task.closure()()
    return lambda v: _flat(ggn_vector_product_from_plist(loss, outputs, task.params, _shaped(v, task.params)))


def backpack_rerun(task: Task) -> Product:
    """BackPACK with the forward pass repeated in every product, as the authors' `acc_step` uses it."""
    return lambda v: backpack_kept(task)(v)


def curvlinops(task: Task) -> Product:
    """The operator of curvlinops, without its check that the model is deterministic."""
    from curvlinops import GGNLinearOperator

    data = [(task.inputs, task.targets)]
    return GGNLinearOperator(
        task.model, task.loss_func, task.params, data, check_deterministic=False, num_data=task.batch
    ).__matmul__


def torch_func(task: Task) -> Product:
    """Plain `torch.func`: J v forward, H in output space, Jᵀ backward."""
    names = [name for name, _ in task.model.named_parameters()]
    theta = tuple(p.detach() for p in task.params)

    def outputs_at(*params: Tensor) -> Tensor:
        return functional_call(task.model, dict(zip(names, params, strict=True)), (task.inputs,))

    slope = grad(lambda z: task.loss_func(z, task.targets))

    def product(v: Tensor) -> Tensor:
        outputs, Jv = jvp(outputs_at, theta, tuple(_shaped(v, theta)))[:2]
        HJv = jvp(slope, (outputs,), (Jv,))[1]
        return _flat(vjp(outputs_at, *theta)[1](HJv))

    return product


METHODS: dict[str, Callable[[Task], Product]] = {
    "latephase": latephase,
    "backpack_kept": backpack_kept,
    "backpack_rerun": backpack_rerun,
    "curvlinops": curvlinops,
    "torch_func": torch_func,
}


def reason_for(error: Exception) -> str:
    """Why a way is not available, in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")


def _shaped(v: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces: Iterator[Tensor] = iter(v.split([p.numel() for p in like]))
    return [next(pieces).view_as(p) for p in like]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
