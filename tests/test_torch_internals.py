"""The checklist of an upgrade of torch: what of its private parts is gone, and that nothing else touches any."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
import torch

from s24compile.torch_internals.part import Part, TorchPartError, needed, part_of
from tests.private_torch import private_parts
from tests.test_package import PACKAGE, imports, modules, within

HOME = "torch_internals"
LISTS = sorted(path.stem for path in (PACKAGE / HOME).glob("*.py") if path.stem not in ("__init__", "part"))
PARTS: list[tuple[str, Part]] = [
    (name, part) for name in LISTS for part in importlib.import_module(f"s24compile.{HOME}.{name}").PARTS
]


def users_of(module: str) -> str:
    """The modules of the package that import one of torch_internals."""
    wanted = f"s24compile.{HOME}.{module}"
    return ", ".join(name for name, tree in modules() if any(within(i, wanted) for i in imports(tree)))


@pytest.mark.parametrize(("module", "part"), PARTS, ids=[part.name for _, part in PARTS])
def test_find_in_this_torch_what_is_listed(module: str, part: Part) -> None:
    if part.on_cuda and torch.version.cuda is None:
        pytest.skip("torch is built for CPUs")
    version = re.match(r"\d+\.\d+", torch.__version__)
    if part.seen == ("2.13",) and version is not None and version[0] < "2.13":
        pytest.skip("this torch is older than the part")
    assert part.is_here(), (
        f"torch {torch.__version__} has no {part.name} (seen in {' and '.join(part.seen)}); without it {part.without}. "
        f"Mend s24compile/{HOME}/{module}.py, which {users_of(module)} use"
    )


def test_touch_private_parts_of_torch_in_one_place_alone() -> None:
    others = [(name, tree) for name, tree in modules() if not within(name, HOME)]
    known = [name for _, part in PARTS for name in part.name.split(".") if name not in ("_operator",)]
    found = [f"{place}: {name}" for place, name in private_parts(others, known)]
    assert not found, (
        f"private parts of torch outside of s24compile/{HOME}: {'; '.join(found)}. Import from its modules what is "
        "there already; else add a function there that says what it is for, and the name to PARTS of that module. A "
        "name of another library goes into the list of tests/private_torch.py"
    )


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from torch._ops import OpOverload", "torch._ops.OpOverload"),
        ("import torch._inductor.config as c", "torch._inductor.config"),
        ("import torch\ntorch._dynamo.reset()", "torch._dynamo.reset"),
        ("def f(op): return op._schema.name", "op._schema.name"),
        ("def f(module): return getattr(module, '_orig_mod', module)", "'_orig_mod'"),
        ("class A:\n    def f(self, x):\n        self._version = 1\n        return x._version", "x._version"),
    ],
)
def test_notice_each_way_to_reach_a_private_part(code: str, found: str) -> None:
    assert [name for _, name in private_parts([("kernels.new", ast.parse(code))], ["torch.Tensor._version"])] == [found]


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n    def __init__(self):\n        self._own = 1\ndef f(a): return a._own",
        "import torch\ntorch._foreach_mul_([], 2); torch._check(True)",
        "import sys\nsys._getframe(1)",
    ],
)
def test_leave_alone_what_is_documented_or_not_of_torch(code: str) -> None:
    assert list(private_parts([("kernels.new", ast.parse(code))], [])) == []


def test_say_which_torch_is_needed_where_a_part_is_gone() -> None:
    with pytest.raises(TorchPartError, match=r"does not have: .*'_gone'.* torch 2\.11 to 2\.13: install one of these"):
        part_of(torch, "_gone")
    with pytest.raises(TorchPartError, match=r"No module named 'torch\._gone'"), needed:
        importlib.import_module("torch._gone")
    assert not Part("torch._C._gone", "nothing").is_here()


def test_keep_no_part_that_nobody_uses() -> None:
    unused = [name for name in LISTS if not users_of(name)]
    assert not unused, f"no module imports {unused}"
