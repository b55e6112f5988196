"""Packed weights: static buffers that a compiled graph reads, and the question whether they are still true.

Legend: N output features (rows of all weights stacked), K input features.

One operand packs one Parameter, or gate and up together ([2F, D], one GEMM), at one dtype and format. A model may ask
for several operands of one weight (bf16 under autocast for training, fp32 for evaluation); the mask is shared through
`SparseWeight`. Buffers are allocated once and re-packed in place, so that CUDA graphs may hold their addresses, and
by an op that moves version counters, so that a backward through weights that were stepped meanwhile raises.

Fresh means: since the last pack no optimizer that holds the weight stepped, and neither its `_version` nor its
data_ptr moved. No one of the three is enough: fused AdamW moves only the first, `add_` only the second, `p.data = x`
only the third. `p.data.add_(x)` moves none: `Config.freshness="always"` or `s24compile.refresh(model)` is for that.
"""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter

from s24compile.config import Config
from s24compile.errors import ShapeError
from s24compile.kernels.format import FORMATS
from s24compile.operand_request import OperandRequest
from s24compile.parameter_map import ParameterMap
from s24compile.sparse_weight import CLOCK, Content, SparseWeight, writing_state
from s24compile.training.hooks import watch_optimizers
from s24compile.weights import is_dense, sparse_weight

log = logging.getLogger("s24compile")

UNHELD_STEPS = 40
"""Steps of optimizers that do not hold a weight, after which a training forward says so."""

Buffers = tuple[Tensor, ...]
_Key = tuple[object, ...]


class Operand:
    """The packed form of one or two weights at one dtype and format."""

    def __init__(self, weights: tuple[SparseWeight, ...], request: OperandRequest, config: Config) -> None:
        self.weights = weights
        self.request = request
        self.config = config
        self.forward: Buffers = ()
        """(values, metadata) of W~ [N, K]; () before the first pack."""
        self.transposed: Buffers = ()
        """(values, metadata) of W~^T [K, N]; () until a backward asked for it."""
        self._both: Buffers = ()
        self._packed_at: list[tuple[Content, int]] | None = None
        self._warned = False
        self._source = _kind(self.parameters())

    @property
    def dense(self) -> bool:
        """Whether the weights train dense at the next forward (then nothing needs packing)."""
        return "dense" in [weight.phase for weight in self.weights]

    def packs(self, parameters: tuple[Tensor, ...]) -> bool:
        """Whether this operand is of exactly these Parameter objects."""
        if len(parameters) == 1:
            return self.weights[0].parameter() is parameters[0]
        return all(weight.parameter() is p for weight, p in zip(self.weights, parameters, strict=True))

    @property
    def obsolete(self) -> bool:
        """Whether a Parameter died, or became of another dtype or device, since this was made: nobody asks again."""
        parameters = self.parameters()
        return any(p is None for p in parameters) or _kind(parameters) != self._source

    def freshen(self, needs_transpose: bool) -> Buffers:
        """(values, metadata), or (values, metadata, values_t, metadata_t); packs if the weights have changed."""
        if self._packed_at != self._state() or self.config.freshness == "always":
            self._pack(needs_transpose or bool(self.transposed))
        elif needs_transpose and not self.transposed:
            self._pack(True)
        return self._both if needs_transpose else self.forward

    def forget(self) -> None:
        """Makes the next `freshen` pack, whatever it can see."""
        self._packed_at = None

    def parameters(self) -> tuple[Parameter, ...]:
        """The Parameters packed; the caller of a forward holds them alive."""
        return tuple(cast(Parameter, weight.parameter()) for weight in self.weights)

    def _state(self) -> list[tuple[Content, int]]:
        # Once a forward and weight, in the hot path: `SparseWeight.content` written out.
        state: list[tuple[Content, int]] = []
        for weight in self.weights:
            parameter = cast(Parameter, weight.parameter())
            if parameter.is_inference():
                state.append((weight.content(parameter), weight.revision))
                continue
            tick = weight.tick if weight.held or not parameter.requires_grad else CLOCK.tick
            state.append(((parameter._version, parameter.data_ptr(), tick), weight.revision))
        return state

    def _pack(self, needs_transpose: bool) -> None:
        parameters = self.parameters()
        device, recipe = parameters[0].device, self.weights[0].recipe
        self._warn_if_unheld(parameters)
        contents = [w.content(p) for w, p in zip(self.weights, parameters, strict=True)]
        always = self.config.freshness == "always" and not recipe.uses_interval
        with writing_state(device):
            self._allocate(device, needs_transpose)
            due = [always or w.search_due(content) for w, content in zip(self.weights, contents, strict=True)]
            patterns = [w.prepare(p) for w, p in zip(self.weights, parameters, strict=True)]
            # The packing op searches all of its weights or none.
            together = all(due)
            for weight, parameter, searching in zip(self.weights, parameters, due, strict=True):
                if searching:
                    weight.remember_patterns()
                    if not together:
                        weight.search(parameter)
            torch.ops.s24.pack_weight_(
                list(parameters),
                patterns,
                *self.forward,
                *(self.transposed or (None, None)),
                self._scale(),
                recipe.select,
                together,
                self.request.format,
                self.request.weight_layout,
            )
            for weight, content, searching in zip(self.weights, contents, due, strict=True):
                weight.packed_at = CLOCK.tick
                if searching:
                    weight.searched(content)
                else:
                    weight.met(content)
        self._packed_at = self._state()

    def _warn_if_unheld(self, parameters: tuple[Parameter, ...]) -> None:
        if self._warned or not torch.is_grad_enabled():
            return
        unheld = [
            weight.name
            for weight, parameter in zip(self.weights, parameters, strict=True)
            if weight.steps_missed >= UNHELD_STEPS and parameter.requires_grad
        ]
        if unheld:
            self._warned = True
            log.warning(
                "optimizers have made %d steps, none of them with %s, which trains sparse: its masks follow the steps "
                "of any optimizer, but no masked decay and no dense_after reach it. Is the parameter in the optimizer? "
                "(FSDP2's sharded parameters, and optimizers that are no torch.optim.Optimizer, are not seen.)",
                UNHELD_STEPS,
                " and ".join(unheld),
            )

    def _scale(self) -> Tensor | None:
        scales = [weight.scale for weight in self.weights if weight.scale is not None]
        if not scales:
            return None
        return scales[0] if len(scales) == 1 else torch.stack(scales)

    def _allocate(self, device: torch.device, needs_transpose: bool) -> None:
        rows, cols, dtype = sum(self.request.rows), self.request.cols, self.request.dtype
        allocate = FORMATS[self.request.format].empty
        if not self.forward or self.forward[0].device != device:
            self.forward, self.transposed = allocate(rows, cols, dtype, device), ()
        if needs_transpose and not self.transposed:
            self.transposed = allocate(cols, rows, dtype, device)
        self._both = (*self.forward, *self.transposed)


