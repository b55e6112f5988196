"""Makes a checkout usable from an interpreter that is not ours: `make demo PYTHON=/path/to/python`.

Nothing is installed. What the targets import must be there; the entry point that lets torch.compile find "s24" is
read by importlib.metadata from `s24compile.egg-info`, which setuptools writes beside the package.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

NEEDS = {
    "demo": ("torch", "typer", "rich", "matplotlib"),
    "bench": ("torch", "typer", "rich"),
    "test": ("torch", "typer", "rich", "matplotlib", "pytest", "xdist", "expecttest", "hypothesis"),
    "test-gpu": ("torch", "triton", "typer", "rich", "matplotlib", "pytest", "xdist", "expecttest", "hypothesis"),
    "lint": ("ruff", "mypy"),
    "format": ("ruff",),
    "docs": ("torch", "pytest", "matplotlib", "material", "mkdocstrings"),
}
INSTALLED_AS = {"xdist": "pytest-xdist", "material": "mkdocs-material"}


def main(goals: list[str]) -> int:
    """Checks the imports of the make targets `goals` and registers the entry point; 0 when all is well."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the interpreter is whatever the user named
        return refuse(f"{sys.executable} is Python {sys.version.split()[0]}; s24compile needs 3.11 or newer")
    wanted = {module for goal in goals for module in NEEDS.get(goal, ())}
    missing = sorted(INSTALLED_AS.get(m, m) for m in wanted if importlib.util.find_spec(m) is None)
    if missing:
        return refuse(f"{sys.executable} lacks {', '.join(missing)}; install them there or leave PYTHON= away")
    registered = importlib.metadata.entry_points(group="torch_dynamo_backends")
    if "s24" not in registered.names:
        # In a clean environment, so that a stale PYTHONPATH entry cannot shadow setuptools' own modules.
        command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "egg_info"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}, check=False
        )
        if done.returncode:
            return refuse(f"could not register the entry point with setuptools: {done.stderr.strip()[-400:]}")
    return 0


def refuse(sentence: str) -> int:
    """Prints one sentence to stderr and returns the exit status 1."""
    sys.stderr.write(sentence + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
