"""The problem at one point θ, with the graph that its derivatives need."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from latephase.curvature.autograd_graph import has_reentrant_checkpoint, parameter_made_use_of_before
from latephase.curvature.inferred import ConvexCalls
from latephase.curvature.loss_hessians import LossCall
from latephase.curvature.program import Program
from latephase.curvature.pull_back import pull_back
from latephase.curvature.recording import Recording, refuse_made_before
from latephase.curvature.returned import Forward, loss_and_outputs, name_of
from latephase.parameters import Parameters
from latephase.transaction import Evaluation, Repeat, as_they_are
from latephase.watching import tensors_in

_UNREACHED = "does not depend on any trainable parameter of this optimizer"


@dataclass
class Point:
    """A closure's loss and outputs at θ, as functions of the parameters.

    Attributes:
        forward: The closure.
        repeat: How to run it again.
        parameters: The flat view of the parameters, the leaves of the graph.
        loss: A scalar; it has a graph as long as `has_graph`.
        outputs: The tensors the closure returned beside the loss, in whatever nesting, that the loss was computed from.
        taken: How the outputs were inferred, where the closure returned none; or why there are none, then.
        loss_call: The call of a known loss function on the outputs that made the loss, if that is how it was made.
        program: What the closure did.
        first_node: Nodes of the graph up to this number are older than the closure's call.
        evaluation: The closure's call; its graph is to be used within `evaluation.as_left()`.
        has_graph: Whether loss and outputs have their graph.
        gradient_pieces: The loss's gradient in the parameters' shapes, once `gradient` has computed it.
    """

    forward: Forward
    repeat: Repeat
    parameters: Parameters
    loss: Tensor
    outputs: list[Tensor]
    taken: str
    loss_call: LossCall | None
    program: Program
    first_node: int
    evaluation: Evaluation
    has_graph: bool = True
    gradient_pieces: list[Tensor | None] | None = None

    @property
    def leaves(self) -> list[Tensor]:
        """The parameters, in whose shapes tangents and gradients come."""
        return self.parameters.tensors

    def gradient(self, *, retain_graph: bool) -> Tensor:
        """Return the gradient of the loss, shape (P,); zero for parameters that the loss does not use.

        Raises:
            ValueError: If the loss uses no parameter at all.
        """
        with torch.enable_grad(), self.evaluation.as_left():
            grads = torch.autograd.grad(self.loss, self.leaves, retain_graph=retain_graph, allow_unused=True)
        unused = [grad is None for grad in grads]
        if any(unused):
            self.refuse_reentrant_checkpoints()
        if all(unused):
            raise ValueError(f"the loss that {name_of(self.forward)} returned {_UNREACHED}")
        self.gradient_pieces = list(grads)
        if not retain_graph:
            self.drop_graph()
        return self.parameters.join(grads)

    def pull_back(self, cotangents: list[Tensor]) -> list[Tensor]:
        """Jᵀu by the point's graph, for u shaped like the outputs."""
        with self.evaluation.as_left():
            return pull_back(self.outputs, self.leaves, cotangents)

    def refuse_reentrant_checkpoints(self) -> None:
        """Raise RuntimeError if the graph has a node that lets no gradient through, and does not say so."""
        if has_reentrant_checkpoint(self.loss):
            raise RuntimeError(
                "reentrant checkpointing drops the gradients of the parameters inside it when gradients are asked for "
                "by tensor; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )

    def refuse_what_was_made_before(self) -> None:
        """Raise RuntimeError if the loss depends on a parameter by way of something older than the closure's call."""
        refuse_made_before(parameter_made_use_of_before(self.loss, self.first_node, self.leaves))

    def random_direction(self, seed: int) -> list[Tensor]:
        """A normal random vector, split into the parameters' shapes; takes nothing from the global stream."""
        return [_normal(q, seed + i) for i, q in enumerate(self.leaves)]

    def random_outputs(self, seed: int) -> list[Tensor]:
        """The same in output space."""
        return [_normal(z, seed + i) for i, z in enumerate(self.outputs)]

    def drop_graph(self) -> None:
        """Keep the values of loss and outputs, and let go of the graph and the activations it holds."""
        self.loss = self.loss.detach()
        self.outputs = [z.detach() for z in self.outputs]
        self.has_graph = False

    def restore_graph(self) -> None:
        """Run the closure again if its graph has been dropped."""
        if not self.has_graph:
            fresh = self.evaluated_again()
            self.loss, self.outputs, self.program = fresh.loss, fresh.outputs, fresh.program
            self.first_node, self.evaluation, self.has_graph = fresh.first_node, fresh.evaluation, True

    def evaluated_again(self) -> Point:
        """The closure at the parameters' present values, which may be others than this point's."""
        return evaluate(self.forward, self.parameters, self.repeat)


def evaluate(forward: Forward, parameters: Parameters, repeat: Repeat) -> Point:
    """Call `forward` once with a graph, watch it, and check what it returns.

    Returns:
        The point at the parameters' present values: loss, outputs, graph and the program that was run.

    Raises:
        TypeError: If `forward` returns neither a scalar loss nor a pair `(loss, outputs)`.
        ValueError: If the loss does not depend on any trainable parameter.
    """
    convex_calls = ConvexCalls()
    recording = Recording(parameters.tensors, convex_calls)
    with repeat.closure() as evaluation, torch.enable_grad(), recording, as_they_are():
        loss, outputs = loss_and_outputs(forward(), evaluation.differentiated, forward)
    if not loss.requires_grad:
        raise ValueError(
            f"the loss that {name_of(forward)} returned has no graph: it was detached, computed under "
            f"torch.no_grad(), or {_UNREACHED}"
        )
    if outputs is None:
        with evaluation.as_left():
            made_loss, taken = convex_calls.infer(loss)
    else:
        made_loss, taken = frontier(loss, _leaves(outputs)), ""
    call = next((c for c in recording.loss_calls if c.result is loss and _on_outputs(c, made_loss)), None)
    if call is not None:  # without the outputs' graph, which is not its to keep
        call = call._replace(args=(made_loss[0].detach(), *call.args[1:]), result=loss.detach())
    program = recording.program(loss, made_loss)
    return Point(forward, repeat, parameters, loss, made_loss, taken, call, program, recording.start, evaluation)


def _on_outputs(call: LossCall, outputs: list[Tensor]) -> bool:
    """Whether the only output is what the loss is taken of, and targets and weights were not made of it."""
    if len(outputs) != 1 or not call.args or call.args[0] is not outputs[0]:
        return False
    return not any(t.requires_grad for t in tensors_in([call.args[1:], call.kwargs]))


def _leaves(outputs: object) -> list[object]:
    """All leaves of nested outputs; dataclasses are opened too."""
    leaves: list[object] = []
    for leaf in pytree.tree_leaves(outputs):
        if dataclasses.is_dataclass(leaf) and not inspect.isclass(leaf):
            leaves += _leaves([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        else:
            leaves.append(leaf)
    return leaves


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=_drawable(like.dtype)).to(like.dtype)


def _drawable(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def frontier(loss: Tensor, outputs: Sequence[object]) -> list[Tensor]:
    """Return those of the outputs that the loss was computed from directly, and not by way of another output.

    A model may return intermediate results beside its predictions; they are not what J and H are about.
    """
    tensors = [z for z in outputs if isinstance(z, Tensor) and z.requires_grad]
    edges = {_edge(z): i for i, z in enumerate(tensors)}
    found: set[int] = set()
    seen = set()
    stack = [_edge(loss)]
    while stack and edges:
        edge = stack.pop()
        if edge in edges:
            found.add(edges[edge])
        elif edge[0] is not None and edge[0] not in seen:
            seen.add(edge[0])
            stack.extend(edge[0].next_functions)
    return [tensors[i] for i in sorted(found)]


def _edge(tensor: Tensor) -> tuple[Node | None, int]:
    """A tensor's place in the graph; for a parameter that is returned as it is, that of its leaf."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn, tensor.output_nr
    with torch.enable_grad():
        return tensor.view_as(tensor).grad_fn.next_functions[0]  # type: ignore[union-attr]
