"""What one weight's state looks like in a checkpoint, and whether an entry fits a parameter. A leaf.

An entry is a plain dict of tensors, ints and strings, so that `torch.load(weights_only=True)` takes it:

    format    int       1 or 2: what fields an entry has; missing in format 1
    recipe    str       name of the recipe it was trained with
    layout    str       "out_in" | "in_out"
    shape     list      of the parameter, as stored
    steps     int       steps of optimizers that hold the parameter
    others    int       turns of the optimizers (`schedule.StepClock`), where none was seen to hold it
    age       int       optimizer steps since the last mask search
    held      int       1 if an optimizer was seen to hold the parameter (else `age` and `phase_at` go by `others`)
    phase     str       what set_phase asked for ("" if nothing), at step `phase_at`
    decay     float     `weight.decay` where it was assigned; missing where it is Config's, and in format 1
    weights   int       how many entries were saved together: tells a partial checkpoint from a whole one
    patterns  uint8     [N/4, K/4] or [N, K/4] pattern bytes, logical orientation; missing before the first search
    previous  uint8     the patterns before the last search (flip rate); missing before the second search
    scale     float32   0-d, S-STE's beta; missing for other recipes

Files of format 1 are read: of what they lack, decay, they were trained with what Config said. Files of a later format
than this are refused whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

Entry = dict[str, Any]

_FIELDS: Mapping[str, type] = {
    "recipe": str, "layout": str, "shape": list, "phase": str,
    "steps": int, "others": int, "age": int, "held": int, "phase_at": int, "weights": int,
}  # fmt: skip
FORMAT = 2
"""What `SparseWeight.entry` writes, and the latest that is read."""
_OPTIONAL = ("format", "decay")
_TENSORS = ("patterns", "previous", "scale")
_COUNTS = ("steps", "others", "age", "held", "phase_at", "weights")
_CODES = {"transposable": 90, "rows": 6}


def scheduled_steps(entry: Mapping[str, Any]) -> int:
    """What the phases of the saved weight went by: one of the two counts is 0."""
    return int(entry["steps"] + entry["others"])


def problem_of_entry(entry: object, shape: tuple[int, ...]) -> str | None:
    """Says in words what is wrong with an entry for a parameter of `shape`, or None. Knows no recipe's meaning."""
    if not isinstance(entry, Mapping):
        return f"its entry is a {type(entry).__name__}, not a dict"
    version = entry.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        return (
            f"it was saved by a later version of s24compile, in format {version}, and this one reads formats up to "
            f"{FORMAT}: install that version"
        )
    for field, kind in _FIELDS.items():
        if not isinstance(entry.get(field), kind) or isinstance(entry.get(field), bool):
            return f"its field {field!r} is missing or no {kind.__name__}"
    if type(version) is not int or version < 1:
        return f"its format is {version!r}, not an integer from 1 to {FORMAT}"
    if extra := set(entry) - set(_FIELDS) - set(_TENSORS) - set(_OPTIONAL):
        return f"it has unknown fields {sorted(map(str, extra))}"
    if tuple(entry["shape"]) != shape:
        return f"it was saved for shape {tuple(entry['shape'])}, the parameter has {shape}"
    if min(entry[field] for field in _COUNTS) < 0 or entry["phase"] not in ("", "sparse", "dense"):
        return "its counters or its phase are out of range"
    decay = entry.get("decay", 0.0)
    if type(decay) is not float or not (math.isfinite(decay) and decay >= 0):
        return f"its decay is {decay!r}, not a finite number >= 0"
    steps, age, phase_at = scheduled_steps(entry), entry["age"], entry["phase_at"]
    if max(age, phase_at) > steps:
        return f"its counters contradict each other: age={age} and phase_at={phase_at} after {steps} steps"
    if age < steps and "patterns" not in entry:
        return f"its patterns are missing, although they were searched at step {steps - age}"
    for field in _TENSORS:
        if field in entry and not isinstance(entry[field], torch.Tensor):
            return f"its field {field!r} is no tensor"
    return None


def problem_of_patterns(entry: Entry, kind: str, pattern_shape: tuple[int, ...]) -> str | None:
    """Says in words why the tensors of an entry are no legal masks and scale for this weight, or None."""
    for field in ("patterns", "previous"):
        found = entry.get(field)
        if found is None:
            continue
        if found.dtype != torch.uint8 or tuple(found.shape) != pattern_shape:
            return f"its {field} are {found.dtype} {tuple(found.shape)}, expected torch.uint8 {pattern_shape}"
        if found.numel() and int(found.max()) >= _CODES[kind]:
            return f"its {field} hold codes that no 2:4 pattern has"
    if "previous" in entry and "patterns" not in entry:
        return "it has previous patterns and no present ones"
    scale = entry.get("scale")
    if scale is not None and not (scale.ndim == 0 and bool(torch.isfinite(scale)) and float(scale) > 0):
        return "its scale is no positive number"
    return None