class FakeOperand(Operand):
    """Stands for an operand while a compiler calls the graph with FakeTensors (DDP's submodule compiler does).

    Nothing is remembered: the real Parameters arrive later.
    """

    def __init__(self, parameters: tuple[FakeTensor, ...], request: OperandRequest, config: Config) -> None:
        super().__init__((), request, config)
        self._examples = parameters

    @property
    def dense(self) -> bool:
        """See `Operand.dense`."""
        return is_dense(self._examples) or self.config.dense_from == 0

    def freshen(self, needs_transpose: bool) -> Buffers:
        """Fake buffers of the shapes, strides and dtypes of the real ones."""
        example = self._examples[0]
        with example.fake_mode:
            self._allocate(example.device, needs_transpose)
        return self._both if needs_transpose else self.forward

    def forget(self) -> None:
        """Nothing to forget."""


OPERANDS: ParameterMap[dict[_Key, Operand]] = ParameterMap()
"""By first Parameter. An operand holds SparseWeights, which hold Parameters weakly: no cycle, freed at once."""


def operand(parameters: tuple[Tensor, ...], request: OperandRequest, config: Config) -> Operand:
    """The operand of these Parameters, made at the first request. Cheap when it exists; packs nothing.

    Raises:
        ConflictError: a parameter is sparse already with options that mean another training.
        ShapeError: a parameter that does not have the rows and columns asked for.
    """
    found = OPERANDS.get(parameters[0])
    partner = id(parameters[1]) if len(parameters) == 2 else None
    key: _Key = (request.dtype, request.format, request.weight_layout, partner)
    known = None if found is None else found.get(key)
    if known is not None and known.packs(parameters):
        if known.config is not config:
            for parameter, name in zip(parameters, request.names, strict=True):
                sparse_weight(cast(Parameter, parameter), config, name, request.weight_layout)
            known.config = config
        return known
    return _make(parameters, request, config, key)


def operands_of(parameter: Tensor) -> list[Operand]:
    """All operands whose first weight is this Parameter."""
    return list((OPERANDS.get(parameter) or {}).values())


def _make(parameters: tuple[Tensor, ...], request: OperandRequest, config: Config, key: _Key) -> Operand:
    fakes = tuple(p for p in parameters if isinstance(p, FakeTensor))
    if fakes:
        return FakeOperand(fakes, request, config)
    for parameter, name, rows in zip(parameters, request.names, request.rows, strict=True):
        expected = (rows, request.cols) if request.weight_layout == "out_in" else (request.cols, rows)
        if tuple(parameter.shape) != expected:
            raise ShapeError(what=f"weight {name!r}", shape=tuple(parameter.shape), accepted=f"expected {expected}")
    watch_optimizers()
    weights = tuple(
        sparse_weight(cast(Parameter, p), config, name, request.weight_layout)
        for p, name in zip(parameters, request.names, strict=True)
    )
    made = Operand(weights, request, config)
    kept = {k: o for k, o in (OPERANDS.get(parameters[0]) or {}).items() if not o.obsolete}
    OPERANDS.set(parameters[0], {**kept, key: made})
    return made


def _kind(parameters: tuple[Parameter, ...]) -> list[tuple[torch.dtype, torch.device]]:
    return [(p.dtype, p.device) for p in parameters]
