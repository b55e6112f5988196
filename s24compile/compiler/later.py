"""A variant of a graph that is compiled after Dynamo has captured it: the rewritten graph is given to Dynamo again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from s24compile import passes
from s24compile.compiler.inner import Compiled, compile_graph
from s24compile.compiler.raising import raising_through_dynamo
from s24compile.compiler.rewriting import Rewriting
from s24compile.config import Config
from s24compile.kernels.target import Target
from s24compile.torch_internals.dynamo import mark_static
from s24compile.torch_internals.graphs import FakeTensor, hint_of


@dataclasses.dataclass(frozen=True)
class Example:
    """A tensor input, as it was captured: by its sizes then, sizes that were equal are one symbol."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    static: tuple[int, ...]
    """The dims whose size is no symbol."""

    def tensor(self) -> Tensor:
        """Such a tensor, with any numbers in it."""
        made = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)
        if self.requires_grad:
            made = made.requires_grad_().clone()  # a leaf could not be written
        mark_static(made, list(self.static))
        return made


def example_of(given: Any) -> Example | int | None:
    """What a captured graph was given for an input; None for what is the same at each call, parameters above all."""
    if isinstance(given, torch.SymInt):
        return hint_of(given)
    if isinstance(given, torch.nn.Parameter) or type(given) not in (Tensor, FakeTensor):
        return None
    size: list[Any] = [hint_of(n) for n in given.size()]
    stride: list[Any] = [hint_of(n) for n in given.stride()]
    if None in size or None in stride:
        return None
    static = tuple(dim for dim, n in enumerate(given.size()) if isinstance(n, int))
    return Example(tuple(size), tuple(stride), given.dtype, given.device, given.requires_grad, static)


class LaterVariant:
    """Compiles one rewritten graph. Dynamo owns guards and symbolic shapes, as it does for the first variant."""

    def __init__(self, rewrite: Rewriting, config: Config, target: Target) -> None:
        self.rewrite, self.config, self.target = rewrite, config, target
        self._only_compiles = False

    def compiled(self, args: Sequence[Any], examples: Sequence[Example | int | None]) -> Compiled:
        """The compiled graph; nothing of it has run.

        Args:
            args: of a call, without the packed weights.
            examples: what it was captured with, in the same order. Used instead, where there are some.
        """
        given = [value if example is None else _made(example) for value, example in zip(args, examples, strict=True)]
        packed = [example_of(value) for value in self.rewrite.packed_examples()]
        dynamic = any(isinstance(example, int) for example in examples)
        passes.inline_regions(self.rewrite.graph_module)
        made: Compiled = torch.compile(
            self.rewrite.graph_module, backend=self._compile, dynamic=dynamic, fullgraph=True
        )
        self._only_compiles = True
        try:
            # Under "fail_on_recompile" too: whoever calls this has decided that it is to be compiled.
            with torch.compiler.set_stance("default"):
                made(*given, *map(_made, packed))
        finally:
            self._only_compiles = False
        return made

    def _compile(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        with raising_through_dynamo():
            compiled = compile_graph(gm, example_inputs, self.config, self.target)
        results = gm.graph.output_node().args[0]
        assert isinstance(results, (tuple, list))
        nothing = (None,) * len(results)
        return lambda *args: nothing if self._only_compiles else compiled(*args)


def _made(example: Example | int | None) -> Any:
    return example.tensor() if isinstance(example, Example) else example
