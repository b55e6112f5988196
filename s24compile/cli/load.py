"""What a command line says about a model: where it is made, what it is called with, its options; where results go."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from s24compile.errors import ModelError, OptionError

INPUT = re.compile(r"(?:(?P<name>\w+)=)?(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?")
INPUT_HELP = (
    "One example input, repeatable, in order: dtype[shape], e.g. 'float32[8,128]' or 'int64[2,64]<50257' (integers "
    "below 50257); 'name=...' passes it by keyword."
)


def load_model(where: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Makes the model that `pkg.module:factory` or `path/to/file.py:factory` names.

    The factory takes no argument and returns the model, or the model and a tuple of example inputs.

    Raises:
        ModelError: no such file, module or attribute, a factory that wants arguments, or something that is no
            nn.Module.
    """
    place, _, attribute = where.rpartition(":")
    if not place or not attribute:
        raise ModelError(what=where, found="no factory named", accepted="write pkg.module:factory or file.py:factory")
    # As `python file.py` would: modules beside the file (or in the working directory) can be imported.
    with _searched_first(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()):
        made: Any = _module(place)
        for part in attribute.split("."):
            if not hasattr(made, part):
                raise ModelError(
                    what=place, found=f"it has no {part!r}", accepted="name a function that returns a model"
                )
            made = getattr(made, part)
        if not isinstance(made, nn.Module) and callable(made):
            objection = _objection(made)
            if objection:
                raise ModelError(
                    what=where,
                    found=f"it wants arguments ({objection})",
                    accepted="name a function of none that returns the model",
                )
            made = made()
    inputs: tuple[Any, ...] = ()
    if isinstance(made, tuple) and len(made) == 2:
        made, given = made
        inputs = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if not isinstance(made, nn.Module):
        raise ModelError(what=where, found=f"it gave a {type(made).__name__}", accepted="an nn.Module is needed")
    return made, inputs


def _objection(call: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> str:
    """What the signature of `call` says against these arguments; "" if nothing, or if it tells none."""
    try:
        signature = inspect.signature(call)
    except ValueError:
        return ""
    try:
        signature.bind(*args, **(kwargs or {}))
    except TypeError as error:
        return str(error)
    return ""


def make_inputs(specs: list[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Makes the tensors of `--input` specs: positional ones and those passed by keyword.

    Raises:
        OptionError: a spec that is not `[name=]dtype[shape][<bound]`, or a bound that leaves no number or is none.
    """
    positional: list[Tensor] = []
    named: dict[str, Tensor] = {}
    for spec in specs:
        match = INPUT.fullmatch(spec.strip())
        dtype = getattr(torch, match["dtype"], None) if match else None
        if match is None or not isinstance(dtype, torch.dtype):
            raise OptionError(name="input", value=spec, accepted="write dtype[shape], e.g. 'int64[2,64]<50257'")
        if match["below"] and (dtype.is_floating_point or not int(match["below"])):
            raise OptionError(
                name="input", value=spec, accepted="a bound is for integers, and >= 1: 'int64[2,64]<50257'"
            )
        shape = [int(size) for size in match["shape"].split(",") if size.strip()]
        if dtype.is_floating_point:
            tensor = torch.randn(shape).to(dtype)
        else:
            # 2 is below every vocabulary size, so an unbounded integer input is a legal token.
            tensor = torch.randint(0, int(match["below"] or 2), shape).to(dtype)
        if match["name"]:
            named[match["name"]] = tensor
        else:
            positional.append(tensor)
    return positional, named


def check_inputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Asks the signature of the model's forward whether it takes these inputs.

    Raises:
        OptionError: some are missing, or too many.
    """
    objection = _objection(model.forward, args, kwargs)
    if objection:
        raise OptionError(
            name="input",
            value=[*map(_spelled, args), *(f"{name}={_spelled(x)}" for name, x in kwargs.items())],
            accepted=f"{type(model).__name__}.forward{inspect.signature(model.forward)} says: {objection}; write one "
            "--input 'dtype[shape]' for each, or let the factory return the model and a tuple of inputs",
        )


def _spelled(x: Any) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Makes a mapping of `name=value` words; values are Python literals, anything else is a string.

    Raises:
        OptionError: a word without "=".
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise OptionError(name=pair, value="", accepted="write name=value")
        options[name.replace("-", "_")] = literal(value)
    return options


def folder_for_results(name: str, folder: Path) -> None:
    """Makes the folder that a command writes to. Call before the work, not when hours of it are to be saved.

    Raises:
        OptionError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            name=name, value=str(folder), accepted=f"it must be a folder that can be made ({error.strerror})"
        ) from None


def literal(text: str) -> Any:
    """`text` as a Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise ModelError(what=place, found="no such file", accepted="write file.py:factory")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ModelError(what=place, found="Python cannot load it", accepted="it must be a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # A module that the user's own module lacks is their traceback to see.
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise
        raise ModelError(what=place, found=f"no module named {error.name!r}", accepted="is it installed?") from None


@contextlib.contextmanager
def _searched_first(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
