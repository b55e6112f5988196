"""`s24 explain`: what would be rewritten in a model, what not, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s24compile.cli.load import INPUT_HELP
from s24compile.errors import ModelError, S24Error

if TYPE_CHECKING:
    from torch import nn


def command(
    model: Annotated[str, typer.Argument(help="pkg.module:factory or path/to/file.py:factory", metavar="MODEL")],
    inputs: Annotated[list[str] | None, typer.Option("--input", "-i", help=INPUT_HELP)] = None,
    options: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="A field of s24compile.Config, e.g. targets=linear.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell which feed-forward layers of MODEL would train 2:4, and why the others would not.

    The factory takes no argument and returns the model, or the model and a tuple of example inputs; --input stands in
    for those. Nothing is trained: the model is traced once.

    Example: `s24 explain s24compile.demo.model:example`

    Example: `s24 explain my_model.py:build --input 'int64[2,128]<50257' --option targets=linear`
    """
    from s24compile.cli.load import check_inputs, load_model, make_inputs, parse_options
    from s24compile.compiler.explanation import explain_with
    from s24compile.config import Config

    config = Config.from_options(parse_options(options)) if options else None
    positional, named = make_inputs(inputs or [])
    made, examples = load_model(model)
    given = positional or examples
    check_inputs(made, given, named)
    try:
        report = explain_with(made, given, named, config)
    except S24Error:
        raise
    except Exception:
        if inputs:
            _check_runs(model, made, inputs, given, named)
        raise
    typer.echo(report.to_json() if json else str(report))


def _check_runs(
    where: str, model: nn.Module, specs: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Tells inputs that the model itself refuses, in its own words instead of Dynamo's, from bugs of this package."""
    try:
        model(*args, **kwargs)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            what=where,
            found=f"it cannot run on --input {' '.join(map(repr, specs))}: {type(error).__name__}: {error}",
            accepted="dtype and shape must be what its forward takes, a bound after '<' at most its vocabulary",
        ) from None
