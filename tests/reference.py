"""The Hessian-free step by another definition: slow, obvious, in float64, with dense matrices and plain loops.

Written from Algorithm 1 and Appendix A.1 of Tatzel et al. (2022), from Martens (2010) and from Algorithm 2 of
Martens & Sutskever (2012). It shares no code with the package. What those texts leave open is settled as the
package's documentation has it:

- The quadratic model contains damping and weight decay.
- Conjugate gradients start from the decayed last solution only where the model is lower there than at zero.
- The zero vector, where a cold start begins, is no candidate for CG-backtracking; a warm start is.
- The reduction ratio's denominator is the model's change from zero by the last iterate.
- A step that is not taken drops the warm start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian as dense_derivative_2
from torch.autograd.functional import jacobian as dense_derivative_1

Batch = tuple[Tensor, Tensor]


# ---------------------------------------------------------------------- the problem


@dataclass(frozen=True)
class Network:
    """A network and its loss as functions of one flat vector θ, which stands for `parameters` in their order."""

    model: nn.Module
    loss_func: Callable[[Tensor, Tensor], Tensor]

    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).clone()

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        tensors, start = {}, 0
        for name, p in self.model.named_parameters():
            tensors[name] = theta[start : start + p.numel()].reshape(p.shape)
            start += p.numel()
        return torch.func.functional_call(self.model, tensors, (inputs,))

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        inputs, targets = batch
        return self.loss_func(self.outputs(theta, inputs), targets)


def gradient(network: Network, theta: Tensor, batch: Batch) -> Tensor:
    """∇L(θ), shape (P,)."""
    return dense_derivative_1(lambda t: network.loss(t, batch), theta)


def ggn(network: Network, theta: Tensor, batch: Batch) -> Tensor:
    """JᵀHJ, shape (P, P): J the Jacobian of all outputs in θ, H the Hessian of the loss in all outputs."""
    inputs, targets = batch
    outputs = network.outputs(theta, inputs)
    J = dense_derivative_1(lambda t: network.outputs(t, inputs).reshape(-1), theta)
    H = dense_derivative_2(lambda z: network.loss_func(z.reshape(outputs.shape), targets), outputs.reshape(-1))
    return J.T @ H @ J


def hessian(network: Network, theta: Tensor, batch: Batch) -> Tensor:
    """The Hessian of the loss in θ, shape (P, P)."""
    return dense_derivative_2(lambda t: network.loss(t, batch), theta)


def linearised_hessian(network: Network, theta: Tensor, batch: Batch) -> Tensor:
    """The GGN once more: the Hessian of the loss of the network linearised at θ, shape (P, P)."""
    inputs, targets = batch
    outputs = network.outputs(theta, inputs)
    J = dense_derivative_1(lambda t: network.outputs(t, inputs).reshape(-1), theta)

    def loss_of_linearised(t: Tensor) -> Tensor:
        return network.loss_func(outputs + (J @ (t - theta)).reshape(outputs.shape), targets)

    return dense_derivative_2(loss_of_linearised, theta)


def empirical_fisher_diagonal(network: Network, theta: Tensor, batch: Batch, reduction: str) -> Tensor:
    """Σᵢ gᵢ² or its mean, shape (P,), over the gradients gᵢ of single samples."""
    inputs, targets = batch
    total = torch.zeros_like(theta)
    for i in range(len(inputs)):
        total = total + gradient(network, theta, (inputs[i : i + 1], targets[i : i + 1])) ** 2
    return total / len(inputs) if reduction == "mean" else total


# ---------------------------------------------------------------------- the parts


@dataclass(frozen=True)
class Path:
    """All CG iterates x_0, x_1, …, the model's values there, dᵀAd of all directions tried.

    And dᵀAd / dᵀd of those that were used.
    """

    iterates: list[Tensor]
    values: list[float]
    curvatures: list[float]
    stop: str
    quotients: list[float]

    @property
    def last(self) -> int:
        return len(self.iterates) - 1


def conjugate_gradients(
    A: Tensor,
    b: Tensor,
    x0: Tensor | None = None,
    M: Tensor | None = None,
    *,
    max_iter: int = 250,
    martens: bool = True,
    nonpos: str = "stop",
) -> Path:
    """Algorithm 2 of Martens & Sutskever (2012) for Ax = b, with M the inverse of their preconditioner P.

    It ends by Martens' rule, at `max_iter`, at non-positive curvature if `nonpos` is "stop", before a number that
    is not finite, and where ‖Ax − b‖ ≤ eps·‖b‖.
    """

    def model(x: Tensor) -> float:
        return float(0.5 * x @ A @ x - b @ x)

    M = torch.eye(len(b), dtype=b.dtype) if M is None else M
    x = x0 if x0 is not None and -math.inf < model(x0) < 0.0 else torch.zeros_like(b)
    r = A @ x - b
    y = M @ r
    d = -y
    iterates, values = [x], [model(x)]
    curvatures: list[float] = []
    quotients: list[float] = []
    smallest = torch.finfo(b.dtype).eps * b.norm()
    stop = "solved" if r.norm() <= smallest else "max_iterations"
    while stop == "max_iterations" and len(curvatures) < max_iter:
        curvatures.append(float(d @ A @ d))
        if nonpos == "stop" and curvatures[-1] <= 0.0:
            stop = "non_positive_curvature"
            break
        quotients.append(float(d @ A @ d / (d @ d)))
        alpha = (r @ y) / (abs(curvatures[-1]) if nonpos == "saddle-free" else curvatures[-1])
        x_next = x + alpha * d
        r_next = r + alpha * (A @ d)
        if not math.isfinite(curvatures[-1] + model(x_next) + r_next.norm()):
            stop = "non_finite"
            break
        y_next = M @ r_next
        beta = (r_next @ y_next) / (r @ y)
        d = -y_next + beta * d
        x, r, y = x_next, r_next, y_next
        iterates.append(x)
        values.append(model(x))
        if r.norm() <= smallest:
            stop = "solved"
        elif martens and martens_rule(values):
            stop = "relative_progress"
    return Path(iterates, values, curvatures, stop, quotients)


def martens_rule(phi: list[float], epsilon: float = 5e-4) -> bool:
    """Martens (2010), Section 4.4, after iteration i: stop where i > k, φ_i < 0 and (φ_i − φ_{i−k}) / φ_i < kε."""
    i = len(phi) - 1
    k = max(10, math.floor(0.1 * i))
    return i > k and phi[i] < 0.0 and (phi[i] - phi[i - k]) / phi[i] < k * epsilon


def backtracking_candidates(path: Path) -> list[int]:
    """Numbers of the iterates to choose from: ⌈1.3ʲ⌉ − 1 for j = 0, 1, … (Martens 2010, Section 4.6) and the last."""
    numbers = {path.last}
    for j in range(100):
        number = math.ceil(1.3**j) - 1
        if number <= path.last and (number > 0 or path.values[0] < 0.0):
            numbers.add(number)
    return sorted(number for number in numbers if number > 0 or path.values[0] < 0.0)


def backtrack(losses: Callable[[int], float], candidates: list[int]) -> int:
    """From the last candidate backwards while the loss falls (Martens & Sutskever 2012, Section 8.7, p. 36).

    A loss that is not finite is worse than every other.
    """
    position = len(candidates) - 1
    while position > 0:
        here, before = losses(candidates[position]), losses(candidates[position - 1])
        here = here if math.isfinite(here) else math.inf
        before = before if math.isfinite(before) else math.inf
        if before >= here and here < math.inf:
            break
        position -= 1
    # Where no loss is finite the walk leads nowhere.
    return candidates[position] if math.isfinite(losses(candidates[position])) else candidates[-1]


def armijo_line_search(losses: Callable[[float], float], loss_0: float, slope: float) -> tuple[float, float]:
    """Return the first of 1, 0.8, 0.8², …, 0.8²⁰ with f(α) ≤ f(0) + 0.01 α f′(0), else 0, and the loss there."""
    if slope >= 0.0:
        return 0.0, loss_0
    for reductions in range(21):
        alpha = 0.8**reductions
        if losses(alpha) <= loss_0 + 0.01 * alpha * slope and losses(alpha) < loss_0:
            return alpha, losses(alpha)
    return 0.0, loss_0


def damping_factor(actual: float, predicted: float) -> float:
    """The rule of Levenberg and Marquardt (Martens 2010, Section 4.1); a NaN or a model that rises is a failure."""
    if math.isnan(actual) or math.isnan(predicted) or predicted >= 0.0:
        return 3.0 / 2.0
    ratio = actual / predicted
    if ratio < 1.0 / 4.0:
        return 3.0 / 2.0
    if ratio > 3.0 / 4.0:
        return 2.0 / 3.0
    return 1.0


# ---------------------------------------------------------------------- the step


@dataclass(frozen=True)
class Settings:
    """The optimizer's options under the names of its constructor; numbers that groups may set as vectors too."""

    curvature_opt: str = "ggn"
    adapt_damping: bool = True
    cg_max_iter: int = 250
    cg_decay_x0: float = 0.95
    use_cg_backtracking: bool = True
    lr: float | Tensor = 1.0
    use_linesearch: bool = True
    weight_decay: float | Tensor = 0.0
    martens_conv_crit: bool = True
    nonpos_curv_option: str = "stop"
    damping_bounds: tuple[float, float] = (1e-8, 1e6)


