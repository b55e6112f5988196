"""The settings of a training run as options of a command: one for each field of TrainConfig and of Config."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import runpy
import textwrap
import traceback
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from s24compile.cli.load import literal
from s24compile.config import Config, hint_of
from s24compile.demo.settings import TrainConfig
from s24compile.errors import ModelError, OptionError, UnknownOptionError

RUN, SPARSE = "Settings of the run", "Settings of 2:4 training (fields of s24compile.Config)"
"""Titles of the two groups in --help."""


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command an argument CONFIG.py and an option for each setting; it is called with `config`, a TrainConfig.

    A file of settings holds lines such as `batch_size = 32`, as in nanoGPT. Its values take the place of defaults: the
    parser checks them as it checks those of the command line, which win.
    """

    @functools.wraps(command)
    def with_settings(context: typer.Context, config_file: Path | None, **values: Any) -> None:
        given = {name: values.pop(name) for name in SETTINGS}
        config = config_of({name: value for name, value in given.items() if _is_given(context, name)})
        command(config=config, **values)

    of_command = inspect.signature(command, eval_str=True).parameters
    own = [_parameter(name, p.annotation, p.default) for name, p in of_command.items() if name != "config"]
    first = [
        _parameter("context", typer.Context, inspect.Parameter.empty),
        _parameter("config_file", Annotated[Path | None, _FILE], None),
    ]
    with_settings.__signature__ = inspect.Signature([*first, *own, *SETTINGS.values()])  # type: ignore[attr-defined]
    return with_settings


def config_of(given: Mapping[str, Any]) -> TrainConfig:
    """The TrainConfig of some settings: fields of TrainConfig, and of Config for its `options`.

    Raises:
        OptionError: a value that is not accepted.
    """
    options = {name: value for name, value in given.items() if name in _SPARSE_FIELDS}
    Config.from_options(options)
    own = {name: value for name, value in given.items() if name not in options}
    return TrainConfig(**own, options=tuple(sorted(options.items())))


def settings_of_file(path: Path) -> dict[str, Any]:
    """What a file of settings says, as the command line would spell it.

    Raises:
        UnknownOptionError: a name that is neither a TrainConfig nor a Config field.
        OptionError: there is no such file.
        ModelError: the file does not run.
    """
    if not path.is_file():
        raise OptionError(name="config", value=str(path), accepted="it must be an existing Python file of settings")
    found = {name: value for name, value in _run(path).items() if not name.startswith("_") and _is_setting(value)}
    for name in found:
        if name not in SETTINGS:
            own = [name for name in SETTINGS if name not in _SPARSE_FIELDS]
            accepted = f"{', '.join(_SPARSE_FIELDS)}; and the settings of s24 train: {', '.join(own)}"
            raise UnknownOptionError(name=name, hint=hint_of(name, list(SETTINGS)), accepted=accepted)
    return {name: repr(value) if name in _SPARSE_FIELDS else str(value) for name, value in found.items()}


def field_docs(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, as one line; fields without one are left out."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found


def _read_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.default_map = {**(context.default_map or {}), **settings_of_file(path)}
    return path


_FILE = typer.Argument(metavar="CONFIG.py", help="A Python file of settings.", is_eager=True, callback=_read_file)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _options() -> dict[str, inspect.Parameter]:
    types, docs, found = typing.get_type_hints(TrainConfig), field_docs(TrainConfig), {}
    for field in dataclasses.fields(TrainConfig):
        if field.name != "options":
            found[field.name] = _option(field.name, types[field.name], docs, RUN, field.default)
    docs = field_docs(Config)
    for field in dataclasses.fields(Config):
        # Config checks its values itself, with its own sentences.
        found[field.name] = _option(field.name, literal, docs, SPARSE, None)
    return found


def _option(name: str, kind: Any, docs: Mapping[str, str], panel: str, default: Any) -> inspect.Parameter:
    """An option of a type that typer knows, or of what a parser returns."""
    # typer makes two flags without a value of a bool; here it takes one like the others: `--bias=false`.
    parser, metavar = {bool: (_truth, "<bool>"), literal: (literal, "<value>")}.get(kind, (None, None))
    option = typer.Option(
        f"--{name}", help=docs.get(name, ""), rich_help_panel=panel, show_default=True, parser=parser, metavar=metavar
    )
    return _parameter(name, Annotated[Any if parser else kind, option], default)


def _truth(text: Any) -> bool:
    value = literal(str(text))
    if not isinstance(value, bool):
        raise typer.BadParameter(f"{text!r} is neither true nor false")
    return value


SETTINGS = _options()
"""Name of each setting -> the parameter that typer makes an option of."""
_SPARSE_FIELDS = tuple(field.name for field in dataclasses.fields(Config))


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _run(path: Path) -> dict[str, Any]:
    try:
        return runpy.run_path(str(path))
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        words = str(error)
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines, words = [error.lineno], error.msg
        raise ModelError(
            what=f"{path}:{lines[-1]}" if lines else str(path),
            found=f"{type(error).__name__}: {words}",
            accepted="a file of settings must run as Python",
        ) from None


def _is_setting(value: object) -> bool:
    return isinstance(value, (int, float, str, tuple, list)) or value is None
