"""The options of `torch.compile(model, backend="s24", options={...})`, `@sparse_ffn(...)` and the command line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from s24compile.errors import OptionError, UnknownOptionError
from s24compile.recipe import ACTIVATION, NAMES, Targets, recipe_of
from s24compile.torch_internals.modes import inductor_modes


@runtime_checkable
class Machine(Protocol):
    """What `s24compile.kernels.target.Target` is to options, which know nothing of kernels."""

    @property
    def device_type(self) -> str: ...

    @property
    def arch(self) -> tuple[int, int] | None: ...


class _OfRecipe:
    """The default of a field whose value is the recipe's own: replaced when a Config is made."""

    def __repr__(self) -> str:
        return "<the recipe's>"


_OF_RECIPE: Any = _OfRecipe()
C = TypeVar("C", bound=type)


def _naming_unknown_options(cls: C) -> C:
    """Makes a dataclass refuse keywords that are no field with an UnknownOptionError, a TypeError that has a hint."""
    whole: Any = cls
    made = whole.__init__

    # Around the generated __init__, so that signature, fields, `dataclasses.replace` and pickling stay the dataclass's.
    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        _refuse_unknown(cls, options)
        made(self, *args, **options)

    whole.__init__ = __init__
    return cls


def _refuse_unknown(cls: Any, names: Iterable[object]) -> None:
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in names:
        if name not in fields:
            raise UnknownOptionError(name=name, hint=hint_of(name, fields), accepted=", ".join(fields))


def hint_of(name: object, known: Sequence[str]) -> str:
    """For the message about an unknown name: the known one that it is like; "" if there is none."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _is_pairs(value: object) -> bool:
    """Whether it is what a Config keeps of a mapping: a tuple of (name, value)."""
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in value
    )


def _frozen(value: Any) -> Any:
    """Something hashable that is equal for equal values: Inductor has settings that are lists, dicts and sets."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, Mapping):
        return frozenset((key, _frozen(held)) for key, held in value.items())
    return frozenset(value) if isinstance(value, set) else value


