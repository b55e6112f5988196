"""The name "s24" for Hugging Face: accelerate, and with it transformers' Trainer, accept a closed list of backends."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import nn

from s24compile.errors import ModelError
from s24compile.torch_internals.compiled import is_compiled


def register_with_accelerate() -> None:
    """Makes accelerate accept backend="s24", in this process.

    After it, `TrainingArguments(torch_compile=True, torch_compile_backend="s24")` and
    `Accelerator(dynamo_backend="s24")` do what they say. With this backend accelerate compiles a model in place, as
    `model.compile` does: else Trainer would train a compiled wrapper, and evaluate the model in it, with all of W.

    It is not needed for `model.compile(backend="s24", ...)`, which accelerate leaves alone.

    Raises:
        ModelError: accelerate is not installed.
    """
    try:
        backends = importlib.import_module("accelerate.utils").DynamoBackend
        accelerator = importlib.import_module("accelerate").Accelerator
    except ModuleNotFoundError as error:
        raise ModelError(
            what="register_with_accelerate", found=f"no module named {error.name!r}", accepted="pip install accelerate"
        ) from None
    # An enum of names, each handed to torch.compile in lower case. Enums cannot be extended but from inside.
    if "S24" not in backends.__members__:
        member = str.__new__(backends, "S24")
        member._name_ = member._value_ = "S24"
        backends._member_map_["S24"] = backends._value2member_map_["S24"] = member
        backends._member_names_.append("S24")
    if not hasattr(accelerator.prepare_model, "s24_in_place"):
        accelerator.prepare_model = _compiling_in_place(accelerator.prepare_model, backends)


def _compiling_in_place(prepare_model: Any, backends: Any) -> Any:
    """`Accelerator.prepare_model`, which compiles by this backend in place, and by any other as it did."""

    @functools.wraps(prepare_model)
    def prepare(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plugin = self.state.dynamo_plugin
        if plugin.backend != backends.S24:
            return prepare_model(self, model, *args, **kwargs)
        plugin.backend = backends.NO
        try:
            prepared = prepare_model(self, model, *args, **kwargs)
        finally:
            plugin.backend = backends.S24
        if not is_compiled(model):
            _compile_in_place(model, plugin)
        return prepared

    prepare.s24_in_place = True  # type: ignore[attr-defined]
    return prepare


def _compile_in_place(model: nn.Module, plugin: Any) -> None:
    """What accelerate's options ask for: the whole model, or its repeated blocks one by one."""
    options = plugin.to_kwargs()
    if getattr(plugin, "use_regional_compilation", False):
        # Named for its first user; it compiles each block in place.
        importlib.import_module("accelerate.utils.other").compile_regions_deepspeed(model, **options)
    else:
        model.compile(**options)
