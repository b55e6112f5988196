"""How training reaches the weights without a line in the user's loop: the hooks that every torch optimizer calls.

The pre-hook applies masked decay, the post-hook counts the step. Facts that shape both: steps are parts of others
(`training/nesting.py`), and the outer one may make the gradients itself; with a closure the gradients do not exist yet
when the pre-hook runs; under GradScaler a fused optimizer still has scaled gradients then, and fires on a skipped step
too (it is counted: finding out would stop the host until the device has answered); torch's own calls for the state of
an optimizer that has not stepped yet make a step with learning rate 0 and zero gradients, which is none.
"""

from __future__ import annotations

import functools
import logging
import weakref
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from s24compile.torch_internals.tensors import is_traceable_wrapper_subclass
from s24compile.training import nesting
from s24compile.training.decay import decay_
from s24compile.training.flip_rate import watch_flips
from s24compile.weights.registry import TOLD, WEIGHTS
from s24compile.weights.schedule import CLOCK, DRIVEN
from s24compile.weights.sharding import any_process, local
from s24compile.weights.sparse_weight import SparseWeight

log = logging.getLogger("s24compile")

Held = list[tuple[dict[str, Any], SparseWeight]]
"""The sparse weights of an optimizer, each with its parameter group."""
_Members = tuple[int, tuple[tuple[int, ...], ...]]

_DECAYED = nesting.Decayed()
_IDLE: weakref.WeakSet[Optimizer] = weakref.WeakSet()
"""Optimizers whose step that has begun changes nothing."""
_MEMBERS: weakref.WeakKeyDictionary[Optimizer, tuple[_Members, list[tuple[int, weakref.ref[SparseWeight]]]]] = (
    weakref.WeakKeyDictionary()
)


@functools.cache
def watch_optimizers() -> None:
    """Registers the hooks, once a process. Called when the first weight becomes sparse; costs nothing before."""
    # Under torch.compile(optimizer.step) the hooks must run as they are: they count, and look at the Python stack.
    register_optimizer_step_pre_hook(cast(Any, torch.compiler.disable(before_step)))
    register_optimizer_step_post_hook(cast(Any, torch.compiler.disable(after_step)))


