"""What s24 costs the host beside the compiled graph: per forward of a 12-layer model, and per optimizer step.

    python benchmarks/host_time.py

Forward: the wrapper around the compiled callable finds 24 weights, compares what they were packed from, and hands their
buffers on; the callable itself is taken out. Bar: 40 us. Evaluation: the same without gradients, where weights in the
host's memory are compared with a sample of each. Teacher: a forward after the step of another model's optimizer, for
which each weight is looked at by itself. Step: the hooks of an optimizer that holds no sparse weight, of 300 others.
The best of 20 rounds counts: noise only adds.
"""

from __future__ import annotations

import sys
import timeit
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import s24compile
from benchmarks import record
from s24compile.compiler.backend import SparseGraph
from s24compile.demo.model import GPT, GPTConfig
from s24compile.training.hooks import before_step
from s24compile.weights.schedule import CLOCK

LAYERS, BAR_US = 12, 40.0


def captured_call(device: str) -> tuple[SparseGraph, tuple[Any, ...]]:
    """The graph of a GPT that has trained for a step, and the arguments of its next forward."""
    model = GPT(GPTConfig(n_layer=LAYERS, n_head=2, n_embd=64)).to(device)
    calls: list[tuple[SparseGraph, tuple[Any, ...]]] = []
    original = SparseGraph.__call__

    def noted(self: SparseGraph, *args: Any) -> Any:
        calls.append((self, args))
        return original(self, *args)

    SparseGraph.__call__ = noted  # type: ignore[method-assign]
    try:
        options: dict[str, Any] = {"inner": "eager", "min_speedup": 0.0}
        compiled = torch.compile(model, backend="s24", options=options)
        optimizer = torch.optim.AdamW(model.parameters())
        tokens = torch.randint(0, 256, (4, 64), device=device)
        for _ in range(2):
            compiled(tokens, tokens)[1].backward()
            optimizer.step()
            optimizer.zero_grad()
        compiled(tokens, tokens)
    finally:
        SparseGraph.__call__ = original  # type: ignore[method-assign]
    assert len(s24compile.sparse_weights(model)) == 2 * LAYERS
    return calls[-1]


def best_us(code: Any) -> float:
    """Microseconds of a call in the best of 20 rounds."""
    return 1e6 * min(timeit.repeat(code, number=200, repeat=20)) / 200


def main() -> int:
    """Measures, prints, writes results/host_time.json."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    graph, args = captured_call(device)
    graph.variants = dict.fromkeys(graph.variants, lambda *args: None)
    forward_us = best_us(lambda: graph(*args))
    with torch.no_grad():
        evaluation_us = best_us(lambda: graph(*args))
    other = torch.optim.SGD([torch.nn.Parameter(torch.randn(4))], lr=0.1)

    def as_a_teacher() -> None:
        CLOCK.step(other, whole=True)
        graph(*args)

    teacher_us = best_us(as_a_teacher)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.randn(4)) for _ in range(300)], lr=0.1)
    step_us = best_us(lambda: before_step(optimizer, (optimizer,), {}))
    print(
        f"forward of {LAYERS} layers {forward_us:.1f} us (bar {BAR_US:.0f}), in an evaluation {evaluation_us:.1f} us, "
        f"of a teacher {teacher_us:.1f} us, step of 300 dense weights {step_us:.1f} us"
    )
    results = {
        "layers": LAYERS, "forward_us": forward_us, "bar_us": BAR_US, "evaluation_us": evaluation_us,
        "teacher_us": teacher_us, "dense_step_us": step_us,
    }  # fmt: skip
    record.write("host_time", results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
