"""Finds what a module of this package touches of torch's private parts: names that begin with one underscore."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

_PRIVATE = re.compile(r"_[a-z]\w*", re.IGNORECASE)
_DOCUMENTED = re.compile(r"torch\._(foreach_\w+|check\w*)")
"""With an underscore, and in torch's documentation all the same."""
_OF_PYTHON = frozenset({"_getframe", "_operator", "_replace"})
"""`sys._getframe`, the module in which operators written in C say that they are, and a method of named tuples."""
_OF_OTHERS: dict[str, frozenset[str]] = {
    # An enum of accelerate's, which cannot be extended but from inside; transformers' folder of a run, its loader.
    "integrations.accelerate": frozenset({"_name_", "_value_", "_member_map_", "_value2member_map_", "_member_names_"}),
    "integrations.trainer_callback": frozenset({"_get_output_dir", "_custom_objects"}),
    "kernels.gemm.cutlass.instantiations": frozenset({"_sk", "_deep"}),  # ends of our kernels' names
}
"""Private names of other libraries, by the module that uses them."""


def private_parts(modules: Iterable[tuple[str, ast.Module]], known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """("module:line", name) of what is neither torch's promise nor the package's own.

    Args:
        modules: name and code of each module of the package but torch_internals.
        known: full names of parts of torch, which are torch's whatever else bears such a name.
    """
    given = list(modules)
    torchs = {part for name in known for part in name.split(".")}
    own = _own_names(tree for _, tree in given) - torchs
    for name, tree in given:
        allowed = own | _OF_PYTHON | _OF_OTHERS.get(name, frozenset())
        yield from ((f"{name}:{line}", found) for line, found in _in_module(tree, allowed))


def _own_names(trees: Iterable[ast.Module]) -> set[str]:
    """Names with an underscore that the package gives to something of its own."""
    found: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.asname or "")
    return {name for name in found if _PRIVATE.fullmatch(name)}


def _in_module(tree: ast.Module, allowed: frozenset[str] | set[str]) -> Iterator[tuple[int, str]]:
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if _is_private(alias.name))
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((node.lineno, name) for name in names if _is_private(name))
        elif isinstance(node, ast.Attribute) and id(node) not in inner:
            chain = _dotted(node)
            parts = {part for part in chain.split(".")[1:] if _PRIVATE.fullmatch(part)}
            is_foreign = chain.startswith("torch.") or not parts <= allowed
            if parts and is_foreign and not _DOCUMENTED.match(chain) and not chain.startswith(("self._", "cls._")):
                yield node.lineno, chain
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            is_name = _PRIVATE.fullmatch(node.value) is not None
            if is_name and node.value not in allowed:
                yield node.lineno, repr(node.value)


def _is_private(name: str) -> bool:
    return name.startswith("torch.") and any(_PRIVATE.fullmatch(part) for part in name.split(".")[1:])


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "whole")
