"""Two phases of a training as one optimizer: any of torch's first, Hessian-free steps when it is time."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latephase.checks import boolean, function, positive_integer
from latephase.distributed import find_ranks, mean
from latephase.switching.carry_over import mean_second_moment
from latephase.switching.conditions import When, condition, condition_state, load_condition_state, why_now
from latephase.switching.state import merged, merged_view, refuse_different_parameters, taken_apart

Closure = Callable[[], Any]


class PhaseSwitch(torch.optim.Optimizer):
    """Begin with one optimizer, and go on with another when it is time (Tatzel et al. 2022, Section 1).

    Schedulers and checkpoints see one optimizer. Its `param_groups` are the first one's, in both phases: a scheduler's
    learning rate is for the first phase. The second's options (the λ of `HessianFree`, and its `lr`, where the line
    search begins) are in `second.param_groups`, which no scheduler of the switch touches.

    Both keep their state from one phase to the next. Where the first is of Adam's family and the second has a λ, that
    begins at the mean of Adam's second moments (`carry_over`).

    Args:
        first: The optimizer to begin with.
        second: The one to go on with, over the same parameters: `HessianFree` or any other.
        when: When to switch, asked after each step of the first phase: a number of steps; a function
            `(steps, loss) -> bool`, whose loss is None for steps without a closure; or an object with
            `update(loss, optimizer) -> bool`, `reason`, `state_dict` and `load_state_dict`. Where the second has a
            `process_group`, they see the mean of its ranks' losses.
        patience: Hand back after so many second-phase steps in a row that were not taken, for a second that has a
            `last_step`, as `HessianFree`; None for never.
        carry_over: Whether λ begins, at the switch, at the mean of Adam's second moments rather than at the `damping`
            that the second was given, see docs/switching.md.

    Attributes:
        first: The optimizer to begin with.
        second: The one to go on with.
        when: When to switch.
        patience: After how many failures in a row to hand back.
        carry_over: Whether λ begins at the mean of Adam's second moments.
        phase: `"first"` or `"second"`: which of them takes the next step.
        reason: Why it is that one, in words.
        steps: Steps taken, in both phases.
        failures: Second-phase steps in a row that were not taken.

    Raises:
        TypeError: For an argument of the wrong type, naming it and what is allowed.
        ValueError: For one out of range, or optimizers with different parameters, naming those.

    Example:
        >>> import torch
        >>> from latephase import HessianFree
        >>> model, x = torch.nn.Linear(2, 1, bias=False), torch.eye(2)
        >>> adam, hf = torch.optim.Adam(model.parameters()), HessianFree(model.parameters())
        >>> opt = PhaseSwitch(adam, hf, when=3)
        >>> def closure():
        ...     opt.zero_grad()
        ...     outputs = model(x)
        ...     loss = (outputs - 1.0).square().mean()
        ...     loss.backward()
        ...     return loss, outputs
        >>> for _ in range(9):
        ...     loss = opt.step(closure)
        >>> opt.phase, opt.reason.partition(";")[0], loss < 0.1
        ('second', '3 steps were taken', True)
    """

    def __init__(
        self,
        first: torch.optim.Optimizer,
        second: torch.optim.Optimizer,
        when: When,
        *,
        patience: int | None = None,
        carry_over: bool = True,
    ) -> None:
        for name, optimizer in (("first", first), ("second", second)):
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TypeError(f"{name} must be a torch.optim.Optimizer, not {optimizer!r}")
        refuse_different_parameters(first, second)
        self.first, self.second, self.when = first, second, condition(when)
        self.patience = None if patience is None else positive_integer("patience", patience)
        if patience is not None and not hasattr(second, "last_step"):
            raise TypeError(f"patience needs a second with a last_step, which {type(second).__name__} has not")
        self.carry_over = boolean("carry_over", carry_over)
        self.phase, self.reason = "first", "the training begins"
        self.steps = self.failures = 0
        self._done = False
        # Not Optimizer.__init__, which would make groups and a state of its own: hooks, and no more, are made here.
        self.__setstate__({"defaults": first.defaults})

    # ------------------------------------------------------------------ a step

    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, evaluate: Closure | None = None, **options: Any
    ) -> float | None:
        """Take one step of the present phase.

        Args:
            closure: One for both phases: `zero_grad`, loss, `backward`, return `(loss, outputs)`. The loss alone is
                enough unless the second takes products with the GGN. The first phase also goes without, with the
                gradients that are there.
            evaluate: Data on which the second's steps judge themselves, see `HessianFree.step`; not used before.
            **options: Further arguments of the second's `step`, likewise.

        Returns:
            The loss: before the step in the first phase (None without a closure), and what the second's `step`
            returns in the second.

        Raises:
            TypeError: For an argument that the second's `step` does not have.
            RuntimeError: If the second phase gets no closure, or the first one's closure leaves no gradient.
        """
        if closure is not None:
            function("closure", closure)
        if evaluate is not None:
            options["evaluate"] = evaluate
        self._check_options(options)
        if self.phase == "second":
            return self._second_step(closure, options)
        if closure is None and self._is_initialisation():
            self.first.step()
            return None
        loss = self._first_step(closure)
        self.steps += 1
        self._switch_if_due(loss)
        return loss

    def acc_step(self, *args: Any, **options: Any) -> float:
        """Take one step of the second phase by `second.acc_step`, see `HessianFree.acc_step`.

        Args:
            *args: Its arguments.
            **options: Likewise.

        Returns:
            What it returns.

        Raises:
            RuntimeError: In the first phase, which goes by `step`.
            TypeError: If the second has no such method.
        """
        if not hasattr(self.second, "acc_step"):
            raise TypeError(f"{type(self.second).__name__} has no acc_step; call step(closure)")
        if self.phase == "first":
            raise RuntimeError("acc_step is for the second phase; call step() as long as opt.phase is 'first'")
        # Hooks and schedulers count calls of step, and this is a step, too.
        return self.step(lambda: None, _acc_step=(args, options))  # type: ignore[return-value]

    def _is_initialisation(self) -> bool:
        """Whether a checkpointing tool makes a fresh optimizer create its state, by a step of length zero."""
        if self.steps > 0 or any(float(group.get("lr", 1.0)) != 0.0 for group in self.param_groups):
            return False
        return not any(p.grad is not None and bool(p.grad.any()) for g in self.param_groups for p in g["params"])

    def _first_step(self, closure: Closure | None) -> float | None:
        if closure is None:
            self.first.step()
            return None
        losses: list[float] = []

        def loss_alone() -> Any:
            loss = _loss(closure())
            if not losses and all(p.grad is None for group in self.param_groups for p in group["params"]):
                raise RuntimeError(
                    "the closure left no gradient, without which the first phase cannot step: it must call backward() "
                    "on the loss (in the second phase that does nothing)"
                )
            losses.append(float(loss.detach()) if isinstance(loss, Tensor) else float(loss))
            return loss

        self.first.step(loss_alone)
        return losses[0]

    def _second_step(self, closure: Closure | None, options: dict[str, Any]) -> float | None:
        if closure is None and self._goes_without():
            loss = self.second.step()
        elif closure is None:
            raise RuntimeError(
                f"the second phase has begun ({self.reason}), and {type(self.second).__name__} gets a closure: call "
                "opt.step(closure) with one that calls zero_grad, computes the loss, calls backward and returns "
                "(loss, outputs); or opt.hand_back() to go on with the first optimizer. Nothing has changed"
            )
        elif "_acc_step" in options:
            args, named = options["_acc_step"]
            loss = self.second.acc_step(*args, **named)  # type: ignore[attr-defined]
        elif hasattr(self.second, "last_step"):
            loss = self.second.step(closure, **options)
        else:
            loss = self.second.step(lambda: _loss(closure()), **options)
            loss = loss.detach() if isinstance(loss, Tensor) else loss
        self.steps += 1
        self._count_failures()
        return None if loss is None else float(loss)

    def _goes_without(self) -> bool:
        """Whether the second steps without a closure, as most of torch's do; L-BFGS and Hessian-free steps do not."""
        closure = next(iter(list(inspect.signature(type(self.second).step).parameters.values())[1:]), None)
        return not hasattr(self.second, "last_step") and (closure is None or closure.default is None)

    def _check_options(self, options: dict[str, Any]) -> None:
        """Refuse in both phases what the second would refuse at the switch."""
        known = inspect.signature(type(self.second).step).parameters
        if any(one.kind is one.VAR_KEYWORD for one in known.values()):
            return
        unknown = [name for name in options if name not in known and name != "_acc_step"]
        if unknown:
            raise TypeError(f"{type(self.second).__name__}.step, the second phase's, has no {', '.join(unknown)}")

    # ------------------------------------------------------------------ from phase to phase

    def _switch_if_due(self, loss: float | None) -> None:
        if self._done:
            return
        if loss is not None and not isinstance(self.when, int):
            loss = self._of_all_ranks(loss)
        reason = why_now(self.when, self.steps, loss, self.first)
        if reason is not None:
            self.hand_over(reason)

    def _of_all_ranks(self, loss: float) -> float:
        """The mean over the processes that will take the second's steps together: all must switch at once."""
        device = self.param_groups[0]["params"][0].device
        ranks = find_ranks(getattr(self.second, "process_group", None), device, by_hand=True)
        return mean(ranks, "the loss of a step", lambda: loss)

    def hand_over(self, reason: str = "handed over by hand") -> None:
        """Go on with the second optimizer, whatever `when` says.

        Args:
            reason: Why, in words.
        """
        self.phase, self.reason, self.failures = "second", reason + self._carried_over(), 0

    def _carried_over(self) -> str:
        """Let λ begin where Adam's second moments say; return that in words."""
        mean = mean_second_moment(self.first) if self.carry_over else None
        groups = [group for group in self.second.param_groups if "damping" in group]
        if mean is None or not groups:
            return ""
        low, high = getattr(self.second, "damping_bounds", (0.0, math.inf))
        for group in groups:
            group["damping"] = min(max(mean, low), high)
        return f"; λ begins at {groups[0]['damping']:.3g}, the mean of {type(self.first).__name__}'s second moments"

    def hand_back(self, reason: str = "handed back by hand") -> None:
        """Go back to the first optimizer, which goes on with the state it had, for good: `when` is asked no more.

        Args:
            reason: Why, in words.
        """
        self.phase, self.reason, self.failures, self._done = "first", reason, 0, True

    def _count_failures(self) -> None:
        record = getattr(self.second, "last_step", None)
        if record is None:
            return
        taken = math.isfinite(record.loss_after) and record.step_size > 0.0
        self.failures = 0 if taken else self.failures + 1
        if self.patience is not None and self.failures >= self.patience:
            self.hand_back(f"{self.failures} steps in a row were not taken, at last because {record.outcome.value}")

    # ------------------------------------------------------------------ as one optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The first optimizer's groups, in both phases."""
        return self.first.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.first.param_groups = groups

    @property
    def state(self) -> defaultdict[Any, Any]:  # type: ignore[override]
        """Both optimizers' states by parameter, the second's with `second.` before their names. To be read only."""
        # Tools that load in place step a fresh optimizer that has no state to make it create one.
        fresh = self.steps == 0 and not self.first.state
        return defaultdict(dict) if fresh else merged_view(self.first, self.second)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to both optimizers; options in the group are the first's, the second has its defaults.

        Args:
            param_group: As for any optimizer.

        Raises:
            TypeError: If it is no dict.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, not {type(param_group).__name__}")
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        self.first.add_param_group({**param_group, "params": params})
        try:
            self.second.add_param_group({"params": params})
        except BaseException:
            self.first.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return a state that looks like the first's, and holds the second's, the phase, and what `when` has seen."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        names = ("phase", "reason", "steps", "failures")
        entry = {**{name: getattr(self, name) for name in names}, "done": self._done}
        state = merged(self.first, self.second, {**entry, "when": condition_state(self.when)})
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, in the phase that it was saved in.

        Args:
            state_dict: What `state_dict` returned, for the same kinds of optimizers and groups.

        Raises:
            ValueError: If it is none of these; nothing has changed then.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        first, second, entry = taken_apart(state_dict, self.first, self.second)
        load_condition_state(self.when, entry["when"])
        self.first.load_state_dict(first)
        self.second.load_state_dict(second)
        self.phase, self.reason = str(entry["phase"]), str(entry["reason"])
        self.steps, self.failures, self._done = int(entry["steps"]), int(entry["failures"]), bool(entry["done"])
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but PyTorch's hooks, and the `step` that a scheduler hangs on this one object."""
        names = ["first", "second", "when", "patience", "carry_over", "phase", "reason", "steps", "failures", "_done"]
        return {name: getattr(self, name) for name in [*names, "defaults"]}

    def __repr__(self) -> str:
        names = type(self.first).__name__, type(self.second).__name__
        return f"PhaseSwitch({names[0]} -> {names[1]}, in the {self.phase} phase: {self.reason})"


def _loss(result: Any) -> Any:
    """The loss, of a closure that returns it alone or with outputs."""
    return result[0] if isinstance(result, (tuple, list)) else result