@dataclass(frozen=True)
class State:
    """What one step leaves to the next: θ, λ for each parameter (shape (P,)) and the last CG solution."""

    theta: Tensor
    damping: Tensor
    solution: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What a step did. `chosen` and `ratio` are None where CG found no direction."""

    state: State
    outcome: str
    loss_before: float
    loss_after: float
    path: Path = field(repr=False)
    candidates: list[int]
    chosen: int | None = None
    alpha: float = 0.0
    ratio: float | None = None


def step(
    network: Network,
    state: State,
    settings: Settings,
    batches: dict[str, Batch],
    M: Tensor | None = None,
) -> Step:
    """One iteration of Algorithm 1.

    It knows finite losses only. `batches` are named "gradient", "curvature" and "evaluation", each the union of its
    micro-batches. M is a dense preconditioner, shape (P, P).
    """
    theta, lr = state.theta, settings.lr
    weight_decay = settings.weight_decay * torch.ones_like(theta)

    def loss(at: Tensor) -> float:
        return float(network.loss(at, batches["evaluation"]) + 0.5 * (weight_decay * at**2).sum())

    g = gradient(network, theta, batches["gradient"]) + weight_decay * theta
    curvature = {"ggn": ggn, "hessian": hessian}[settings.curvature_opt]
    B = curvature(network, theta, batches["curvature"]) + torch.diag(weight_decay) + torch.diag(state.damping)
    path = conjugate_gradients(
        B,
        -g,
        None if state.solution is None else settings.cg_decay_x0 * state.solution,
        M,
        max_iter=settings.cg_max_iter,
        martens=settings.martens_conv_crit,
        nonpos=settings.nonpos_curv_option,
    )
    candidates = backtracking_candidates(path)
    loss_0 = loss(theta)
    if not candidates:
        factor = 1.5 if settings.adapt_damping else 1.0
        after = State(theta, clip(factor * state.damping, settings.damping_bounds), None)
        return Step(after, "no_direction", loss_0, loss_0, path, candidates)

    actual, predicted = loss(theta + path.iterates[-1]) - loss_0, path.values[-1]
    damping = state.damping
    if settings.adapt_damping:
        damping = damping_factor(actual, predicted) * damping
        loss_model, loss_there = (float(network.loss(theta, batches[name])) for name in ("gradient", "evaluation"))
        if settings.curvature_opt == "ggn" and loss_model != loss_there and math.isfinite(actual):
            most = max([0.0, *path.quotients]) - state.damping.min()
            damping = torch.minimum(damping, torch.maximum(state.damping + most / 50, most))
        damping = clip(damping, settings.damping_bounds)

    chosen = candidates[-1]
    if settings.use_cg_backtracking:
        chosen = backtrack(lambda n: loss(theta + path.iterates[n]), candidates)
    p = lr * path.iterates[chosen]

    alpha, loss_after = 1.0, loss(theta + p)
    if settings.use_linesearch:
        alpha, loss_after = armijo_line_search(lambda a: loss(theta + a * p), loss_0, float(g @ p))
    taken = alpha > 0.0
    return Step(
        state=State(theta + alpha * p, damping, path.iterates[-1] if taken else None),
        outcome="accepted" if taken else "no_decrease",
        loss_before=loss_0,
        loss_after=loss_after,
        path=path,
        candidates=candidates,
        chosen=chosen,
        alpha=alpha,
        ratio=actual / predicted,
    )


def clip(damping: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Keep every λ within the bounds, except that no damping stays no damping."""
    return torch.where(damping == 0.0, damping, damping.clamp(*bounds))
