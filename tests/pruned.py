"""The oracle of recipe="activation": the same model with dense arithmetic on pruned hidden states, in plain PyTorch.

Every product with one of the given last projections gets its input cut to the two largest of each four neighbours. The
choice is constant to autograd, as it is in the layer, so gradients are those of gradient="dense". It knows nothing of
packing, graphs or kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PRODUCTS = {F.linear: 0, torch.matmul: 0, Tensor.matmul: 0, Tensor.__matmul__: 0, torch.addmm: 1}
"""Functions that multiply by a weight -> the place of what they multiply."""
VIEWS = {"to", "t", "T", "__get__", "transpose", "permute", "bfloat16", "half", "float", "mT"}


def pruned(h: Tensor) -> Tensor:
    """The two largest of each four of h >= 0; ties keep the lower index."""
    return h * torch.ops.s24.magnitude_mask(h.detach()).to(h.dtype)


class PrunedInputs(TorchFunctionMode):
    """Within the block, products with these weights get pruned inputs."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.known: dict[int, Any] = {id(weight): weight for weight in weights}
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = PRODUCTS.get(function)
        if place is not None and any(id(a) in self.known for a in (*args[place + 1 :], *kwargs.values())):
            self.count += 1
            if "input" in kwargs:
                kwargs["input"] = pruned(kwargs["input"])
            else:
                args = (*args[:place], pruned(args[place]), *args[place + 1 :])
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name in VIEWS and args and id(args[0]) in self.known and isinstance(result, Tensor):
            self.known[id(result)] = result  # held, so that no other tensor gets its id
        return result


def pruned_call(model: nn.Module, weights: Iterable[str], *args: Any, **kwargs: Any) -> Any:
    """`model(*args)` with the inputs of the last projections named in `weights` pruned; each must be met."""
    parameters = dict(model.named_parameters())
    mode = PrunedInputs(parameters[name] for name in weights)
    with mode:
        result = model(*args, **kwargs)
    assert mode.count, "no product with these weights was seen"
    return result
