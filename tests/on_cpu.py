"""The environment of commands that tests start: their output is checked, and their models are too small for a GPU."""

from __future__ import annotations

import os

ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
"""Hides GPUs, where the cost model would leave such small layers dense and kernels would be built for them first."""
