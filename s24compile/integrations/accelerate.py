"""The name "s24" for Hugging Face: accelerate, and with it transformers' Trainer, accept a closed list of backends."""

from __future__ import annotations

import importlib

from s24compile.errors import ModelError


def register_with_accelerate() -> None:
    """Makes accelerate accept backend="s24", in this process.

    After it, `TrainingArguments(torch_compile=True, torch_compile_backend="s24")` and
    `Accelerator(dynamo_backend="s24")` do what they say. It is not needed for `model.compile(backend="s24", ...)`,
    which accelerate leaves alone.

    Raises:
        ModelError: accelerate is not installed.
    """
    try:
        backends = importlib.import_module("accelerate.utils").DynamoBackend
    except ModuleNotFoundError as error:
        raise ModelError(
            what="register_with_accelerate", found=f"no module named {error.name!r}", accepted="pip install accelerate"
        ) from None
    # An enum of names, each handed to torch.compile in lower case. Enums cannot be extended but from inside.
    if "S24" in backends.__members__:
        return
    member = str.__new__(backends, "S24")
    member._name_ = member._value_ = "S24"
    backends._member_map_["S24"] = backends._value2member_map_["S24"] = member
    backends._member_names_.append("S24")
