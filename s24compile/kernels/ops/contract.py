"""What every contract has in common: one function says what an op is called, takes, means and returns.

    @contract()
    def unpack(a: Packed24) -> Tensor:
        \"\"\"Dense [rows, cols], contiguous, in the dtype of the values.\"\"\"
        return a.values.new_empty(a.shape)

registers `s24::unpack(Tensor values, Tensor metadata, SymInt rows, SymInt cols, str format) -> Tensor`. The parameters
are those of the op's kernels (`signature.py`), the body is the fake kernel. Run, the op asks `providers` for a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.library import CustomOpDef, custom_op

from s24compile.kernels import providers
from s24compile.kernels.checks import check_choice
from s24compile.kernels.ops.shortcut import shorten
from s24compile.kernels.signature import flat_signature, gatherer
from s24compile.kernels.words import WORDS


def contract(
    *,
    mutates: Sequence[str] = (),
    words: Mapping[str, tuple[str, ...]] = WORDS,
    run: Callable[..., Any] | None = None,
    short: bool = False,
) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Registers the op that the decorated function describes.

    Args:
        mutates: flat arguments that the op writes into.
        words: what its arguments that are words may be, by their names.
        run: what the op does, with its flat arguments; None: its best kernel.
        short: calls of `torch.ops.s24.<name>.default` go past torch's dispatcher where nobody in it listens.

    Raises (the registered op does, for real and fake tensors):
        OptionError: an argument that is a word has a value that `words` does not list.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        name, flat, gather = function.__name__, flat_signature(function), gatherer(function)
        checked = [(place, word) for place, word in enumerate(flat.parameters) if word in words]

        def check(args: tuple[Any, ...]) -> None:
            for place, word in checked:
                check_choice(word, args[place], words[word])

        def eager(*args: Any) -> Any:
            check(args)
            return providers.run(name, *args) if run is None else run(*args)

        def fake(*args: Any) -> Any:
            check(args)
            return function(*gather(args))

        eager.__name__, eager.__doc__ = name, function.__doc__
        eager.__signature__ = flat  # type: ignore[attr-defined]
        schema = torch.library.infer_schema(eager, mutates_args=mutates)
        op = custom_op(f"s24::{name}", eager, mutates_args=mutates, schema=schema)
        op.register_fake(fake)
        if short:
            places = [place for place, argument in enumerate(flat.parameters) if argument in mutates]
            shorten(getattr(torch.ops.s24, name).default, eager, places)
        return op

    return register
