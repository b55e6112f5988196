"""When a weight trains sparse and when dense. A leaf: pure functions of counters, so that a resumed run agrees.

Source: dense fine-tuning over the last part of the run [FST 4.4, arXiv 2404.01847]; MATH section 4.
"""

from __future__ import annotations

from typing import Literal, get_args

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
