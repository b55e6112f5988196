"""The state of all random generators, to be put back after a look that must leave no trace. A leaf."""

from __future__ import annotations

import random
import sys

import torch


class RandomState:
    """The generators of Python, NumPy (where it is loaded) and torch, on all devices, as they are now."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        numpy = sys.modules.get("numpy")
        self._numpy = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Makes them draw again what they drew since."""
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
