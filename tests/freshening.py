"""Drives the weight state as a compiled graph does, without torch.compile: operands are freshened in each forward.

Legend: T tokens, D model width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from s24compile.config import Config
from s24compile.recipe import RECIPES
from s24compile.training.hooks import watch_optimizers
from s24compile.weights.operand import Operand
from s24compile.weights.operand_map import operand
from s24compile.weights.operand_request import OperandRequest
from s24compile.weights.packing import freshen


class MLP(nn.Module):
    """D -> F -> D with relu; a stranger to s24."""

    def __init__(self, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def request_for(
    *parameters: Tensor, names: tuple[str, ...] = (), dtype: torch.dtype | None = None, layout: Any = "out_in",
    transpose: bool = True,
) -> OperandRequest:  # fmt: skip
    """The request that the passes would make for a linear with these weights."""
    shapes = [tuple(p.shape) if layout == "out_in" else tuple(p.shape[::-1]) for p in parameters]
    names = names or tuple(f"weight{i}" for i in range(len(parameters)))
    return OperandRequest(
        weights=names,
        names=names,
        dtype=dtype or parameters[0].dtype,
        weight_layout=layout,
        rows=tuple(shape[0] for shape in shapes),
        cols=shapes[0][1],
        needs_transpose=transpose,
    )


def operand_of(*parameters: Tensor, config: Config, **request: Any) -> Operand:
    """The operand of these parameters, watched as the backend has it."""
    watch_optimizers()
    return operand(parameters, request_for(*parameters, **request), config)


def dense_values(packed: tuple[Tensor, ...], rows: int, cols: int, format: str = "sm90") -> Tensor:
    """W~ [rows, cols] from the first two buffers of an operand."""
    return torch.ops.s24.unpack(packed[0], packed[1], rows, cols, format)


def sparse_linear(x: Tensor, linear: nn.Linear, config: Config, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """What a compiled graph computes for one linear: sparse, or dense in the dense phase."""
    dx = RECIPES[config.recipe].dx_for(config.input_gradient)
    found = operand_of(linear.weight, config=config, names=(name,), dtype=dtype, transpose=dx == "sparse")
    if found.dense:
        return linear(x)
    packed = freshen(found, dx == "sparse")
    pairs = (*packed, None, None)[:4]
    return torch.ops.s24.linear(x, [linear.weight], *pairs, linear.bias, "sm90", "out_in", dx, config.gradient)


def sparse_forward(model: MLP, x: Tensor, config: Config) -> Tensor:
    """The sparse forward of an MLP."""
    hidden = torch.relu(sparse_linear(x, model.up, config, "up.weight"))
    return sparse_linear(hidden, model.down, config, "down.weight")


def train(model: MLP, optimizer: torch.optim.Optimizer, config: Config, steps: range, micro_batches: int = 1) -> Tensor:
    """A plain loop; data and draws depend on the number of the step alone. Returns the losses [steps]."""
    losses = []
    for step in steps:
        torch.manual_seed(1000 + step)
        for _ in range(micro_batches):
            x = torch.randn(24, model.up.in_features)
            loss = (sparse_forward(model, x, config) - x.roll(1, -1)).square().mean()
            (loss / micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "s24":
            self.calls.append(func._schema.name.removeprefix("s24::"))
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded_ops() -> Iterator[list[str]]:
    """Names of the s24 ops that run inside."""
    with _Counter() as counter:
        yield counter.calls
