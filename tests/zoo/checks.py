"""What must hold for every model of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import s24compile
from s24compile.report import Report
from tests.masked import gradients, live_masks, masked_call
from tests.zoo.case import Case, main_output

FORCED = {"min_speedup": 0.0}
"""On a GPU these models are too small to pay, and in fp32; the cost model has tests of its own."""
EXACT = {"inner": "aot_eager", "gradient": "dense", "decay": 0.0, **FORCED}
"""Without MVUE's randomness, training is dense arithmetic on masked weights."""


def placed(case: Case, device: str, dropout: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The model and its inputs on the device; the same weights each time."""
    torch.manual_seed(0)
    model = case.make(dropout).to(device).train()
    return model, {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in case.inputs().items()}


def assert_listed_by_hand(case: Case, report: Report) -> None:
    """The report's rows are those of the case: path, family and weights of each layer, refusals with their reason."""
    found = {(site.path, site.family, site.weights) for site in report.rewritten}
    assert found == {(ffn.path, ffn.family, ffn.weights) for ffn in case.ffns}
    assert report.linears == sum(len(ffn.weights) for ffn in case.ffns), "a layer was taken in part"
    refused = sorted((site.path, site.reason) for site in report.refused)
    assert [path for path, _ in refused] == sorted(path for path, _ in case.refused), refused
    for (_, reason), (_, words) in zip(refused, sorted(case.refused), strict=True):
        assert words in reason


def count_graphs_of_eager(model: nn.Module, inputs: dict[str, Any]) -> int:
    """How many graphs Dynamo makes of the model when s24compile has no part in it."""
    torch._dynamo.reset()
    counter = CompileCounter()
    torch.compile(model, backend=counter)(**inputs)
    return counter.frame_count


def assert_trains_like_masked(
    case: Case, device: str, prepare: Callable[[nn.Module], object] = lambda model: None, lost: tuple[str, ...] = ()
) -> None:
    """Zero extra graph breaks; output and gradients of all parameters equal those of the masked reference.

    Args:
        prepare: switches on something that must not change numbers (gradient checkpointing).
        lost: weights that no graph sees then; without any, there must be one graph.
    """
    model, inputs = placed(case, device)
    prepare(model)
    expected_graphs = count_graphs_of_eager(model, inputs) if lost else 1
    torch._dynamo.reset()
    counters.clear()
    y = main_output(torch.compile(model, backend="s24", options=EXACT, fullgraph=not lost)(**inputs))
    assert counters["stats"]["unique_graphs"] == expected_graphs, "s24 broke the graph where eager does not"
    cotangent = torch.randn_like(y)
    (y * cotangent).sum().backward()
    got, masks = gradients(model), live_masks(model)
    assert set(masks) == case.weights - set(lost)

    reference, _ = placed(case, device)
    expected_y = main_output(masked_call(reference, masks, **inputs))
    (expected_y * cotangent).sum().backward()
    expected = gradients(reference)
    # fp32 sums of up to 256 terms in another order, through a few layers.
    torch.testing.assert_close(y, expected_y, rtol=1e-5, atol=1e-5)
    for name in got.keys() - expected.keys():
        assert not got[name].any(), f"{name} has no part in the output: AOTAutograd gives zeros where eager gives None"
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        # Some gradients are zero but for rounding (a key's bias): they have the scale of the others.
        allowed = 1e-5 * float(gradient.abs().max()) + 1e-6 * largest
        assert float((got[name] - gradient).abs().max()) <= allowed, name


def assert_takes_down_projections(case: Case, device: str) -> None:
    """With targets="down", the weights that become sparse are the last ones of the layers that a reader lists."""
    model, inputs = placed(case, device)
    options = {"targets": "down", "inner": "eager", **FORCED}
    torch._dynamo.reset()
    torch.compile(model, backend="s24", options=options)(**inputs)
    assert set(s24compile.sparse_weights(model)) == {ffn.weights[-1] for ffn in case.ffns}


def explain_forced(model: nn.Module, *args: Any, **kwargs: Any) -> Report:
    """`s24compile.explain`, but for what the cost model says."""
    return s24compile.explain(torch.compile(model, backend="s24", options=FORCED), *args, **kwargs)


def explain_case(case: Case, device: str) -> Report:
    """The report of the model as users build it, dropout included."""
    model, inputs = placed(case, device, dropout=True)
    torch._dynamo.reset()
    report = explain_forced(model, **inputs)
    assert report.graphs == 1
    assert not s24compile.sparse_weights(model)
    return report
