"""Several strategies race for one budget: a short trial for each, and the rest for the one that promises most.

The race is itself what takes steps: whoever calls it owns clock and budget, and tells it which share is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from latephase.distributed import RankLostError, Ranks
from latephase.finishing.candidates import Candidate
from latephase.finishing.entry import Entry
from latephase.finishing.phase import Phase, Point
from latephase.finishing.prices import Means, TooDearError
from latephase.finishing.promise import Sample
from latephase.strategies.statistics import renew_statistics
from latephase.strategies.strategy import Step
from latephase.strategies.trainer import copied_state
from latephase.tasks.split import Data
from latephase.tasks.task import Task

TRIALS = 0.1  # share of the budget for all trials of the beginning together
FEWEST = 3  # steps that a trial should have, if they fit into that share
DEAREST = 2.0  # times a trial's length that one step may take
ALONE = 0.1  # share of the budget that a step may take which is not on trial, unless all steps take more
LATE = 0.06  # share that a step may take which was too dear for a trial, once it is known that such steps lead
LONG = 0.3  # share that is enough for a decay that nothing speaks for
CLEARLY = 0.05  # relative difference that is more than a guess
REVIEW = 0.1  # share after which a strategy that has been chosen is compared with the others again
JUDGED = 20  # times that a budget is looked at, besides trials
STALLED = 1e-3  # relative progress in a review below which a strategy has come to its end
RENEWED = 50  # batches with which batch normalisation's statistics are renewed before a network is judged


class Race:
    """See the module.

    Args:
        task: To train.
        model: The network; steps change it.
        data: To train on.
        generator: Draws the batches.
        candidates: The strategies, in the order in which they are tried.
        judge: Scores a network, the lower the better.
        rate: How many gradients can be had for the budget, as far as is known before the first step.

    Attributes:
        phases: What has been done so far.
        best_score: Of the best state so far.
        best_state: Its state dict.
        best_by: The candidate that it comes from; empty while it is the start.
        over: Whether nothing is left to do.
        ended_early: Whether it is because nothing promised anything any more.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        data: Data,
        generator: torch.Generator,
        candidates: Sequence[Candidate],
        judge: Callable[[nn.Module], float],
        rate: float,
    ) -> None:
        self._task, self._model, self._data, self._generator = task, model, data, generator
        self._entries = {candidate.name: Entry(candidate) for candidate in candidates}
        self._judge, self._first_rate = judge, rate
        self._start = copied_state(model)
        self._trainer: Any = None
        self._base = 0.0  # share that had been spent on the candidate at work before this phase
        self._last = 0.0  # share that its last step took
        # Who has no rival needs no trial.
        self._trials = [(c.name, share) for c in candidates for share in c.trials] if len(candidates) > 1 else []
        self.phases: list[Phase] = []
        self.over = self.ended_early = False
        self.best_by = ""
        self.best_state, self.best_score = self._start, judge(model)
        self.start_score = self.best_score

    # ------------------------------------------------------------------ steps

    def step(self, spent: float) -> Step | None:
        """Take one step of the strategy at work, or see to it that another one is.

        Args:
            spent: The share of the budget that is gone, judging included.

        Returns:
            What the step was; None if there was none.
        """
        if self._trainer is None:
            self._next(spent)
            return None
        phase = self.phases[-1]
        gone = (spent - phase.begin) / phase.length
        if self._is_over(phase, spent):
            self._guarded(spent, lambda: self._end(phase, spent))
            return None
        step: Step | None = self._guarded(spent, lambda: self._trainer.step(gone))
        return step

    def took(self, step: Step, spent: float) -> bool:
        """Count a step, and judge the network if it is time to.

        Args:
            step: What `step` returned.
            spent: The share of the budget that is gone now.

        Returns:
            Whether the network has been judged.
        """
        phase = self.phases[-1]
        self._last = max(0.0, spent - max(phase.end, phase.begin))
        phase.steps, phase.gradients, phase.end = phase.steps + 1, phase.gradients + step.gradients, spent
        if phase.trial and self._entry.candidate.restarts:
            return False  # only its end says anything
        since = spent - (phase.points[-1].share if phase.points else phase.begin)
        if since < (phase.length / 2 if phase.trial else 1 / JUDGED):
            return False
        self._guarded(spent, lambda: self._look(phase, spent))
        return True

    def _is_over(self, phase: Phase, spent: float) -> bool:
        """Whether a phase has had its share: a trial where less than half a step of it is left. None without a step."""
        if not phase.steps:
            return spent >= 1.0
        if not phase.trial:
            return spent >= phase.begin + phase.length or spent + self._last > 1.0
        too_few = phase.steps < FEWEST and spent + self._last <= TRIALS
        return spent + self._last / 2 >= phase.begin + phase.length and not too_few

    @property
    def _entry(self) -> Entry:
        return self._entries[self.phases[-1].candidate]

    def _guarded(self, spent: float, work: Callable[[], Any]) -> Any:
        """Do what a candidate can fail in; that puts it out of the race. Once all have failed the error is raised."""
        try:
            return work()
        except TooDearError as error:
            self._drop(spent, f"not tried: {error}")
            self._entry.price = error.share
        except RankLostError:  # no strategy's fault
            raise
        except Exception as error:
            self._drop(spent, f"failed with {type(error).__name__}: {error}")
            if all(entry.out for entry in self._entries.values()):  # then it is not the strategies' fault
                raise
        return None

    def _drop(self, spent: float, why: str) -> None:
        phase = self.phases[-1]
        phase.end, phase.outcome = spent, why
        self._entry.out = why
        self._trainer = None

    # ------------------------------------------------------------------ judging

    def _look(self, phase: Phase, spent: float) -> None:
        network = self._trainer.judged()
        if network is self._model:  # a mean has renewed its own
            renew_statistics(network, self._some_inputs(), self._device, self._ranks)
        score = self._judge(network)
        phase.points.append(Point(spent, score))
        samples = self._entry.samples
        samples.append(Sample(self._base + spent - phase.begin, score))
        samples.sort(key=lambda sample: sample.share)  # those of a decay are of several lengths
        if score < self.best_score:
            self.best_score, self.best_by, self.best_state = score, phase.candidate, copied_state(network)
        if not math.isfinite(score):
            self._drop(spent, "diverged: its score is not finite")

    def _some_inputs(self) -> Any:
        size = self._task.batch_size
        for start in range(0, min(len(self._data.train), RENEWED * size), size):
            yield self._data.train.take(slice(start, start + size)).inputs

    @property
    def _ranks(self) -> Ranks:
        return self._task.ranks(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    # ------------------------------------------------------------------ ends and beginnings

    def _end(self, phase: Phase, spent: float) -> None:
        """End a phase, or give it more of the budget where nothing promises more."""
        if not phase.points or phase.points[-1].share < phase.end:
            self._look(phase, spent)
        entry, left = self._entry, 1.0 - spent
        if entry.out:  # the look has seen that it has diverged
            return
        self.over = left <= self._last
        phase.outcome = f"score {min(point.score for point in phase.points):.6g}"
        if entry.candidate.restarts:
            self._trainer = None
            return
        if not phase.trial:
            self._see_whether_stalled(phase, entry)
            self._see_who_can_be_tried(entry)
        goes_on = not phase.trial and not self._trials and not self._has_had_its_time(entry, left)
        if goes_on and self._leader(left) is entry:
            phase.length += min(left, REVIEW)
            return
        entry.kept = self._trainer.state_dict()
        self._trainer = None

    def _see_whether_stalled(self, phase: Phase, entry: Entry) -> None:
        if not entry.candidate.from_best:  # what an average gains may come late
            return
        before = [s.score for s in entry.samples if s.share <= entry.samples[-1].share - 0.9 * REVIEW]
        if not before or min(before) - min(s.score for s in entry.samples) >= STALLED * abs(min(before)):
            return
        entry.stalled = True
        phase.outcome += ", and no progress any more"
        others = [e for e in self._entries.values() if e is not entry and e.candidate.from_best and not e.out]
        # From the same state as before they would come to the same.
        self._trials = [(e.candidate.name, e.candidate.trials[-1]) for e in others if e.rises(self.best_score)]

    def _has_had_its_time(self, entry: Entry, left: float) -> bool:
        """Whether it has come to its end while there is what has taken no step so far."""
        return entry.stalled and any(other.unknown(left) for other in self._entries.values())

    def _see_who_can_be_tried(self, leader: Entry) -> None:
        """Where second-order steps lead, others that had no trial or only one step in it are worth a longer one."""
        if not leader.candidate.from_best:
            return
        for entry in self._entries.values():
            short = entry.candidate.from_best and entry is not leader and len(entry.samples) < 3 and not entry.out
            if (entry.price and entry.price <= LATE) or short:
                entry.price, entry.out = 0.0, ""
                self._trials.append((entry.candidate.name, LATE))

    def _next(self, spent: float) -> None:
        """Begin the next trial, or go on with what promises most."""
        first = all(phase.trial for phase in self.phases)
        while self._trials:
            name, share = self._trials.pop(0)
            entry = self._entries[name]
            if entry.out or (first and spent + share / 2 > TRIALS):
                continue
            self._begin_anew(entry, spent, share, trial=True, reason=self._origin(entry))
            return
        left = 1.0 - spent
        if left <= 0.0:
            self.over = True
            return
        leader = self._leader(left)
        if leader and first and (hopeful := self._hopeful(leader, left)):
            reason = f"a longer trial, as it may yet be better than {leader.candidate.name}"
            self._begin_anew(hopeful, spent, hopeful.candidate.longer or 0.0, trial=True, reason=reason)
        elif leader and (first or leader.expected(left, self.best_score) < self.best_score):
            self._go_on(leader, spent, left, self._comparison(left))
        else:
            self._go_on_without_a_promise(spent, left)

    def _go_on(self, entry: Entry, spent: float, left: float, reason: str) -> None:
        """Spend on it all that is left if it cannot be broken off, else as much as passes until the next review."""
        if entry.candidate.restarts or entry.kept is None or entry.rises(self.best_score):
            length = left if entry.candidate.restarts or len(self._entries) == 1 else min(left, REVIEW)
            self._begin_anew(entry, spent, length, trial=False, reason=reason)
        else:
            self._begin_again(entry, spent, min(left, REVIEW), reason)

    def _go_on_without_a_promise(self, spent: float, left: float) -> None:
        """Spend the rest on what gains late or has taken no step so far, whichever is first; else the race is over."""
        chosen, tried = {phase.candidate for phase in self.phases if not phase.trial}, self._tried()
        alone = len(self._entries) == 1
        for name, entry in self._entries.items():
            decay_is_worth_it = entry.candidate.restarts and name not in chosen and left >= LONG
            if entry.unknown(left):
                reason = "the only one" if alone else "no trial of it fitted, and nothing promises more"
                entry.price, entry.out = 0.0, ""
            elif name in tried and (entry.steady or decay_is_worth_it):
                reason = "nothing promises more than the best so far; what this gains may come late; "
                reason += self._comparison(left)
            else:
                continue
            self._go_on(entry, spent, left, reason)
            return
        self.over, self.ended_early = True, bool(tried)

    def _hopeful(self, leader: Entry, left: float) -> Entry | None:
        """Who may be better than second-order steps promise to be, if a longer trial shows it."""
        if not leader.candidate.from_best:
            return None
        promised = leader.expected(left, self.best_score)
        others = (entry for entry in self._entries.values() if entry is not leader)
        return next((entry for entry in others if entry.hoped(left) < promised), None)

    def _origin(self, entry: Entry) -> str:
        if not entry.candidate.from_best or not self.best_by:
            return "a trial from where the training stood"
        return f"a trial from the best weights so far, which are those of {self.best_by}"

    def _begin_anew(self, entry: Entry, spent: float, share: float, *, trial: bool, reason: str) -> None:
        rate, candidate = self._rate(), entry.candidate
        self.phases.append(Phase(candidate.name, trial, reason, spent, share, spent))
        state, score = (self._start, self.start_score)
        if candidate.from_best:
            state, score = self.best_state, self.best_score
        if not candidate.restarts or not entry.samples:
            entry.samples = [Sample(0.0, score)]
        entry.means = Means(max(candidate.dearest, self._dearest(spent, share) if trial else ALONE), rate)
        if not trial and not entry.fits():  # nothing else is worth what is left
            entry.means = Means(1.0 - spent, rate)
        self._base = self._last = 0.0

        def begin() -> None:
            self._model.load_state_dict(state)
            self._trainer = self._built(entry)

        self._guarded(spent, lambda: self._ranks.each("a beginning", begin))

    def _dearest(self, spent: float, share: float) -> float:
        """The share that a step on trial may take: of the first trials, no more than what is left for them."""
        most = DEAREST * share
        return min(most, max(share, TRIALS - spent)) if all(phase.trial for phase in self.phases) else most

    def _begin_again(self, entry: Entry, spent: float, share: float, reason: str) -> None:
        self.phases.append(Phase(entry.candidate.name, False, reason, spent, share, spent))
        self._base, self._last = entry.samples[-1].share, 0.0

        def begin() -> None:
            self._trainer = self._built(entry)
            self._trainer.load_state_dict(entry.kept)

        self._guarded(spent, lambda: self._ranks.each("a beginning", begin))

    def _rate(self) -> float:
        """How many gradients can be had for all of the budget, as the last phase that took steps has it."""
        worked = [phase for phase in self.phases if phase.steps and phase.end > phase.begin]
        return worked[-1].gradients / (worked[-1].end - worked[-1].begin) if worked else self._first_rate

    def _built(self, entry: Entry) -> Any:
        strategy = entry.candidate.build(entry.means)
        return strategy.start(self._task, self._model, self._data, self._generator)

    # ------------------------------------------------------------------ the choice

    def _tried(self) -> dict[str, Entry]:
        return {name: e for name, e in self._entries.items() if len(e.samples) > 1 and not e.out}

    def _leader(self, left: float) -> Entry | None:
        """Who promises most. What can be judged on the way goes before a schedule that is only a guess better."""
        tried = self._tried().values()
        expected = {id(entry): entry.expected(left, self.best_score) for entry in tried}
        leader = min(tried, key=lambda entry: expected[id(entry)], default=None)
        if leader is None or leader.clear:
            return leader
        needed = expected[id(leader)] + CLEARLY * abs(expected[id(leader)])
        rivals = (e for e in tried if e.steady and (len(e.samples) < 4 or expected[id(e)] <= needed))
        return next(rivals, leader)

    def _comparison(self, left: float) -> str:
        numbers = [f"{name} {entry.expected(left, self.best_score):.4g}" for name, entry in self._tried().items()]
        return f"expected with the {left:.0%} of the budget that are left: {', '.join(numbers)}"

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps depend on, in tensors and what JSON holds, but for the random number streams."""
        entries = {
            name: {**vars(e), "candidate": name, "samples": [[*sample] for sample in e.samples], "means": [*e.means]}
            for name, e in self._entries.items()
        }
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {
            "entries": entries,
            "numbers": numbers,
            "trials": [list(trial) for trial in self._trials],
            "phases": [phase.to_json() for phase in self.phases],
            "start": self._start,
            "best": self.best_state,
            "trainer": None if self._trainer is None else self._trainer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, saved in state["entries"].items():
            entry = self._entries[name]
            plain = {"candidate": entry.candidate, "samples": [Sample(*sample) for sample in saved["samples"]]}
            vars(entry).update({**saved, **plain, "means": Means(*saved["means"])})
        for name, value in state["numbers"].items():
            setattr(self, name, value)
        self._trials = [(name, share) for name, share in state["trials"]]
        self.phases = [Phase.from_json(phase) for phase in state["phases"]]
        self._start, self.best_state = state["start"], state["best"]
        if state["trainer"] is not None:
            self._model.load_state_dict(self._start)
            self._trainer = self._built(self._entry)
            self._trainer.load_state_dict(state["trainer"])
        self._generator.set_state(state["generator"])


_NUMBERS = ("_base", "_last", "over", "ended_early", "best_by", "best_score", "start_score")
