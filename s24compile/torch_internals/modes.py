"""The modes of Inductor. Apart from `compilers`, because options are checked before anything of Inductor is needed."""

from __future__ import annotations

from typing import Any

from s24compile.torch_internals.part import Part, needed, part_of

PARTS = (Part("torch._inductor.list_mode_options", "`Config.mode` stands for nothing"),)


def inductor_modes() -> dict[str, dict[str, Any]]:
    """Name of each mode of Inductor -> the settings that it stands for."""
    with needed:
        import torch._inductor

    return {"default": {}, **part_of(torch._inductor, "list_mode_options")()}
