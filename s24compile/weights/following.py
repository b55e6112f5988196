"""Which module holds which sparse weight, noted so that state follows when another Parameter stands there."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn import Module, Parameter

from s24compile.weights.places import modules_of_callers
from s24compile.weights.registry import PLACES, WEIGHTS, hand_over, state_of
from s24compile.weights.sharding import gathered_masters, masters_of


def follow(model: Module) -> None:
    """Hands state over to the Parameters that have replaced others in a model, and notes where all of them stand."""
    known = gathered_masters()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                _follow(module, name, known.get(id(parameter), parameter))


def note_owners(parameters: Iterable[Tensor]) -> None:
    """Notes where Parameters stand that are met in a forward for the first time: on a module of some caller."""
    new = [weight for p in masters_of(parameters) if (weight := WEIGHTS.get(p)) is not None and not weight.owner_sought]
    known = gathered_masters() if new else {}
    missing = {id(parameter) for weight in new if (parameter := weight.parameter()) is not None}
    for weight in new:
        weight.owner_sought = True
    for model in modules_of_callers() if missing else ():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(master := known.get(id(parameter), parameter)) in missing:
                    _follow(module, name, master)
                    missing.discard(id(master))
        if not missing:
            return


def _follow(module: Module, name: str, parameter: Parameter) -> None:
    left = PLACES.left_at(module, name, parameter)
    if left is not None:
        hand_over(left, parameter, converted=True)
    state = state_of(parameter)
    if state is not None:
        PLACES.note(module, name, parameter, state)
