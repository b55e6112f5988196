"""What Inductor's caches take our passes for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from s24compile.compiler import inner
from s24compile.kernels import providers
from s24compile.kernels.target import Target

PACKAGE = Path(inner.__file__).parents[1]


@pytest.mark.parametrize(
    "changed",
    [
        "__init__.py",  # the version
        "lowering/activation.py",
        "kernels/glu/reference.py",  # its body is what lowering puts into the graph
        "kernels/providers.py",
        "kernels/gemm/cutlass/tuned.json",
    ],
)
def test_lower_anew_what_a_changed_file_may_lower_differently(changed: str, tmp_path: Path) -> None:
    copy = tmp_path / "s24compile"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    before = inner._sources_hash(PACKAGE)
    assert inner._sources_hash(copy) == before
    inner._sources_hash.cache_clear()
    with (copy / changed).open("a") as file:
        file.write("\n")
    assert inner._sources_hash(copy) != before


def test_keep_the_identity_of_passes_within_a_process() -> None:
    first = inner.LoweringPass(Target())
    assert first.uuid() == inner.LoweringPass(Target()).uuid()
    assert first.uuid() != inner.LoweringPass(Target.parse("sm_90")).uuid()
    assert first.uuid() != inner.RecomputePass().uuid()


def test_lower_anew_where_only_one_kind_of_kernels_is_allowed() -> None:
    step = inner.LoweringPass(Target())
    before = step.uuid()
    with providers.only("reference"):
        within = step.uuid()
    assert before != within
    assert step.uuid() == before
