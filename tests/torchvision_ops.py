"""Lets torchvision be imported where its own kernels do not load: a CUDA build of it beside a CPU build of torch.

timm and, wherever torchvision is installed, transformers and torchmetrics import it. What fails then is not a call of
its kernels (no model here makes one) but `import torchvision`, which registers shape functions for two operators that
only its C++ library defines. So these get the schemas of that library, and no kernels: to call one is still an error.

    python -m tests.torchvision_ops FILE [ARGUMENT ...]    # runs FILE that way
"""

from __future__ import annotations

import functools
import importlib.util
import runpy
import sys
from pathlib import Path

import torch

SCHEMAS = [f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")]


@functools.cache  # the Library must live as long as the process, and may define a name only once
def define_missing_operators() -> torch.library.Library | None:
    """Defines the two operators, unless torchvision is absent or brings them. Does not import torchvision."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)  # as torchvision itself will once more, which does nothing
    except OSError:
        pass  # which libraries are missing is of no interest: what counts is below
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


if __name__ == "__main__":
    define_missing_operators()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
