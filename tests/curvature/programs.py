"""Random small PyTorch programs, each from one integer, and their curvature by dense matrices.

``Program(seed)`` is a closure with parameters: a network composed at random of the parts in ``program_parts``, outputs
and a loss of ``program_losses``, and what else is found in training code: frozen weights, hooks, constants in Python,
several candidate losses. ``truth(seed, use)`` is its curvature by other definitions, in float64:

- the generalised Gauss-Newton matrix JᵀHJ, with J row by row by reverse differentiation of the closure as it is, and
  H the Hessian of the loss as a function of the returned outputs alone, as independent variables;
- the Hessian, by differentiating the closure's gradient.

``python -m tests.curvature.random_programs --seed 17`` describes a program and compares its products.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from tests.curvature import program_losses as losses
from tests.curvature.program_parts import Batch, D, Knobs, N, Part, World
from torch import Tensor, nn

from latephase.curvature.math_kernels import math_kernels

VECTORS = 3  # a product is compared on this many random vectors
PENALTY = 0.01  # times the squares, where a closure penalises weights
KNOBS = [Knobs(0.8, 2, True, 0, 1), Knobs(1.3, 3, False, 1, 2)]


class Use(NamedTuple):
    """One use of a program: which closure, on which data and with which constants, and at which point."""

    name: str
    closure: int
    point: int


USES = [Use("first point", 0, 0), Use("second point", 0, 1), Use("second closure", 1, 2)]


class Precision(NamedTuple):
    """How a program computes, and how far its products may be from the truth.

    Attributes:
        name: Describes it.
        dtype: Of parameters and data.
        autocast: Whether the network is under bfloat16 autocast.
        tolerance: Relative to the norm of the true products.
        floor: Relative to the norm of the vectors, for products that are zero.
        rounding: Of the parameters, relative: what it changes in the truth is allowed too.
    """

    name: str
    dtype: torch.dtype
    autocast: bool
    tolerance: float
    floor: float
    rounding: float


PRECISIONS = {
    "float64": Precision("float64", torch.float64, False, 1e-8, 1e-11, 1e-14),
    "float32": Precision("float32", torch.float32, False, 1e-3, 1e-5, 1e-6),
    "autocast": Precision("bfloat16 autocast", torch.float32, True, 5e-2, 1e-2, 4e-3),
}


# ---------------------------------------------------------------------- the programs


class Program:
    """A random program.

    Args:
        seed: Decides on everything.
        exact: For references: to compute in float64, from the same weights and data, what the program computes in
            narrower types, and to have second derivatives where it lacks them.

    Attributes:
        model: The network, with all parameters.
        params: Those to differentiate by.
        description: What it is made of.
        parts: The kinds of parts in it.
        precision: How it computes.
    """

    def __init__(self, seed: int, *, exact: bool = False) -> None:
        draw = random.Random(seed)
        self.seed = seed
        self.precision = PRECISIONS[draw.choices(list(PRECISIONS), [20, 3, 1])[0]]
        self.world = World(_allowed(self.precision), exact)
        with torch.random.fork_rng(devices=[]), default_dtype(torch.float64):
            torch.manual_seed(seed)
            self.model = Network(draw, self.world)
            kinds, candidates = self.model.outputs.kinds, 1 if draw.random() < 0.88 else 2
            self._losses = [losses.Loss(draw, self.world, kinds) for _ in range(candidates)]
            self._structure = self._draw_structure(draw)
        self._draw_habits(draw)
        self.calls_backward &= not exact  # it would free the graph
        self.dtype = torch.float64 if exact else self.precision.dtype
        self.model.to(self.precision.dtype).to(self.dtype)
        self._freeze(draw)
        self._subset(draw)
        self._hook(draw)
        self.world.say(f"| {self.precision.name}")
        self.parts = self.world.parts
        self.description = " ".join(word for word in self.world.details if word)
        self._start = [p.detach().clone() for p in self.model.parameters()]
        self._buffers = [b.detach().clone() for b in self.model.buffers()]
        batches = [Batch.drawn(1000 * seed + i, self.precision.dtype).to(self.dtype) for i in range(2)]
        self._closures = [self._closure(batch, knobs) for batch, knobs in zip(batches, KNOBS, strict=True)]

    # What is drawn

    def _draw_structure(self, draw: random.Random) -> Callable[[list[Tensor], Tensor], Any]:
        self.returns_copies = self.returns_features = False
        if draw.random() < 0.5:
            return losses.STRUCTURES["as they are"]
        self.world.say("| returned")
        structure = self.world.choose(draw, losses.STRUCTURES)
        self.returns_copies = structure is losses.STRUCTURES["copies"]
        self.returns_features = structure is losses.STRUCTURES["with unused features"]
        return structure

    def _draw_habits(self, draw: random.Random) -> None:
        """What else a training closure does."""

        def habit(words: str, probability: float) -> bool:
            has = draw.random() < probability
            self.world.say(f"| {words}" * has)
            return has

        self.logs = habit("logs the loss", 0.15)
        self.calls_backward = habit("calls backward", 0.08)
        self.penalises = habit("penalises weights", 0.08)
        # Features that are returned would be an output that the loss is computed from.
        self.weighs = habit("weighs the loss by features", 0.0 if self.returns_features else 0.06)
        self.boxes = habit("loss of shape (1,)", 0.05)

    def _freeze(self, draw: random.Random) -> None:
        """Freeze some modules, or single parameters, but not the head."""
        if draw.random() > 0.35:
            return
        trunk = [*self.model.stem.named_modules(), *self.model.trunk.named_modules()]
        options = [m for _, m in trunk if list(m.parameters(recurse=False))]
        for module in draw.sample(options, min(len(options), draw.randint(1, 3))):
            whole = draw.random() < 0.7
            self.world.say(f"| frozen {'' if whole else 'in part '}{type(module).__name__}")
            for i, p in enumerate(module.parameters(recurse=False)):
                p.requires_grad_(p.requires_grad and not whole and i > 0)

    def _subset(self, draw: random.Random) -> None:
        """Differentiate by all trainable parameters, by those of some modules, or in another order."""
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        fate = draw.random()
        if fate < 0.08:
            self.world.say("| parameters shuffled")
            draw.shuffle(self.params)
        elif fate < 0.16 and len(self.params) > 2:
            self.world.say("| by some of the parameters")
            left_out = set(draw.sample(range(len(self.params)), 2))
            self.params = [p for i, p in enumerate(self.params) if i not in left_out]

    def _hook(self, draw: random.Random) -> None:
        """Mask the gradient of a parameter."""
        if draw.random() > 0.08:
            return
        p = draw.choice(self.params)
        mask = torch.arange(p.numel()).view(p.shape) % 2
        self.world.say("| hook masks a parameter's gradient")
        p.register_hook(lambda g: g * mask)

    # What is computed

    def at(self, use: Use) -> Callable[[], tuple[Tensor, Any]]:
        """Go to a point, with buffers and random numbers as at the start; return the closure."""
        generator = torch.Generator().manual_seed(use.point)
        with torch.no_grad():
            for p, start in zip(self.model.parameters(), self._start, strict=True):
                step = 0.2 * torch.randn(start.shape, generator=generator, dtype=torch.float64)
                moved = start + step * (use.point > 0 and p.requires_grad)
                p.copy_(moved.to(self.precision.dtype))
        for b, start in zip(self.model.buffers(), self._buffers, strict=True):
            b.data.copy_(start)
        torch.manual_seed(1000 * self.seed + use.point)
        self.world.log.clear()
        return self._closures[use.closure]

    def move(self, relative: float, seed: int) -> None:
        """Change the parameters a little."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.params:
                p.mul_(1.0 + relative * torch.randn(p.shape, generator=generator, dtype=torch.float64))

    def _closure(self, batch: Batch, knobs: Knobs) -> Callable[[], tuple[Tensor, Any]]:
        def forward() -> tuple[Tensor, Any]:
            self.world.batch, self.world.knobs = batch, knobs
            loss, outputs, _, h = self.evaluate()
            return loss, self._structure(outputs, h)

        return forward

    def evaluate(self) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor]:
        """Loss, outputs that it is computed from, what weighs it, features."""
        autocast = self.precision.autocast and self.dtype is self.precision.dtype
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            h, outputs = self.model()
        weight = 1.0 + 0.1 * h.sin().mean() if self.weighs else None
        loss = self.loss_of_outputs(outputs, weight)
        if self.penalises:
            loss = loss + PENALTY * sum(p.square().sum() for p in self.params)
        if self.logs:
            self.world.log.extend([loss.detach(), loss.item(), loss])
        if self.calls_backward:
            loss.backward(retain_graph=True)
        return loss.reshape(1) if self.boxes else loss, outputs, weight, h

    def loss_of_outputs(self, outputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """The loss as a function of the outputs alone: of several candidates, the one that the flag asks for."""
        candidates = [loss(outputs) for loss in self._losses]
        if len(candidates) > 1:
            self.world.log.append({"losses": [loss.detach() for loss in candidates]})
        loss = candidates[self.world.knobs.which % len(candidates)]
        return loss if weight is None else loss * weight

    @property
    def smooth(self) -> bool:
        """Whether small changes of the parameters make small changes of all derivatives."""
        return all(part.smooth for part in self.parts) and self._loss_names.isdisjoint(losses.KINKED)

    @property
    def exact(self) -> bool:
        """Whether autograd's derivatives are the derivatives."""
        hooked = any(p._backward_hooks for p in self.params) or "hook on the output" in self.description
        padded = "(one to pad)" in self.description  # its row of weights has a value, but by convention no gradient
        parts = all(part.exact for part in self.parts) and self._loss_names.isdisjoint(losses.CUT)
        return parts and not hooked and not padded

    @property
    def _loss_names(self) -> set[str]:
        return {name for loss in self._losses for name in loss.names}


class Network(nn.Module):
    """From the data to features of shape (N, D), through parts, to outputs."""

    def __init__(self, draw: random.Random, world: World) -> None:
        super().__init__()
        self.stem = Stem(draw, world)
        count = draw.choices([1, 2, 3], [6, 5, 2])[0]
        self.trunk = nn.Sequential(*(world.draw(draw, draw.choice(["plain", "any", "other"])) for _ in range(count)))
        self.outputs = losses.draw_outputs(draw, world)

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        h = self.trunk(self.stem())
        return h, self.outputs(h)


class Stem(nn.Module):
    """From one kind of data to features of shape (N, D)."""

    def __init__(self, draw: random.Random, world: World) -> None:
        super().__init__()
        self.kind = draw.choices(["vectors", "tokens", "images", "sequences", "coordinates"], [6, 2, 1, 1, 1])[0]
        world.say(f"{self.kind}:")
        self.world = world
        self.layers = {
            "vectors": lambda: nn.Linear(D, D) if draw.random() < 0.6 else nn.Identity(),
            "tokens": lambda: nn.Embedding(
                7, D, padding_idx=world.choose(draw, {"none to pad": None, "one to pad": 0})
            ),
            "images": lambda: _convolutional(draw, world),
            "sequences": lambda: nn.GRU(D, D, batch_first=True) if draw.random() < 0.3 else nn.Linear(D, D),
            "coordinates": lambda: nn.Sequential(nn.Linear(2, D), nn.Tanh(), nn.Linear(D, 2)),
        }[self.kind]()

    def forward(self) -> Tensor:
        return getattr(self, f"_{self.kind}")(self.world.batch)

    def _vectors(self, batch: Batch) -> Tensor:
        return self.layers(batch.vectors)

    def _tokens(self, batch: Batch) -> Tensor:
        return self.layers(batch.tokens).mean(1)

    def _images(self, batch: Batch) -> Tensor:
        return self.layers(batch.images).flatten(1)

    def _sequences(self, batch: Batch) -> Tensor:
        states = self.layers(batch.sequences)
        return states[0][:, -1] if isinstance(states, tuple) else states.tanh().amax(1)

    def _coordinates(self, batch: Batch) -> Tensor:
        """A network's values and its derivatives in its input."""
        x = batch.vectors[:, :2].clone().requires_grad_()
        u = self.layers(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return torch.cat([u, du], dim=1)


def _convolutional(draw: random.Random, world: World) -> nn.Module:
    between = world.choose(draw, {"tanh": nn.Tanh(), "GELU": nn.GELU(), "BatchNorm": nn.BatchNorm2d(2)})
    pool = world.choose(draw, {"average": nn.AvgPool2d(2, 1), "adaptive": nn.AdaptiveAvgPool2d((1, 2))})
    return nn.Sequential(nn.Conv2d(1, 2, 3), between, pool, nn.Flatten(), nn.LazyLinear(D)).apply(_materialise)


def _materialise(module: nn.Module) -> None:
    if isinstance(module, nn.Sequential):
        with torch.no_grad():
            module.eval()(torch.zeros(N, 1, 4, 4))
        module.train()


def _allowed(precision: Precision) -> Callable[[Part], bool]:
    """In narrower types, what rounds does not jump, and random numbers would be others."""
    if precision.dtype is torch.float64:
        return lambda part: True
    return lambda part: part.smooth and not part.draws


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


# ---------------------------------------------------------------------- the references


class Truth(NamedTuple):
    """True products with the matrices, each of shape (P, VECTORS), or the reason why there are none."""

    ggn: Tensor | str
    hessian: Tensor | str


def vectors(program: Program) -> Tensor:
    """Random vectors to multiply, shape (P, VECTORS)."""
    size = sum(p.numel() for p in program.params)
    generator = torch.Generator().manual_seed(program.seed)
    return torch.randn(size, VECTORS, generator=generator, dtype=torch.float64)


def truth(seed: int, use: Use, *, relative: float = 0.0, move: int = 0) -> Truth:
    """The products of a program at one use; at parameters that are moved by ``relative``, if that is not 0."""
    program = Program(seed, exact=True)
    V = vectors(program)
    with default_dtype(torch.float64), math_kernels(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Truth(*(_product(matrix, program, use, V, relative, move) for matrix in (true_ggn, true_hessian)))


def _product(
    matrix: Callable[..., Tensor], program: Program, use: Use, V: Tensor, relative: float, move: int
) -> Tensor | str:
    closure = program.at(use)
    if relative:
        program.move(relative, move)
    try:
        product = matrix(program, closure, V)
    except RuntimeError as error:
        return f"the reference itself: {error}"
    if matrix is true_ggn and program.returns_copies:
        return "the loss is not computed from what was returned"
    if program.world.clipped:
        return "a gradient is no linear function of another"
    return product if product.isfinite().all() else "not finite"


def true_ggn(program: Program, closure: Callable, V: Tensor) -> Tensor:
    """JᵀHJ V for V of shape (P, k), with all matrices dense."""
    _, outputs, weight = watched(program, closure)
    J = jacobian(outputs, program.params)
    return J.T @ output_hessian(program, outputs, weight) @ J @ V


def true_hessian(program: Program, closure: Callable, V: Tensor) -> Tensor:
    """The derivatives of ⟨gradient, v⟩ as columns, for V of shape (P, k); for unit vectors the Hessian, dense."""
    loss, _, _ = watched(program, closure)
    slope = gradient(loss, program.params, create_graph=True)
    return torch.stack([gradient(slope @ v, program.params) for v in V.T], dim=1)


def watched(program: Program, closure: Callable) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """The closure's loss, the outputs that it is computed from, and what weighs it."""
    seen = []
    evaluate = program.evaluate
    program.evaluate = lambda: seen.append(evaluate()) or seen[-1]
    try:
        closure()
    finally:
        del program.evaluate
    return seen[0][:3]


def jacobian(outputs: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
    """One reverse differentiation per entry of the outputs, real and imaginary parts apart: shape (entries, P)."""
    rows = [gradient(entry, params) for z in outputs for entry in real(z).reshape(-1)]
    return torch.stack(rows)


def gradient(value: Tensor, params: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
    """Shape (P,); zero where it does not depend on the parameters."""
    if not value.requires_grad:
        return torch.zeros(sum(p.numel() for p in params))
    grads = torch.autograd.grad(value, params, retain_graph=True, create_graph=create_graph, allow_unused=True)
    dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(grads, params, strict=True)]
    return torch.cat([g.reshape(-1) for g in dense])


def output_hessian(program: Program, outputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
    """The Hessian of the loss in the outputs, one reverse differentiation per entry of its gradient."""
    sizes = [real(z).numel() for z in outputs]
    flat = torch.cat([real(z.detach()).reshape(-1) for z in outputs]).requires_grad_()
    pieces = [part.view(real(z).shape) for part, z in zip(flat.split(sizes), outputs, strict=True)]
    variables = [
        torch.view_as_complex(piece) if z.is_complex() else piece for piece, z in zip(pieces, outputs, strict=True)
    ]
    loss = program.loss_of_outputs(variables, None if weight is None else weight.detach())
    if program.penalises:  # a parameter that is an output itself is penalised as an output
        returned = [v for v, z in zip(variables, outputs, strict=True) if any(z is p for p in program.params)]
        loss = loss + PENALTY * sum(v.square().sum() for v in returned)
    (slope,) = torch.autograd.grad(loss, flat, create_graph=True)
    return jacobian([slope], [flat])


def real(z: Tensor) -> Tensor:
    return torch.view_as_real(z) if z.is_complex() else z
