"""Where a node comes from, in the user's words: module path, parameter name, source line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence

import torch
from torch import fx

from s24compile.passes.scope import Scope, origins
from s24compile.torch_internals.graphs import WRAPPERS, source_of

_TOKEN = re.compile(
    r"_(?:modules|parameters|buffers)\[['\"](?P<registered>[^'\"]*)['\"]\]"
    r"|\[(?P<item>'[^']*'|\"[^\"]*\"|\d+)\]"
    r"|\.(?P<attribute>(?!_(?:modules|parameters|buffers)\[)\w+)"
)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_LIBRARY = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.join(os.path.dirname(os.path.dirname(__file__)), "compiler", "decorator.py"),
)
_INSTALLED = os.path.dirname(os.path.dirname(torch.__file__)) + os.sep
_HELPERS = re.compile(r"transformers[/\\](pytorch_utils\.py|activations\.py|integrations[/\\])")
"""Library files that hold layers' parts, not models."""


def dotted(source: str) -> str:
    """Turns Dynamo's name of an object into the one of `named_modules()` or `named_parameters()`.

    L['self']._modules['blocks']._modules['0']._parameters['Wi']  ->  blocks.0.Wi
    L['self'].blocks.0.mlp                                        ->  blocks.0.mlp
    L['self'].mlp.forward.__self__.fc1                            ->  mlp.fc1       (mlp is decorated)
    """
    source = source.replace(".forward.__self__", "")
    root = re.match(r"[LG]\['[^']*'\]|\w+", source)
    parts = [
        (m["registered"] or m["item"] or m["attribute"] or "").strip("'\"")
        for m in _TOKEN.finditer(source, root.end() if root else 0)
    ]
    return ".".join(part for part in parts if part and part not in WRAPPERS)


def parameter_name(placeholder: fx.Node) -> str:
    """The name of a top-level placeholder's parameter, e.g. "blocks.0.mlp.Wi.weight"; case is kept."""
    text = _source(placeholder)
    return dotted(text) if text else str(placeholder.target)


def _source(placeholder: fx.Node) -> str:
    """How Dynamo got at an input, as Python; "" where it does not say."""
    name = getattr(source_of(placeholder), "name", "")
    text = name() if callable(name) else name
    return text if isinstance(text, str) else ""


def is_buffer(placeholder: fx.Node) -> bool:
    """Whether a top-level placeholder is a module's buffer."""
    return "_buffers[" in _source(placeholder)


def module_path(scope: Scope, node: fx.Node, weight: fx.Node | None = None) -> str:
    """The path of the innermost module that a node ran in, else the owner of its weight."""
    stack = node.meta.get("nn_module_stack")
    if stack:
        return dotted(next(reversed(stack.values()))[0])
    names = [parameter_name(top) for top in origins(scope, weight)] if weight is not None else []
    return names[0].rpartition(".")[0] if names else ""


def module_paths(scope: Scope, node: fx.Node, weight: fx.Node | None) -> list[str]:
    """The paths under which a linear goes: one, or in a body that serves several modules one for each."""
    paths = {module_path(scope, node, weight)}
    if scope.calls and weight is not None:  # the stack of a shared body names only the first module
        paths |= {parameter_name(top).rpartition(".")[0] for top in origins(scope, weight)}
    return sorted(paths)


def common_path(paths: Sequence[str]) -> str:
    """The innermost module that holds all of them: "blocks.0.mlp" for "blocks.0.mlp.c_fc" and "blocks.0.mlp.c_proj"."""
    split = [path.split(".") if path else [] for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) != 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def user_line(node: fx.Node) -> str:
    """The innermost frame outside torch and this package, as "file.py:12".

    Relative to the working directory, or for libraries to where they are installed: "transformers/models/...".
    """
    trace = str(node.meta.get("stack_trace") or "")
    return user_place((m["file"], int(m["line"])) for m in _FRAME.finditer(trace))


def relative(file: str) -> str:
    """A source file relative to the working directory, or for libraries to where they are installed."""
    # A virtual environment may lie inside the working directory, so the library folder goes first.
    for folder in (_INSTALLED, os.getcwd() + os.sep, *(entry + os.sep for entry in sys.path if entry)):
        if file.startswith(folder):
            return file.removeprefix(folder)
    return file


def user_place(frames: Iterable[tuple[str, int]]) -> str:
    """The innermost of these (file, line) that is the user's own, as "file.py:12"; empty where none is."""
    own = [frame for frame in frames if not frame[0].startswith(_LIBRARY) and not _HELPERS.search(frame[0])]
    return f"{relative(own[-1][0])}:{own[-1][1]}" if own else ""
