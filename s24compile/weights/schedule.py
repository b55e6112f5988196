"""When a weight trains sparse and when dense, and what the steps of optimizers mean for it: phase, age of its mask.

Source: mask schedule and dense tail [FST 4.4 and 5.3, arXiv 2404.01847]; docs/math.md.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any, Literal, get_args

from torch.nn import Parameter
from torch.optim import Optimizer

from s24compile.config import Config
from s24compile.recipe import Recipe, recipe_of
from s24compile.weights.parameter_map import ParameterMap

Phase = Literal["sparse", "dense"]
PHASES: tuple[str, ...] = get_args(Phase)


def phase_at(steps: int, sparse_from: int, dense_from: int | None, asked: Phase | None, asked_at: int) -> Phase:
    """The phase of a weight after `steps` optimizer steps: dense up to `sparse_from`, and again from `dense_from`.

    The user's `set_phase(model, asked)` at step `asked_at` ends a dense start, or puts off its end until he asks for
    the other phase; of it and the switch at `dense_from` the later one wins. Compared with >=, never ==, so that a
    run resumed past the switch is dense too. A schedule that is dense from step 0 leaves no time before it, so
    nothing overrides it.
    """
    if dense_from is not None and steps >= dense_from:
        overridden = asked == "sparse" and asked_at >= dense_from > 0
        return "sparse" if overridden else "dense"
    return asked or ("sparse" if steps >= sparse_from else "dense")


@dataclasses.dataclass
class StepClock:
    """Counts the steps of all optimizers of this process; moved by `training.hooks`."""

    tick: int = 0
    """Steps of all optimizers."""
    turn: int = 0
    """Turns: a new one begins when an optimizer steps that has stepped in this one already. With one optimizer each
    step is a turn; with N, that all step once in an iteration, each iteration is."""
    moves: int = 0
    """Moves whenever the state of any weight changes: what was derived from it under the same number still holds."""
    _stepped: weakref.WeakSet[Optimizer] = dataclasses.field(default_factory=weakref.WeakSet)
    """The optimizers that have stepped in this turn."""

    def step(self, optimizer: Optimizer, *, whole: bool) -> None:
        """Counts a step; `whole` says that it is no part of another optimizer's step."""
        self.tick += 1
        self.moves += 1
        if not whole:
            return
        if optimizer in self._stepped or not self._stepped:
            self.turn += 1
            self._stepped.clear()
        self._stepped.add(optimizer)


CLOCK = StepClock()
DRIVEN: ParameterMap[Phase] = ParameterMap()
"""Phases set by an optimizer that drives them (AdamW_STEP), for recipes that let it."""


class WeightSchedule:
    """The counters of one weight, and what they say. A weight that no optimizer was seen to hold goes by the turns of
    all of them: sharded optimizers step shards and hand out gathered parameters, and a frozen weight follows the
    others."""

    def __init__(self, parameter: Parameter, config: Config) -> None:
        self.config = config
        self.recipe: Recipe = recipe_of(config.recipe)
        self.parameter = weakref.ref(parameter)
        self.steps = 0
        """Optimizer steps counted so far: of optimizers that hold this parameter, one for nested `super().step()`."""
        self.held = False
        """Whether an optimizer that holds this parameter has been seen stepping."""
        self.tick = 0
        """CLOCK.tick at the last step that may have written it."""
        self._others = 0
        """Turns counted before the state was restored, while no optimizer held the weight."""
        self._born_at_turn = self._searched_at_turn = CLOCK.turn
        self._searched_at_step = 0
        self._counted = False
        self._sparse_from, self._dense_from = config.sparse_from, config.dense_from
        self._asked_phase: Phase | None = None
        self._asked_at = 0
        self.has_phases = bool(self._sparse_from or self._dense_from is not None or self.recipe.optimizer_drives_phase)
        """False: `phase` is "sparse", without a look at it."""

    @property
    def phases(self) -> tuple[int, int | None]:
        """(step from which it trains sparse, step from which it trains dense again), as Config says."""
        return self._sparse_from, self._dense_from

    @property
    def age(self) -> int:
        """Optimizer steps since the last search (before the first: since the state began)."""
        return self.steps - self._searched_at_step

    @property
    def phase(self) -> Phase:
        """ "sparse" or "dense": what the next forward will be."""
        if self.recipe.optimizer_drives_phase and self._asked_phase is None:
            parameter = self.parameter()
            driven = None if parameter is None else DRIVEN.get(parameter)
            if driven == "dense":
                return driven
        return phase_at(self.scheduled_steps, self._sparse_from, self._dense_from, self._asked_phase, self._asked_at)

    @property
    def steps_missed(self) -> int:
        """Turns of this process since the state began, while no optimizer was seen to hold the weight."""
        return 0 if self.held else CLOCK.turn - self._born_at_turn

    @property
    def ever_held(self) -> bool:
        """Whether an optimizer that holds this parameter has been seen stepping, now or before a checkpoint."""
        return self.held or self._counted

    @property
    def scheduled_steps(self) -> int:
        """What phases go by: the weight's own steps, or turns while no optimizer was ever seen to hold it. A frozen
        weight so follows the schedule of the others."""
        return self.steps if self.ever_held else self._others + self.steps_missed

    @property
    def scheduled_age(self) -> int:
        """`age`, by turns while no optimizer was ever seen to hold the weight."""
        return self.age if self.ever_held else CLOCK.turn - self._searched_at_turn

    def ask_phase(self, phase: Phase) -> None:
        """Notes the user's `set_phase`, at the present step."""
        self._asked_phase, self._asked_at = phase, self.scheduled_steps
        self.has_phases = True
        CLOCK.moves += 1

    def hold(self) -> None:
        """Notes that an optimizer holds the weight: from now on its steps count, and no one else's."""
        self.held = True
        self._asked_at = min(self._asked_at, self.steps)
        CLOCK.moves += 1

    def follow(self, other: WeightSchedule) -> None:
        """Starts at the step of another weight, of which this one is a copy that no optimizer holds: an average."""
        self._others = other.scheduled_steps

    def note_search(self) -> None:
        """Notes that the mask is searched at the present step."""
        self._searched_at_step, self._searched_at_turn = self.steps, CLOCK.turn

    @property
    def searched_at(self) -> tuple[int, int]:
        """When the mask was searched: `searched_at = value` puts an earlier moment back."""
        return self._searched_at_step, self._searched_at_turn

    @searched_at.setter
    def searched_at(self, moment: tuple[int, int]) -> None:
        self._searched_at_step, self._searched_at_turn = moment

    def schedule_entry(self) -> dict[str, Any]:
        """The counters as fields of a checkpoint's entry, see `weights/checkpoint.py`."""
        return {
            "steps": self.steps,
            "others": self.scheduled_steps - self.steps,
            "age": self.scheduled_age,
            "held": int(self.ever_held),
            "phase": self._asked_phase or "",
            "phase_at": self._asked_at,
        }

    def restore_schedule(self, entry: dict[str, Any]) -> None:
        """Takes over the counters of an entry."""
        self.steps, self._others, self._born_at_turn = entry["steps"], entry["others"], CLOCK.turn
        self._searched_at_step = max(0, self.steps - entry["age"])
        self._searched_at_turn = CLOCK.turn - entry["age"]
        self._counted = bool(entry["held"])
        self.held = self.held and self._counted  # a snapshot of before may have been the optimizer's first step
        self._asked_phase, self._asked_at = entry["phase"] or None, entry["phase_at"]
        self.has_phases = self.has_phases or self._asked_phase is not None
        CLOCK.moves += 1
