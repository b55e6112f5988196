"""When a weight trains sparse and when dense. A leaf: pure functions of counters, so that a resumed run agrees.

Source: dense fine-tuning over the last part of the run [FST 4.4, arXiv 2404.01847]; MATH section 4.
"""

from __future__ import annotations

from typing import Literal, get_args

Phase = Literal["sparse", "dense"]
PHASES: tuple[str, ...] = get_args(Phase)


def phase_at(steps: int, dense_from: int | None, asked: Phase | None, asked_at: int) -> Phase:
    """The phase of a weight after `steps` optimizer steps. The later of two events wins.

    The events are the user's `set_phase(model, asked)` at step `asked_at`, and the schedule's switch to dense at
    step `dense_from`. Compared with >=, never ==, so that a run resumed past the switch is dense too. A schedule
    that is dense from step 0 leaves no time before it, so nothing overrides it.
    """
    if dense_from is not None and steps >= dense_from:
        overridden = asked == "sparse" and asked_at >= dense_from > 0
        return "sparse" if overridden else "dense"
    return asked or "sparse"