def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Applies masked decay; with a closure, right after it has computed the gradients.

    Returns: None, or new (args, kwargs) where the closure is wrapped (torch's contract for pre-hooks).
    """
    outer = nesting.outer_steps()
    if not outer:
        _DECAYED.clear()
    _IDLE.discard(optimizer)
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        _before_update(optimizer, outer)
        return None

    @functools.wraps(closure)
    def closure_and_decay() -> Any:
        _DECAYED.clear()  # each evaluation makes gradients anew, in the same tensors perhaps
        loss = closure()
        # Asked only now: the first forward of all, which makes the weights sparse, may be the closure's.
        _decay_what_is_stepped(optimizer, outer)
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure_and_decay}
    return (args[0], closure_and_decay, *args[2:]), kwargs


def _before_update(optimizer: Optimizer, outer: list[Optimizer]) -> None:
    held = held_by(optimizer)
    if not held:
        return
    if _changes_nothing(optimizer, held):
        _IDLE.add(optimizer)
        return
    inside = nesting.left_to_others(optimizer, outer)
    _warn_of_dense_forwards([(group, weight) for group, weight in held if weight not in inside])
    _decay_what_is_stepped(optimizer, outer)


def _decay_what_is_stepped(optimizer: Optimizer, outer: list[Optimizer]) -> None:
    """Decays gradients, but for those that a step inside this one is going to step, or that are decayed already."""
    inside = nesting.left_to_others(optimizer, outer)
    held: Held = []
    for group, weight in held_by(optimizer):
        gradient = _gradient(weight)
        if gradient is not None and weight not in inside and gradient not in _DECAYED:
            held.append((group, weight))
    decay_(optimizer, held)
    for _, weight in held:
        gradient = _gradient(weight)
        if gradient is not None:
            _DECAYED.add(gradient)


def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Counts the step for the weights that the optimizer holds, and lets their packed forms go stale."""
    held = [weight for _, weight in held_by(optimizer)]
    if optimizer in _IDLE:
        for weight in held:
            weight.note_step()
        return
    outer = nesting.outer_steps()
    CLOCK.step(optimizer, whole=not outer)
    nesting.note(held, outer)
    inside = nesting.left_to_others(optimizer, outer)
    counted = [weight for weight in held if weight not in inside]
    _meet(optimizer, [weight for weight in counted if not weight.held])
    for weight in counted:
        weight.steps += 1
    for weight in held:
        parameter = weight.parameter()
        if parameter is not None and (parameter.requires_grad or parameter.grad is not None):
            weight.tick = CLOCK.tick
            weight.note_step()
    watch_flips(counted)


def held_by(optimizer: Optimizer) -> Held:
    """The sparse weights among an optimizer's parameters, found anew only when either set has changed."""
    groups = optimizer.param_groups
    members = (WEIGHTS.generation, tuple(tuple(map(id, group["params"])) for group in groups))
    known = _MEMBERS.get(optimizer)
    if known is None or known[0] != members:
        found = [
            (index, weakref.ref(weight))
            for index, group in enumerate(groups)
            for parameter in group["params"]
            if (weight := WEIGHTS.get(parameter)) is not None
        ]
        known = _MEMBERS[optimizer] = (members, found)
    return [(groups[index], weight) for index, ref in known[1] if (weight := ref()) is not None]


def _meet(optimizer: Optimizer, weights: list[SparseWeight]) -> None:
    """Notes that an optimizer holds these weights, when it first steps them."""
    if weights:
        _warn_of_unused_entries(optimizer)
        _warn_of_lost_steps(optimizer, weights)
    undriven = []
    for weight in weights:
        weight.hold()
        parameter = weight.parameter()
        if weight.recipe.optimizer_drives_phase and parameter is not None and DRIVEN.get(parameter) is None:
            undriven.append(weight.name)
    if undriven:
        log.warning(
            "recipe='step' with %s: the dense first phase and the frozen variance are AdamW_STEP's; %d weight(s) (%s, "
            "...) train 2:4 from the start, as with recipe='ste'. Use s24compile.AdamW_STEP.",
            type(optimizer).__name__,
            len(undriven),
            undriven[0],
        )


def _warn_of_unused_entries(optimizer: Optimizer) -> None:
    """Says once a load that weights which it has state for were trained dense: another `targets`, or `exclude`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    notes = [told for p in parameters if (told := TOLD.get(p)) is not None and told.entry is not None]
    loads = {told.load for told in notes if told.load is not None and not told.load.warned}
    for load in loads:
        load.warned = True
    if loads:
        log.warning(
            "state was loaded for %d weight(s) that train dense in this step: is the model compiled with the options "
            "(targets, include, exclude) that it was saved with? Their masks are kept, and unused.",
            sum(told.load in loads for told in notes),
        )


def _warn_of_lost_steps(optimizer: Optimizer, weights: list[SparseWeight]) -> None:
    """Says that an optimizer has made more steps than its weights have counted: their state was not loaded."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return
    for weight in weights:
        parameter = weight.parameter()
        made = None if parameter is None else optimizer.state.get(parameter, {}).get("step")
        # This step has been made, and is not counted yet. A step count on the device is waited for, once.
        if isinstance(made, (int, float, Tensor)) and float(made) > weight.steps + 1:
            log.warning(
                "the optimizer has made %d steps, and the sparse weights that it holds (%s, ...) count %d: if this run "
                "was resumed, their state was not, and masks, phases (dense_after, dense_until, total_steps) and ages "
                "begin anew. Load what s24compile.state_dict returned, or use s24compile.TrainerCallback or Stateful. "
                "If sparse training begins now, all is well.",
                int(made),
                weight.name,
                weight.steps + 1,
            )
            return


def _warn_of_dense_forwards(held: Held) -> None:
    """Says once a weight that it has a gradient although nothing packed it since its last step.

    Its forward then ran outside the compiled graph: Dynamo gave up on the function (its recompile limit), or the model
    was called uncompiled. Nothing may be silently dense.
    """
    suspects = [
        (weight, grad)
        for _, weight in held
        if weight.packed_at < weight.tick
        and not weight.warned
        and weight.phase == "sparse"
        and (grad := _gradient(weight)) is not None
    ]
    if any(grad.is_cuda for _, grad in suspects) and torch.cuda.is_current_stream_capturing():
        return  # the host can ask nothing then
    reached = _are_nonzero([grad for _, grad in suspects])
    dense = [weight for (weight, _), nonzero in zip(suspects, reached, strict=True) if nonzero]
    if not dense:
        return
    for weight in dense:
        weight.warned = True
    log.warning(
        "%d sparse weight(s) (%s, ...) got a gradient in a step without a sparse forward: the model ran uncompiled, or "
        "torch.compile gave up on it (see its warnings; TORCH_LOGS=recompiles; torch._dynamo.config.recompile_limit)",
        len(dense),
        dense[0].name,
    )


def _gradient(weight: SparseWeight) -> Tensor | None:
    parameter = weight.parameter()
    return None if parameter is None else parameter.grad


def _are_nonzero(gradients: list[Tensor]) -> list[bool]:
    """Which of these gradients a backward has reached: `zero_grad(set_to_none=False)` leaves zeros to weights that a
    step does not use. One host sync for all, paid only in steps that pass over a sparse weight."""
    held = [local(g) for g in gradients]
    plain = [g for g in held if g.layout == torch.strided and not is_traceable_wrapper_subclass(g)]
    asked = torch.stack([g.any().to(plain[0].device) for g in plain]).tolist() if plain else []
    answers = {id(g): answer for g, answer in zip(plain, asked, strict=True)}
    return [answers.get(id(g), True) for g in held]


def _changes_nothing(optimizer: Optimizer, held: Held) -> bool:
    """Whether a step is one with learning rate 0 and without a gradient other than zero: `get_optimizer_state_dict` and
    its like make one to learn what states an optimizer has. Waits for the device at most where all rates are 0, and
    then for the other processes that hold parts of the weights: all of them must count a step, or none."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    # A rate on a GPU belongs to a step that is captured, or meant to be; to look at it would wait for the device.
    readable = [rate for rate in rates if isinstance(rate, (int, float)) or (isinstance(rate, Tensor) and rate.is_cpu)]
    if len(readable) < len(rates) or any(readable):
        return False
    gradients = [gradient for _, weight in held if (gradient := _gradient(weight)) is not None]
    if any(g.is_cuda for g in gradients) and torch.cuda.is_current_stream_capturing():
        return False
    return not any_process(any(_are_nonzero(gradients)), gradients)
