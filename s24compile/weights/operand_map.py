"""Which operand packs which Parameters: a weak map, looked up for each slot of a graph at each call."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.nn import Parameter

from s24compile.config import Config
from s24compile.errors import ShapeError
from s24compile.torch_internals import fsdp
from s24compile.torch_internals.graphs import FakeTensor
from s24compile.weights.operand import Buffers, Operand
from s24compile.weights.operand_request import OperandRequest
from s24compile.weights.parameter_map import ParameterMap
from s24compile.weights.registry import is_dense, sparse_weight
from s24compile.weights.sharded_operand import ShardedOperand
from s24compile.weights.sharding import is_distributed, is_sharded, local

_Key = tuple[object, ...]


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
        return is_dense(self._examples) or self.config.dense_from == 0 or self.config.sparse_from > 0

    def stale(self, needs_transpose: bool) -> bool:
        """Never: there is nothing to pack."""
        return False

    def buffers(self, needs_transpose: bool) -> Buffers:
        """Fake buffers of the shapes, strides and dtypes of the real ones."""
        example = self._examples[0]
        with example.fake_mode:
            self.allocate(example.device, needs_transpose)
        return super().buffers(needs_transpose)

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
    """All operands whose first weight is that of this Parameter, which modules and optimizers hold."""
    return list((OPERANDS.get(_given(parameter)) or {}).values())


def drop_operands(parameter: Tensor) -> None:
    """Forgets those operands."""
    OPERANDS.pop(_given(parameter))


def _given(parameter: Tensor) -> Tensor:
    gathered = fsdp.gathered_of(parameter) if is_distributed(parameter) else None
    return parameter if gathered is None else gathered


def _make(parameters: tuple[Tensor, ...], request: OperandRequest, config: Config, key: _Key) -> Operand:
    fakes = tuple(p for p in parameters if isinstance(p, FakeTensor))
    if fakes:
        return FakeOperand(fakes, request, config)
    for parameter, name, rows in zip(parameters, request.names, request.rows, strict=True):
        expected, shape = (rows, request.cols), tuple(local(parameter).shape)
        if shape != (expected if request.weight_layout == "out_in" else expected[::-1]):
            raise ShapeError(what=f"weight {name!r}", shape=shape, accepted=f"expected {expected}")
    weights = tuple(
        sparse_weight(cast(Parameter, p), config, name, request.weight_layout)
        for p, name in zip(parameters, request.names, strict=True)
    )
    sharded = any(map(is_sharded, parameters))
    made = ShardedOperand(weights, request, config, parameters) if sharded else Operand(weights, request, config)
    kept = {k: o for k, o in (OPERANDS.get(parameters[0]) or {}).items() if not o.obsolete}
    OPERANDS.set(parameters[0], {**kept, key: made})
    return made
