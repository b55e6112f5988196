"""The model-level functions on sparse weights: look, save, restore, switch phases, re-pack, bake.

All of them take a plain model, a compiled one, or one wrapped by DistributedDataParallel, and name weights as the
innermost model's `named_parameters()` does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from s24compile.errors import CheckpointError, ModelError, OptionError
from s24compile.weights.agreement import fingerprint
from s24compile.weights.checkpoint import Entry, problem_of_entry, scheduled_steps
from s24compile.weights.following import follow
from s24compile.weights.mask import writing_state
from s24compile.weights.operand_map import operands_of
from s24compile.weights.packing import pack_all
from s24compile.weights.registry import TOLD, WEIGHTS, Load, told_about
from s24compile.weights.schedule import PHASES, Phase
from s24compile.weights.sharding import as_computed, gathered_masters, local, shape_of, whole_of
from s24compile.weights.sparse_weight import SparseWeight
from s24compile.wrappers import named_parameters, unwrapped

log = logging.getLogger("s24compile")


def sparse_weights(model: nn.Module) -> dict[str, SparseWeight]:
    """Parameter name -> live state, of the weights that have been sparse in a forward so far.

    Recipe "activation" makes hidden states 2:4 and no weight: see `activation_stats` for its layers.
    """
    known = {name: weight for name, p in _named_parameters(model) if (weight := WEIGHTS.get(p)) is not None}
    return {name: weight for name, weight in known.items() if not weight.config.hidden}


def state_dict(model: nn.Module) -> dict[str, Entry]:
    """Parameter name -> masks, counters, scale: with the model's and the optimizer's, all that a run needs to resume.

    Of a layer of recipe "activation" it holds the counters alone, under the name of its last projection's weight.
    Before the first forward it holds what has been loaded, or nothing. Loadable with `torch.load(weights_only=True)`.
    """
    entries: dict[str, Entry] = {}
    for name, parameter in _named_parameters(model):
        weight, told = WEIGHTS.get(parameter), TOLD.get(parameter)
        if weight is not None:
            entries[name] = weight.entry()
        elif told is not None and told.entry is not None:
            entries[name] = dict(told.entry)
            if told.phase is not None:  # asked for since
                entries[name] |= {"phase": told.phase, "phase_at": scheduled_steps(told.entry)}
    for entry in entries.values():
        entry["weights"] = len(entries)
    return entries


def load_state_dict(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Restores what `state_dict` returned, whole or not at all. Order with the model's own does not matter.

    Before the first forward the options are not known yet: entries are checked against the parameters now, and
    against the recipe when their weight becomes sparse. What does not fit then is an error of that forward, and of
    each one until another state is loaded; the weights that were restored before it start anew.

    Raises:
        CheckpointError: names, shapes, recipe or completeness do not fit the model. Nothing has been changed.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(
            found=f"it is a {type(state).__name__}", accepted="load what s24compile.state_dict returned"
        )
    parameters = dict(_named_parameters(model))
    _check_names(parameters, state)
    if not state and all(TOLD.get(p) is None for p in parameters.values()):
        log.warning(
            "an empty s24 state was loaded: masks and step counts begin anew. torch.distributed.checkpoint reads "
            "nothing else into a model that has not run yet: give it s24compile.Stateful(model), which has all names."
        )
    for name, entry in state.items():
        weight = WEIGHTS.get(parameters[name])
        shape = shape_of(parameters[name])
        problem = problem_of_entry(entry, shape) if weight is None else weight.problem_of(entry)
        if problem is None and entry["weights"] != len(state):
            problem = f"it was saved together with {entry['weights']} entries, and {len(state)} are given"
        if problem is not None:
            raise CheckpointError(
                found=f"weight {name!r}: {problem}",
                accepted="load what s24compile.state_dict returned for this model, with the same recipe",
            )
    load = Load(fingerprint(state) if torch.distributed.is_available() and torch.distributed.is_initialized() else "")
    for name, parameter in parameters.items():
        weight = WEIGHTS.get(parameter)
        entry = state.get(name)
        if weight is not None and entry is not None:
            weight.restore(entry)
            weight.load = load
        elif entry is not None:
            told = told_about(parameter)
            told.entry, told.phase, told.left_out, told.load = _copied(entry), None, False, load
        elif state or TOLD.get(parameter) is not None:
            told = told_about(parameter)
            told.entry, told.left_out, told.load = None, bool(state), load
    follow(unwrapped(model))


def set_phase(model: nn.Module, phase: Phase) -> None:
    """Trains the model's sparse weights "dense" or "sparse" from the next forward; also before the first one.

    A schedule (`Config.dense_after`, `total_steps`) that becomes due later still switches to dense.

    Raises:
        OptionError: another word than "sparse" or "dense".
    """
    if phase not in PHASES:
        raise OptionError(name="phase", value=phase, accepted="it must be one of " + ", ".join(map(repr, PHASES)))
    for _, parameter in _named_parameters(model):
        weight = WEIGHTS.get(parameter)
        if weight is not None:
            weight.ask_phase(phase)
        else:
            told_about(parameter).phase = phase
    follow(unwrapped(model))


def refresh(model: nn.Module, *, search: bool = False) -> None:
    """Re-packs the model's sparse weights now, for code that writes them where nothing shows it (`p.data.add_`).

    Most such writes are found without it (docs/trainers.md), on a GPU a little late; with it none is missed.

    Args:
        search: also search the masks anew, instead of keeping them until their interval is over. Recipes without
            `mask_interval` keep none, and search in any case.
    """
    for _, parameter in _named_parameters(model):
        weight = WEIGHTS.get(parameter)
        if weight is not None:
            weight.forget_contents()
            if search:
                weight.demand_search()
    operands = [operand for _, parameter in _named_parameters(model) for operand in operands_of(parameter)]
    for operand in operands:
        operand.forget()
    # An operand whose partner was replaced, or that was made for another dtype, has nothing to pack; what FSDP2 gathers
    # is packed when it is.
    ready = [op for op in operands if op.forward and not (op.obsolete or op.dense or op.gathered)]
    pack_all([(op, bool(op.transposed)) for op in ready])


def bake_(model: nn.Module) -> None:
    """Writes what the next sparse forward would compute with into the parameters, for export.

    Where that forward would search a mask anew (after a step, or when the interval is over), this does; else masks are
    kept. The parameter becomes M.W. Under S-STE it becomes W~ = beta S(W), and beta becomes 1, since S(W~) = W~: so the
    model's outputs stay the same, and baking twice is baking once. Raises version counters like any in-place write.
    Of weights that are sharded (FSDP2) all processes must call it, which gathers them one by one.

    Raises:
        ModelError: the model has no sparse weights yet, or some of them train dense now (all of W is in use then).
    """
    weights = sparse_weights(model)
    named = {name: p for name, p in _named_parameters(model) if name in weights}
    if not named:
        raise ModelError(
            what="bake_",
            found="the model has no sparse weights",
            accepted="compile it with backend='s24' and run a forward, or load its s24 state and run one, first; "
            "recipe='activation' prunes no weight, so such a model is exported as it is",
        )
    dense = [name for name, weight in weights.items() if weight.phase == "dense"]
    if dense:
        raise ModelError(
            what="bake_",
            found=f"{len(dense)} weight(s) are in their dense phase ({dense[0]!r}, ...), and use all their elements",
            accepted="export them as they are, or call s24compile.set_phase(model, 'sparse') first",
        )
    for name, parameter in named.items():
        _bake_weight_(weights[name], parameter)


def _bake_weight_(weight: SparseWeight, parameter: Parameter) -> None:
    whole, stored = whole_of(parameter), local(parameter.detach())
    with writing_state(whole.device):
        computed = as_computed(parameter, whole)
        weight.prepare(computed)
        weight.search_if_due(computed)
        if weight.recipe.soft:
            assert weight.scale is not None
            kept = weight.as_stored(weight.scale * torch.ops.s24.soft_threshold(weight.logical(whole)))
            stored.copy_(weight.shard.of(kept) if weight.shard else kept)
            weight.set_scale(torch.ones_like(weight.scale))
        else:
            mask = weight.mask
            stored.masked_fill_(~(weight.shard.of(mask) if weight.shard else mask).to(stored.device), 0)
        weight.baked()


def _check_names(parameters: Mapping[str, Parameter], state: Mapping[str, Any]) -> None:
    foreign = [name for name in state if name not in parameters]
    if foreign:
        raise CheckpointError(
            found=f"the model has no parameter {foreign[0]!r}"
            + (f" (nor {len(foreign) - 1} others)" if len(foreign) > 1 else ""),
            accepted="names are those of model.named_parameters(), without '_orig_mod.'",
        )
    missing = [name for name, p in parameters.items() if WEIGHTS.get(p) is not None and name not in state]
    if missing:
        raise CheckpointError(
            found=f"it has no entry for the sparse weight {missing[0]!r}"
            + (f" (nor for {len(missing) - 1} others)" if len(missing) > 1 else ""),
            accepted="load the whole of what s24compile.state_dict returned",
        )


def _copied(entry: Entry) -> Entry:
    return {field: v.detach().clone() if isinstance(v, torch.Tensor) else v for field, v in entry.items()}


def _named_parameters(model: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """(name, Parameter) of the innermost model; state is followed to Parameters that have replaced others.

    While FSDP2 has some of them gathered, their masters all the same.
    """
    follow(unwrapped(model))
    masters = gathered_masters()
    return ((name, masters.get(id(parameter), parameter)) for name, parameter in named_parameters(model))
