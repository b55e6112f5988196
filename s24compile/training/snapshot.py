"""One moment of a training run, kept in memory and restored exactly: model, optimizer, random numbers, sparse state.

Restoring writes into the tensors that were there, so that compiled graphs, optimizers and the user's own references
stay true. Weights that became sparse after the moment are forgotten: the next forward makes their state anew.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from s24compile.training.flip_rate import History, history_of, set_history
from s24compile.training.random_state import RandomState
from s24compile.weights.checkpoint import Entry
from s24compile.weights.operand_map import drop_operands, operands_of
from s24compile.weights.registry import TOLD, WEIGHTS, Told
from s24compile.weights.schedule import DRIVEN, Phase
from s24compile.weights.sparse_weight import SparseWeight


class HasState(Protocol):
    """What learning-rate schedulers, gradient scalers and stateful data loaders have in common."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Snapshot:
    """Takes the moment when it is made; `restore` may be called any number of times."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, also: Sequence[HasState] = ()) -> None:
        held = (p for group in optimizer.param_groups for p in group["params"])
        unique = {id(p): p for p in (*model.parameters(), *held)}
        self.parameters: tuple[Tensor, ...] = tuple(unique.values())
        self._kept = [_Parameter(p) for p in self.parameters]
        self._modules = [_Module(module) for module in model.modules()]
        self._optimizer = _Optimizer(optimizer)
        self._also = [(each, copy.deepcopy(each.state_dict())) for each in also]
        self._random = RandomState()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back. An interrupt (Ctrl-C) that arrives meanwhile is raised afterwards."""
        with _interrupts_later():
            for module in self._modules:
                module.restore()
            for parameter in self._kept:
                parameter.restore()
            self._optimizer.restore()
            for each, state in self._also:
                each.load_state_dict(copy.deepcopy(state))
            self._random.restore()


class _Parameter:
    """A parameter, its gradient, and what s24compile knows of it."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.value = parameter.detach().clone()
        self.grad = parameter.grad
        self.grad_value = None if parameter.grad is None else parameter.grad.detach().clone()
        self.driven: Phase | None = DRIVEN.get(parameter)
        told = TOLD.get(parameter)
        self.told: Told | None = None if told is None else dataclasses.replace(told)
        weight = WEIGHTS.get(parameter)
        self.sparse = None if weight is None else _Sparse(weight)

    def restore(self) -> None:
        self.parameter.copy_(self.value)
        if self.grad is not None and self.grad_value is not None:
            self.grad.copy_(self.grad_value)
        self.parameter.grad = self.grad
        for known, kept in ((DRIVEN, self.driven), (TOLD, self.told and dataclasses.replace(self.told))):
            if kept is None:
                known.pop(self.parameter)
            else:
                known.set(self.parameter, kept)  # type: ignore[arg-type]
        if self.sparse is not None:
            self.sparse.restore()
            for operand in operands_of(self.parameter):
                operand.forget()
        elif WEIGHTS.pop(self.parameter) is not None:
            drop_operands(self.parameter)


class _Sparse:
    """The state of a sparse weight, with what a checkpoint leaves out because it belongs to the process."""

    def __init__(self, weight: SparseWeight) -> None:
        self.weight = weight
        self.entry: Entry = weight.entry()
        self.held = weight.held
        self.history: History = history_of(weight)

    def restore(self) -> None:
        self.weight.restore(self.entry)
        self.weight.held = self.held
        set_history(self.weight, self.history)


class _Module:
    """A module's buffers, persistent or not, and whether it trains."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.buffers = dict(module._buffers)
        self.values = {name: b.detach().clone() for name, b in self.buffers.items() if b is not None}

    def restore(self) -> None:
        self.module.training = self.training
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)
        for name, value in self.values.items():
            buffer = self.buffers[name]
            assert buffer is not None
            buffer.copy_(value)


class _Optimizer:
    """State and options of an optimizer. Not by its `load_state_dict`, which casts states to the parameters' dtype."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.state = {p: _kept(state) for p, state in optimizer.state.items()}
        self.groups = [
            (list(group["params"]), _kept({name: value for name, value in group.items() if name != "params"}))
            for group in optimizer.param_groups
        ]

    def restore(self) -> None:
        self.optimizer.state.clear()
        self.optimizer.state.update({p: state() for p, state in self.state.items()})
        del self.optimizer.param_groups[len(self.groups) :]
        for group, (parameters, options) in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.clear()
            # "params" first, as torch makes them.
            group.update({"params": list(parameters), **options()})


def _kept(value: Any) -> Callable[[], Any]:
    """What gets this value back, any number of times: its tensors themselves, written to, and copies of the rest."""
    if isinstance(value, Tensor):
        copied = value.detach().clone()
        return lambda: _written(value, copied)
    if type(value) is dict:
        named = {name: _kept(part) for name, part in value.items()}
        return lambda: {name: part() for name, part in named.items()}
    if type(value) in (list, tuple):
        kind, parts = type(value), [_kept(part) for part in value]
        return lambda: kind(part() for part in parts)
    rest = copy.deepcopy(value)
    return lambda: copy.deepcopy(rest)


def _written(tensor: Tensor, values: Tensor) -> Tensor:
    if (tensor.shape, tensor.dtype, tensor.device) != (values.shape, values.dtype, values.device):
        return values.clone()  # its `.data` was replaced
    tensor.detach().copy_(values)
    return tensor


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Holds back Ctrl-C until the block is over. Only the main thread receives it, and may say so."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if arrived:
        handler(*arrived[0])