@_naming_unknown_options
@dataclasses.dataclass(frozen=True)
class Config:
    """How the feed-forward layers are trained sparse. Frozen and hashable: equal configs are one backend to Dynamo.

    `targets`, `gradient`, `decay` and `mask_interval` are the recipe's own where they are not given; once a Config is
    made they are values like any other, which `dataclasses.replace(config, recipe=...)` keeps.

    Raises:
        UnknownOptionError: a keyword that is no field; the message names the nearest one.
        OptionError: a value outside what its field accepts, or two fields that contradict each other.
    """

    recipe: str = "fst"
    """"fst" (ICML 2024), "fst-exact" (the same with exact weight gradients and masks searched at every step),
    "fst-down" (that in the down projections alone), "sste" (NeurIPS 2024), "step" (ICML 2023), "srste" (ICLR 2021) or
    "ste". "activation" prunes no weight: the hidden states of ReLU and squared-ReLU layers are 2:4 nearly by themselves
    (arXiv 2503.16672), and with them four of the six GEMMs of a layer."""
    targets: Targets = _OF_RECIPE
    """"ffn": the linears of feed-forward layers. "down": their last ones alone, the down projections. "linear": every
    linear but embeddings and the LM head. Default "ffn"; "down" with "fst-down"."""
    include: tuple[str, ...] = ()
    """Regexes searched in module paths ("blocks.0.mlp.c_fc"); if any are given, only matching linears are taken."""
    exclude: tuple[str, ...] = ()
    """Regexes searched in module paths; matching linears stay dense. Wins over `include`."""
    gradient: Literal["mvue", "auto", "dense"] = _OF_RECIPE
    """Weight gradient from the MVUE-pruned output gradient (2:4 GEMM), or from the dense one. "auto": pruned only in
    linears of enough input features for the 2:4 GEMM to win back what pruning costs, which leaves less noise.
    Default "mvue"; "dense" with "fst-exact" and "fst-down"."""
    input_gradient: Literal["auto", "dense", "mvue"] = "auto"
    """Input gradient of the row-wise recipes, whose masks are not 2:4 along the output features. "auto" and "dense":
    a dense GEMM. "mvue": dZ is replaced by its MVUE along the output features [S-STE], so that all three GEMMs
    are 2:4. "fst", "fst-exact", "fst-down" and "activation" need neither: their input gradient is sparse and exact."""
    decay: float | None = _OF_RECIPE
    """Masked decay lambda of [FST 4.2], added to the gradients of pruned weights ("srste": taken from the weights
    [SR-STE Eq. 8]). 0 switches it off. Default 6e-5; 2e-4 with "srste"; None, the only value, with "activation"."""
    mask_interval: int | None = _OF_RECIPE
    """Optimizer steps between two searches of the transposable mask [FST 5.3]. Default 40; 1 with "fst-exact" and
    "fst-down"; None, the only value, with "activation"."""
    dense_after: int | None = None
    """Train dense from the forward after this many optimizer steps (0 = always dense). None: never."""
    dense_until: int | None = None
    """Train dense for this many optimizer steps at the start (0: none). None: as the recipe does; 300 with
    "activation"."""
    total_steps: int | None = None
    """Length of the run in optimizer steps: "fst", "fst-exact" and "fst-down" end dense for its last 1/6, unless
    `dense_after` is given, and the latter two start dense for its first 1/6, unless `dense_until` is given."""
    precision: Literal["auto", "fp8"] = "auto"
    """What the GEMMs of the taken linears multiply, forward and backward. "auto": the dtype that autocast or the model
    gives them. "fp8": eight-bit floats, weights and activations in e4m3 and gradients in e5m2, scaled by the largest
    number of each tensor; results have the dtype that they have without. For Hopper; on a CPU the same is simulated."""
    freshness: Literal["auto", "always"] = "auto"
    """"auto": pack again after an optimizer step or an edit; of edits through `.data`, which only the numbers show,
    a sample is compared, on a GPU with an answer one or two forwards later. "always": before every forward; each
    forward that waits for its backward then holds packed weights of its own."""
    min_speedup: float = 1.0
    """Rewrite only where the cost model of the GPU promises this factor over dense; 0 forces. No effect on CPU."""
    memory: Literal["speed", "save"] = "speed"
    """What the backward keeps of a layer: "speed" its hidden state before and after the activation, "save" only the
    former; the activation is computed again, which costs a pass over it and T F elements less memory."""
    inner: Literal["inductor", "aot_eager", "eager"] = "inductor"
    """The compiler that gets the rewritten graph."""
    mode: str | None = None
    """Inductor's mode ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")."""
    inner_options: Any = None
    """Inductor's options, a mapping; stored as a sorted tuple of pairs. Values may be lists, dicts and sets."""
    target: Machine | str | None = None
    """What to compile for: "cpu", a CUDA architecture such as "sm_90", or a `s24compile.kernels.target.Target`. None:
    the machine's own."""

    def __post_init__(self) -> None:
        as_tuple = {f: self._patterns(f) for f in ("include", "exclude")}
        for field, value in as_tuple.items():
            object.__setattr__(self, field, value)
        if isinstance(self.inner_options, Mapping):
            object.__setattr__(self, "inner_options", tuple(sorted(self.inner_options.items())))
        elif not (self.inner_options is None or _is_pairs(self.inner_options)):
            raise OptionError(
                name="inner_options", value=self.inner_options, accepted="it must be a mapping of Inductor's settings"
            )
        self._choice("recipe", NAMES)
        self._take_from_recipe()
        self._choice("targets", ("ffn", "down", "linear"))
        self._choice("gradient", ("mvue", "auto", "dense"))
        self._choice("input_gradient", ("auto", "dense", "mvue"))
        self._choice("precision", ("auto", "fp8"))
        self._choice("freshness", ("auto", "always"))
        self._choice("memory", ("speed", "save"))
        self._choice("inner", ("inductor", "aot_eager", "eager"))
        self._number("min_speedup", 0.0)
        recipe = recipe_of(self.recipe)
        if recipe.decay is not None:
            self._number("decay", 0.0)
        if recipe.mask_interval is not None:
            self._integer("mask_interval", 1)
        for field, least in (("dense_after", 0), ("dense_until", 0), ("total_steps", 1)):
            if getattr(self, field) is not None:
                self._integer(field, least)
        self._check_target()
        self._check_contradictions()
        if self.mode is not None:
            self._choice("mode", tuple(inductor_modes()))

    def __hash__(self) -> int:
        return hash(tuple(_frozen(getattr(self, field.name)) for field in dataclasses.fields(self)))

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None = None) -> Config:
        """Makes a Config of a mapping of its fields.

        Raises:
            UnknownOptionError: a key that is no field; the message names the nearest one.
            OptionError: a value that is not accepted, or options that are no mapping.
        """
        if not isinstance(options, (Mapping, type(None))):
            raise OptionError(
                name="options", value=options, accepted="it must be a mapping of fields of s24compile.Config to values"
            )
        given = dict(options or {})
        _refuse_unknown(cls, given)  # here too: a name that is no string cannot be a keyword
        return cls(**given)

    @property
    def dense_from(self) -> int | None:
        """The optimizer step from which the weights train dense, or None for never."""
        if self.dense_after is not None or self.total_steps is None or not recipe_of(self.recipe).ends_dense:
            return self.dense_after
        return self.total_steps - self.total_steps // 6

    @property
    def sparse_from(self) -> int:
        """The optimizer step from which the weights train 2:4; 0 without a dense start."""
        if self.dense_until is not None:
            return self.dense_until
        starts_dense = recipe_of(self.recipe).starts_dense
        return self.total_steps // 6 if self.total_steps is not None and starts_dense else 0

    def _take_from_recipe(self) -> None:
        """Fills in what was not given; refuses what was, and means nothing to the recipe."""
        recipe = recipe_of(self.recipe)
        for field in ("targets", "gradient", "decay", "mask_interval", "dense_until"):
            value, own = getattr(self, field), getattr(recipe, field)
            may_be_none = own is None or field == "dense_until"
            if value is _OF_RECIPE or (value is None and may_be_none):
                object.__setattr__(self, field, own)
            elif own is None and field != "dense_until":
                raise OptionError(
                    name=field,
                    value=value,
                    accepted=f"it means nothing to recipe={self.recipe!r}, which prunes no weight: leave it out",
                )

    @property
    def hidden(self) -> bool:
        """Whether it is hidden states that are 2:4, and no weight is."""
        return self.recipe == ACTIVATION.name

    def _patterns(self, field: str) -> tuple[str, ...]:
        value = getattr(self, field)
        if not isinstance(value, Iterable):
            raise OptionError(name=field, value=value, accepted="it must be a regular expression, or a tuple of them")
        patterns = (value,) if isinstance(value, str) else tuple(value)
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise OptionError(
                    name=field, value=pattern, accepted=f"a regular expression on module paths ({error})"
                ) from None
        return patterns

    def _choice(self, field: str, accepted: tuple[str, ...]) -> None:
        if getattr(self, field) not in accepted:
            raise OptionError(
                name=field, value=getattr(self, field), accepted="it must be one of " + ", ".join(map(repr, accepted))
            )

    def _number(self, field: str, least: float) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
            raise OptionError(name=field, value=value, accepted=f"it must be a finite number >= {least:g}")

    def _integer(self, field: str, least: int) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(name=field, value=value, accepted=f"it must be an integer >= {least}")

    def _check_target(self) -> None:
        given = self.target
        if isinstance(given, str) and re.fullmatch(r"cpu|(sm_?)?\d{2,3}", given):
            return  # whether the package knows such an architecture, `kernels` says
        if given is not None and not isinstance(given, Machine):
            accepted = 'it must be a Target, "cpu", or an arch such as "sm_90"'
            raise OptionError(name="target", value=given, accepted=accepted)

    def _check_contradictions(self) -> None:
        self._check_schedule()
        if recipe_of(self.recipe).dx == "sparse" and self.input_gradient != "auto":
            why = "the gradient of a 2:4 hidden state being so, too" if self.hidden else "its masks being transposable"
            raise OptionError(
                name="input_gradient",
                value=self.input_gradient,
                accepted=f"recipe={self.recipe!r} has an exact 2:4 input gradient, {why}: leave it 'auto', or take one "
                "of 'sste', 'step', 'srste', 'ste'",
            )
        if self.precision == "fp8" and self.hidden:
            raise OptionError(
                name="precision",
                value=self.precision,
                accepted=f"recipe={self.recipe!r} has no kernels that pack a hidden state into eight-bit floats: leave "
                "it 'auto', or take a recipe that prunes weights",
            )
        if self.memory == "save" and self.inner == "eager":
            raise OptionError(
                name="memory",
                value=self.memory,
                accepted="what is saved is decided by AOTAutograd, which inner='eager' leaves out; use another inner",
            )
        inductor_only = self.mode is not None or self.inner_options is not None
        if inductor_only and self.inner != "inductor":
            raise OptionError(
                name="mode" if self.mode is not None else "inner_options",
                value=self.mode if self.mode is not None else dict(self.inner_options),
                accepted=f"it is an option of inner='inductor', and inner={self.inner!r} was given",
            )

    def _check_schedule(self) -> None:
        if self.dense_after is not None and self.total_steps is not None and self.dense_after > self.total_steps:
            raise OptionError(
                name="dense_after",
                value=self.dense_after,
                accepted=f"it must not exceed total_steps={self.total_steps}",
            )
        end = self.total_steps if self.dense_from is None else self.dense_from
        if not self.sparse_from or end is None or self.sparse_from < end or end == 0:
            return
        if self.dense_until is None:
            raise OptionError(
                name="dense_after",
                value=self.dense_after,
                accepted=f"recipe={self.recipe!r} starts dense for the first {self.sparse_from} of {self.total_steps} "
                "steps; give a later one, or dense_until=0",
            )
        unasked = self.dense_until == recipe_of(self.recipe).dense_until
        raise OptionError(
            name="dense_until",
            value=self.dense_until,
            accepted=f"no 2:4 step is left before step {end}, where the dense tail or the end of the run is"
            + (f"; recipe={self.recipe!r} starts so unless dense_until says otherwise" if unasked else ""),
        )
