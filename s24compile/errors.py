"""Every error that s24compile raises on purpose.

One class per kind of mistake and one message template per class. A message says what was given, what is
accepted and what to do. Each class also derives from the built-in exception that a user would try to catch.
"""

from __future__ import annotations

import operator
import sys

import torch

from s24compile.torch_internals import dynamo


class S24Error(Exception):
    """Base of all errors of this package. Subclasses fill `template` with keyword arguments."""

    template = "{message}"

    def __init__(self, **given: object) -> None:
        # Dynamo cannot trace the rest. Where the graph may break it does so here, and plain Python raises the error;
        # elsewhere that would be Dynamo's own error, without a word of this one.
        if torch.compiler.is_dynamo_compiling() and _must_leave_trace():
            _leave_trace(type(self), {name: _concrete(value) for name, value in given.items()})
        self.given = given
        super().__init__(self.template.format(**given))

    def __reduce__(self) -> tuple[object, ...]:
        # BaseException pickles by positional args; ours are keywords (worker processes re-raise these).
        # Of a class made by `visible_through_dynamo`, which no module has, the first base that pickle can find.
        findable = next(c for c in type(self).__mro__ if getattr(sys.modules[c.__module__], c.__qualname__, None) is c)
        return (_rebuild, (findable, self.given))


def _rebuild(cls: type[S24Error], given: dict[str, object]) -> S24Error:
    return cls(**given)


def visible_through_dynamo(error: S24Error) -> Exception:
    """The same error, as a class that Dynamo hands to the user unchanged instead of wrapping it.

    What the user has to change is raised under `torch._dynamo.config.suppress_errors` too. That asks for an eager, and
    here dense, run of what cannot be compiled, not of options that nobody can follow.
    """
    return dynamo.passing(error, unsuppressed=not is_suppressible(error))


def is_suppressible(error: Exception) -> bool:
    """Whether an error is a compilation that failed, and not a demand that cannot be met."""
    return not isinstance(error, S24Error) or isinstance(error, (LoweringError, BuildError))


@dynamo.constant_result
def _must_leave_trace() -> bool:
    """Whether Dynamo is tracing with `fullgraph=True`. Run by Dynamo, as the next one is, instead of traced."""
    return dynamo.must_not_break()


@dynamo.constant_result
def _leave_trace(cls: type[S24Error], given: dict[str, object]) -> None:
    raise visible_through_dynamo(cls(**given))


def _concrete(value: object) -> object:
    """What Dynamo can hand to a function that it runs: numbers for the sizes that it traces as symbols."""
    if isinstance(value, tuple):
        return tuple(_concrete(part) for part in value)
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}"
    return operator.index(value) if type(value) is int else value


class UnknownOptionError(S24Error, TypeError):
    """An option name that `s24compile.Config` does not have."""

    template = "unknown option {name!r}{hint}; the options are the fields of s24compile.Config: {accepted}"


class OptionError(S24Error, ValueError):
    """An option whose value is not accepted, or contradicts another one."""

    template = "option {name}={value!r} is not accepted: {accepted}"


class ArgumentError(S24Error, TypeError):
    """An argument of another type than the call takes."""

    template = "{what} is of type {found}; {accepted}"


class ShapeError(S24Error, ValueError):
    """A tensor whose shape no 2:4 format, or not this op, takes."""

    template = "{what} has shape {shape}; {accepted}"


class DimensionError(S24Error, IndexError):
    """A dim that a tensor does not have."""

    template = "{op} does not take the dims {dims}: {accepted}"


class DtypeError(S24Error, TypeError):
    """A tensor whose dtype is not supported by this op or format."""

    template = "{what} has dtype {dtype}; {accepted}"


class MaskError(S24Error, ValueError):
    """A mask that is not 2:4, or a tensor that was promised to be 2:4 and is not."""

    template = "{what} is not 2:4: {found}; {accepted}"


class CheckpointError(S24Error, ValueError):
    """A state dict that does not fit the model. Nothing of it has been loaded."""

    template = "the s24 state does not fit this model and none of it was loaded: {found}; {accepted}"


class ConflictError(S24Error, ValueError):
    """One weight asked for with two different sets of options."""

    template = "weight {name!r} is already sparse with {old}; it was now asked for with {new}: {accepted}"


class DecoratorError(S24Error, TypeError):
    """`sparse_ffn` on something that cannot be made sparse, or a decorated module that would run dense."""

    template = "sparse_ffn({what}): {found}; {accepted}"


class TargetError(S24Error, RuntimeError):
    """Hardware or software that the asked-for kernel does not support."""

    template = "{what} is not available on {target}: {found}; {accepted}"


class BuildError(S24Error, RuntimeError):
    """A kernel that could not be compiled or loaded."""

    template = "could not build {what}: {found}; {accepted}"


class LoweringError(S24Error, RuntimeError):
    """An s24 node that no provider took, or a graph that breaks an invariant of a pass."""

    template = "{node}: {found}; {accepted}"


class CompileError(S24Error, RuntimeError):
    """A compilation that is not allowed now."""

    template = "{what} needs a graph compiled: {found}; {accepted}"


class ModelError(S24Error, ValueError):
    """A call about a model that has no such weights, or is no module."""

    template = "{what}: {found}; {accepted}"


class OperatorError(S24Error, NotImplementedError):
    """An op that a Sparse24 tensor does not take, or not in this place."""

    template = "{op} does not take {what}: {accepted}"
