"""Which Parameter has which sparse state: a weak map, looked up at each call.

State belongs to the Parameter object, never to a graph: one compiled graph serves many layers and models. It survives
what keeps the object (`load_state_dict`, `.to()`, `.half()`, recompiles, tied weights), and is inherited where a
Parameter is put in another's place in a module (`load_state_dict(assign=True)`, `to_empty`). A `copy.deepcopy` of a
model has new parameters, and so starts its own state; carry it over with `s24compile.load_state_dict(copy,
s24compile.state_dict(model))` where that is wanted. It dies with the Parameter, or, where that was replaced, with the
module that held it. Packed values are another matter: see `weights/operand.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from s24compile.config import Config
from s24compile.errors import CheckpointError, ConflictError
from s24compile.recipe import recipe_of
from s24compile.weights.checkpoint import Entry
from s24compile.weights.operand_request import WeightLayout
from s24compile.weights.parameter_map import ParameterMap
from s24compile.weights.places import Places
from s24compile.weights.schedule import Phase
from s24compile.weights.sharding import local, master_of, shape_of, shard_of
from s24compile.weights.sparse_weight import SparseWeight


class Load:
    """One call of load_state_dict, whose entries are taken over one by one, as their weights become sparse."""

    def __init__(self, fingerprint: str = "") -> None:
        self._taken: list[tuple[weakref.ref[SparseWeight], int, Entry]] = []
        self.fingerprint = fingerprint
        """Of the whole state, see `weights/agreement.py`."""
        self.agreed = not fingerprint
        """Whether the other ranks are known to have loaded the same."""
        self.warned = False
        """Whether it has been said that some of it belongs to weights that train dense."""

    def take_over(self, weight: SparseWeight, entry: Entry) -> None:
        """Restores a weight from its entry."""
        fresh = weight.entry()
        weight.restore(entry)
        weight.load = self
        self._taken.append((weakref.ref(weight), weight.steps, fresh))

    def undo(self) -> None:
        """Starts the weights anew that were restored so far, but for those that an optimizer has stepped since."""
        for ref, steps, fresh in self._taken:
            weight = ref()
            if weight is not None and weight.steps == steps:
                weight.restore(fresh)
        self._taken.clear()


@dataclasses.dataclass
class Told:
    """What was said about a parameter before anybody knew with which options it is sparse."""

    phase: Phase | None = None
    decay: float | None = None
    entry: Entry | None = None
    left_out: bool = False
    """A checkpoint of this model was loaded, and had no entry for this parameter."""
    load: Load | None = None
    """The loading that `entry` or `left_out` comes from."""
    became: SparseWeight | None = None
    """The weight that it was told, once the options were known."""


State = SparseWeight | Told
WEIGHTS: ParameterMap[SparseWeight] = ParameterMap()
TOLD: ParameterMap[Told] = ParameterMap()
PLACES: Places[State] = Places()


def sparse_weight(given: Parameter, config: Config, name: str, layout: WeightLayout) -> SparseWeight:
    """The state of a parameter that arrives at a graph, made at the first request. It is its master's.

    Raises:
        ConflictError: the parameter is sparse already with options that mean another training.
        CheckpointError: state was loaded for this model that does not fit, now that the options are known.
    """
    parameter = cast(Parameter, master_of(given))
    weight = WEIGHTS.get(parameter)
    if weight is not None:
        if weight.config is not config or weight.layout != layout:
            _check_agreement(weight, config, layout)
        weight.shard = shard_of(given)
        return weight
    told = TOLD.get(parameter)
    left = PLACES.left_for(parameter, given) if told is None else None
    if left is not None and hand_over(left, parameter, converted=True):
        return sparse_weight(given, config, name, layout)
    weight = SparseWeight(parameter, config, name, layout, tuple(local(given).shape), shard_of(given))
    if not training_of(parameter):
        _follow_original(weight)
    if told is not None:
        _tell(weight, told)
        told.became = weight
        TOLD.pop(parameter)
    _follow_replaced_parameters()
    WEIGHTS.set(parameter, weight)
    return weight


def is_dense(parameters: Iterable[Tensor]) -> bool:
    """Whether any of these parameters trains dense at the next forward. Unknown parameters: what set_phase said."""
    for parameter in parameters:
        weight = WEIGHTS.get(parameter)
        if weight is None:
            told = TOLD.get(parameter)
            if told is not None and told.phase == "dense":
                return True
        elif weight.phase == "dense":
            return True
    return False


def told_about(parameter: Tensor) -> Told:
    """The note of a parameter that has no state yet, made at the first request."""
    told = TOLD.get(parameter)
    if told is None:
        told = Told()
        TOLD.set(parameter, told)
    return told


_TRAINING_OPTIONS = ("recipe", "decay", "mask_interval", "sparse_from", "dense_from", "freshness", "gradient")
"""What two graphs of one weight must agree about: its state, and the gradients that it is trained with."""


def _training_options(config: Config, layout: WeightLayout) -> dict[str, object]:
    given = {option: getattr(config, option) for option in _TRAINING_OPTIONS}
    dx = recipe_of(config.recipe).dx_for(config.input_gradient)
    # "auto" is another word for the recipe's own, and the only one where that is no option.
    return given | {"input_gradient": "auto" if dx == "sparse" else dx, "layout": layout}


def _check_agreement(weight: SparseWeight, config: Config, layout: WeightLayout) -> None:
    old, new = _training_options(weight.config, weight.layout), _training_options(config, layout)
    differing = [option for option in old if old[option] != new[option]]
    if differing:
        raise ConflictError(
            name=weight.name,
            old=", ".join(f"{option}={old[option]!r}" for option in differing),
            new=", ".join(f"{option}={new[option]!r}" for option in differing),
            accepted="a weight has one training state; use the same options wherever it is compiled, or train a copy "
            "(copy.deepcopy(model)) with the others",
        )


def _tell(weight: SparseWeight, told: Told) -> None:
    problem = _problem_of(weight, told)
    if problem is not None:
        if told.load is not None:
            told.load.undo()
        raise problem
    if told.phase is not None:
        weight.ask_phase(told.phase)
    if told.entry is not None and told.load is not None:
        told.load.take_over(weight, told.entry)
        if told.phase is not None:  # asked for after loading, which would have cleared it
            weight.ask_phase(told.phase)
    if told.decay is not None:
        weight.decay = told.decay


def _problem_of(weight: SparseWeight, told: Told) -> CheckpointError | None:
    if told.left_out:
        return CheckpointError(
            found=f"it has no entry for {weight.name!r}, which is sparse now",
            accepted="compile with the options (targets, include, exclude) that the state was saved with",
        )
    problem = None if told.entry is None else weight.problem_of(told.entry)
    if problem is None:
        return None
    return CheckpointError(
        found=f"weight {weight.name!r}: {problem}", accepted="load the state that belongs to this model and recipe"
    )


def hand_over(state: State, new: Parameter, *, converted: bool) -> bool:
    """Gives a Parameter the state of the one that it has replaced.

    Args:
        converted: it is made of that one (`.to()`), not given in its place.

    Returns:
        Whether it has taken it: not if it has a state of its own, or another shape.
    """
    if WEIGHTS.get(new) is not None or TOLD.get(new) is not None:
        return False
    if isinstance(state, Told) and state.became is not None:
        state = state.became
    if isinstance(state, Told):
        entry = state.entry
        if entry is not None and tuple(entry["shape"]) != shape_of(new):
            return False
        TOLD.set(new, dataclasses.replace(state))
        return True
    if state.shape != shape_of(new):
        return False
    heir = SparseWeight(new, state.config, state.name, state.layout, state.shape)
    heir.inherit(state, new, converted=converted)
    WEIGHTS.set(new, heir)
    return True


def state_of(parameter: Tensor) -> State | None:
    """What is known of a Parameter."""
    return WEIGHTS.get(parameter) or TOLD.get(parameter)


def training_of(parameter: Tensor) -> bool:
    """Whether a forward that begins now trains the parameter: it is with gradients, and the parameter takes one."""
    return torch.is_grad_enabled() and parameter.requires_grad


def _follow_original(weight: SparseWeight) -> None:
    """Lets a weight that is met in an evaluation start at the step of the trained weight that it is a copy of.

    Averages of a model are copies, which no optimizer holds. They stand under the same name, which AveragedModel
    prefixes.
    """
    if not weight.has_phases:
        return
    for other in WEIGHTS.values():
        same = weight.name == other.name or weight.name.endswith(f".{other.name}")
        if same and other.ever_held and other.shape == weight.shape and other.phases == weight.phases:
            weight.follow(other)
            return


def _inherit(module: Module, name: str, new: Parameter) -> None:
    """When a module's Parameter is replaced, the new one starts with the old one's masks and counters."""
    old = module._parameters.get(name)
    # Most parameters are no weights of ours; of those, lazy ones have no shape to ask for.
    state = None if old is None or old is new else state_of(old)
    if state is not None and old is not None and old.shape == new.shape:
        hand_over(state, new, converted=False)


@functools.cache
def _follow_replaced_parameters() -> None:
    torch.nn.modules.module.register_module_parameter_registration_hook(_inherit)
