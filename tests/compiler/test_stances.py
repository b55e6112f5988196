"""Modes of torch.compile that change what may be compiled, by whom, and what an error does."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import s24compile
from s24compile import errors
from tests.masked import gradients
from tests.on_cpu import ON_CPU

ROOT = Path(__file__).parents[2]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="s24", options={"inner": "eager", "min_speedup": 0.0, **options})


@pytest.fixture
def stance() -> Iterator[None]:
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dense_after": 2}, ["sparse", "sparse", "dense", "dense"]),
        ({"dense_until": 1, "dense_after": 3}, ["dense", "sparse", "sparse", "dense"]),
        ({"recipe": "fst-down", "total_steps": 6}, ["dense", "sparse", "sparse", "sparse"]),
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_go_through_the_planned_phases_where_nothing_may_recompile(
    options: dict[str, Any], expected: list[str], dynamic: bool, stance: None
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fast = torch.compile(model, backend="s24", dynamic=dynamic, options={"inner": "aot_eager", **options})
    fast(torch.randn(8, 16)).sum().backward()  # the warm-up
    optimizer.zero_grad()
    torch.compiler.set_stance("fail_on_recompile")
    phases = []
    for step in range(4):
        x = torch.randn(8 + step * dynamic, 16)
        (weight,) = [w for name, w in s24compile.sparse_weights(model).items() if name == "2.weight"]
        phases.append(weight.phase)
        y = fast(x)
        assert torch.allclose(y, model(x), atol=1e-6) == (phases[-1] == "dense")
        y.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert phases == expected


def test_plan_the_phases_of_an_optimizer_that_drives_them(stance: None) -> None:
    model = mlp()
    optimizer = s24compile.AdamW_STEP(model.parameters(), lr=1e-3, total_steps=100)
    fast = compiled(model, recipe="step")
    fast(torch.randn(8, 16)).sum().backward()
    torch.compiler.set_stance("fail_on_recompile")
    fast(torch.randn(8, 16)).sum().backward()
    optimizer.step()
    before = counters["stats"]["unique_graphs"]
    s24compile.set_phase(model, "dense")
    fast(torch.randn(8, 16))
    s24compile.set_phase(model, "sparse")
    fast(torch.randn(8, 16))
    assert counters["stats"]["unique_graphs"] == before, "both are compiled"


def test_say_that_nobody_has_planned_a_phase(stance: None) -> None:
    model, x = mlp(), torch.randn(8, 16)
    fast = compiled(model)
    fast(x)
    torch.compiler.set_stance("fail_on_recompile")
    fast(x)
    s24compile.set_phase(model, "dense")
    with pytest.raises(errors.CompileError, match="no option has planned this phase"):
        fast(x)
    torch.compiler.set_stance("default")
    torch.testing.assert_close(fast(x), model(x))
    torch.compiler.set_stance("fail_on_recompile")
    torch.testing.assert_close(fast(x), model(x))


def test_compile_after_an_explanation_where_nothing_may_recompile(stance: None) -> None:
    model, x = mlp(), torch.randn(8, 16)
    fast = compiled(model)
    assert s24compile.explain(fast, x).linears == 2
    torch.compiler.set_stance("fail_on_recompile")
    fast(x)
    assert len(s24compile.sparse_weights(model)) == 2


def test_train_under_compiled_autograd() -> None:
    """Dynamo captures the backward then, and gives its graph, full of s24 ops, to the same backend."""

    def trained(compiled_autograd: bool) -> dict[str, Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, x = mlp(), torch.randn(8, 16)

        @torch.compile(backend="s24", options={"inner": "aot_eager"})
        def train(x: Tensor) -> None:
            model(x).square().mean().backward()

        with torch._dynamo.config.patch(compiled_autograd=compiled_autograd):
            train(x)
            model.zero_grad()
            train(x)
        assert len(s24compile.sparse_weights(model)) == 2
        return gradients(model)

    for ours, theirs in zip(trained(True).values(), trained(False).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_compile_a_model_that_calls_the_ops_itself(inner: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(torch.relu(self.up(x)))
            packed = s24compile.ops.pack(y, s24compile.ops.magnitude_mask(y))
            return s24compile.ops.glu(s24compile.ops.linear(x, packed))

    model, x = Net(), torch.randn(16, 16)
    fast = compiled(model, inner=inner)
    y = fast(x)
    assert len(s24compile.sparse_weights(model)) == 2
    s24compile.bake_(model)
    torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)


@pytest.fixture
def suppressed() -> Iterator[None]:
    torch._logging.set_logs(dynamo=logging.CRITICAL)
    with torch._dynamo.config.patch(suppress_errors=True):
        yield
    torch._logging.set_logs()


def test_raise_what_the_user_must_change_though_errors_are_suppressed(suppressed: None) -> None:
    with pytest.raises(errors.OptionError, match="recipe='nope' is not accepted"):
        compiled(mlp(), recipe="nope")(torch.randn(8, 16))
    model, x = mlp(), torch.randn(8, 16)
    compiled(model)(x)
    with pytest.raises(errors.ConflictError):
        compiled(model, recipe="sste")(x)


def test_say_that_a_suppressed_failure_runs_dense(
    suppressed: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: Any) -> Any:
        raise errors.LoweringError(node="n", found="no provider", accepted="none")

    monkeypatch.setattr("s24compile.compiler.sparse_graph.compile_graph", fail)
    model, x = mlp(), torch.randn(8, 16)
    torch.testing.assert_close(compiled(model)(x), model(x))
    assert "a graph could not be compiled and runs dense, as suppress_errors asks: n: no provider" in caplog.text


THREADS = """
import threading, torch
from torch import nn

def work():
    try:
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        fast = torch.compile(model, backend="s24", options={"inner": "aot_eager"})
        for _ in range(2):
            fast(torch.randn(8, 16)).sum().backward()
    except Exception as error:
        print(type(error).__name__, error)

for _ in range(2):
    torch._dynamo.reset()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("done")
"""


@pytest.mark.skipif(torch.__version__ < "2.13", reason="threads crash torch 2.11's own backends")
def test_let_threads_compile_at_once() -> None:
    """From the first use of the backend's name on; in a process of its own, because a failure would stay for good."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=ROOT, env=ON_CPU, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "done"


def test_call_a_decorated_module_while_another_thread_compiles() -> None:
    """Torch's flag for that is the whole process's."""
    module, x = s24compile.sparse_ffn(mlp(), inner="eager"), torch.randn(8, 16)
    module(x)
    failed: list[Exception] = []

    def call() -> None:
        try:
            module(x)
        except Exception as error:
            failed.append(error)

    def backend(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return gm.forward

    torch.compile(lambda x: x + 1, backend=backend)(x)
    assert not failed
