"""What aten ops do with a `Sparse24`: one table from op to function; what is not in it is refused by name.

Autograd happens above this: torch's own formulas for mm and addmm call mm and t again, so gradients of dense operands
come from here too. Legend: S a Sparse24 [p, q]; X, B dense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s24compile.errors import DimensionError, OperatorError, ShapeError
from s24compile.tensor import products
from s24compile.torch_internals.operators import packet_of

if TYPE_CHECKING:
    from s24compile.tensor.sparse24 import Sparse24

aten = torch.ops.aten


def call(cls: type[Sparse24], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an aten op some of whose arguments are Sparse24.

    Raises:
        OperatorError: an op that is not in the table.
    """
    rule = TABLE.get(packet_of(func))
    if rule is None and torch.is_inference_mode_enabled():
        # Elsewhere torch takes composite ops (matmul, .T) apart before they come here.
        found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    if rule is None:
        known = ", ".join(sorted(op.__name__ for op in TABLE))
        raise OperatorError(
            op=str(func), what="Sparse24", accepted=f"it takes {known}; for the rest call .to_dense() first"
        )
    return rule(cls, *args, **kwargs)


def call_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a torch function some of whose arguments are Sparse24: `FUNCTIONS` first, the others as they are."""
    return FUNCTIONS.get(func, func)(*args, **kwargs)


def _batched_matmul(a: Tensor, b: Tensor) -> Tensor:
    """matmul that never makes a batch of the sparse operand, as torch's does where it cannot fold X [..., p] into rows.

    X S and S B for X and B of any number of dims.
    """
    if b.dim() > 2:
        return torch.matmul(b.mT.contiguous(), a.t()).mT
    return torch.matmul(a.contiguous() if a.dim() > 2 else a, b)


def _folded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(x.contiguous() if x.dim() > 2 else x, weight, bias)


def _mm(cls: type[Sparse24], a: Tensor, b: Tensor) -> Tensor:
    """S B or X S."""
    if isinstance(a, cls):
        _refuse_two(cls, "mm", b)
        return products.left(a, b)
    assert isinstance(b, cls)
    return products.right(a, b)


def _mv(cls: type[Sparse24], a: Tensor, vector: Tensor) -> Tensor:
    """S v."""
    if not isinstance(a, cls):
        _refuse_two(cls, "mv", vector)
    assert isinstance(a, cls)
    return products.left(a, vector[:, None])[:, 0]


def _addmm(cls: type[Sparse24], addend: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """beta * addend + alpha * (S B or X S), rounded once."""
    _refuse_two(cls, "addmm", addend)
    if isinstance(a, cls):
        _refuse_two(cls, "addmm", b)
    s = a if isinstance(a, cls) else b
    assert isinstance(s, cls)
    rows, cols = a.shape[0], b.shape[1]
    if isinstance(b, cls) and tuple(addend.shape) == (cols,) and beta == 1 and alpha == 1:
        return products.right(a, b, bias=addend)
    try:
        addend = addend.expand(rows, cols)
    except RuntimeError:
        raise ShapeError(
            what="the addend of addmm", shape=tuple(addend.shape), accepted=f"it must expand to [{rows}, {cols}]"
        ) from None
    product = products.left(a, b, exact=True) if isinstance(a, cls) else products.right(a, s, exact=True)
    total = product * alpha if beta == 0 else addend.to(product.dtype) * beta + product * alpha
    return total.to(products.result_dtype(s, addend)).contiguous()


def _linear(cls: type[Sparse24], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X S^T + bias for X [..., q]. Reached under inference_mode; else torch takes `linear` apart before."""
    if not isinstance(weight, cls):
        _refuse_two(cls, "linear", x)
    assert isinstance(weight, cls)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            what="x", shape=tuple(x.shape), accepted=f"the weight is {list(weight.shape)}: x must be [..., in]"
        )
    y = products.right(x.reshape(-1, x.shape[-1]), weight.flipped(), bias=bias)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _transpose(cls: type[Sparse24], s: Sparse24, dim0: int, dim1: int) -> Sparse24:
    _check_dims("transpose", dim0, dim1)
    return s.flipped() if (dim0 - dim1) % 2 else s.alias()


def _permute(cls: type[Sparse24], s: Sparse24, dims: list[int]) -> Sparse24:
    _check_dims("permute", *dims)
    if sorted(dim % 2 for dim in dims) != [0, 1]:
        raise DimensionError(op="permute", dims=tuple(dims), accepted="name both dims once")
    return _transpose(cls, s, 0, dims[0])


def _check_dims(name: str, *dims: int) -> None:
    if not all(-2 <= dim < 2 for dim in dims):
        raise DimensionError(op=name, dims=dims, accepted="a Sparse24 has two dims, -2 to 1")


def _view(cls: type[Sparse24], s: Sparse24, size: list[int]) -> Sparse24:
    if list(size) != list(s.shape):
        raise ShapeError(what="the view", shape=tuple(size), accepted=f"a Sparse24 keeps its shape, {list(s.shape)}")
    return s.alias()


def _to_copy(cls: type[Sparse24], s: Sparse24, *, dtype: Any = None, device: Any = None, **ignored: Any) -> Sparse24:
    return s.copied(dtype, device)


def _is_same_size(cls: type[Sparse24], a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape


def _copy_(cls: type[Sparse24], s: Tensor, source: Tensor, non_blocking: bool = False) -> Sparse24:
    if not isinstance(s, cls):
        _refuse_two(cls, "copy_ into a dense tensor", source)
    assert isinstance(s, cls)
    return s.overwrite(source)


def _refuse_two(cls: type[Sparse24], op: str, operand: Tensor) -> None:
    if isinstance(operand, cls):
        raise OperatorError(op=op, what="a Sparse24 as this operand", accepted="call .to_dense() on it first")


TABLE: dict[Any, Callable[..., Any]] = {
    aten.mm: _mm,
    aten.mv: _mv,
    aten.addmm: _addmm,
    aten.linear: _linear,
    aten.t: lambda cls, s: s.flipped(),
    aten.transpose: _transpose,
    aten.permute: _permute,
    aten.view: _view,
    aten.alias: lambda cls, s: s.alias(),
    aten.detach: lambda cls, s: s.alias(),
    aten.clone: lambda cls, s, memory_format=None: s.copied(),
    aten._to_copy: _to_copy,
    aten.copy_: _copy_,
    aten.is_same_size: _is_same_size,
}
"""aten op -> what it does; called with the class and the op's own arguments."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.linear: _folded_linear,
    torch.matmul: _batched_matmul,
    Tensor.matmul: _batched_matmul,
}
"""torch function -> what is called instead, for those that torch takes apart in a way that no aten op here can undo."""
