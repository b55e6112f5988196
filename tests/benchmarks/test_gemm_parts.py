"""What gemm.py checks kernels of eight bits with, on a CPU: the references in place of kernels; and its tuned table."""

import json

import pytest
import torch

from benchmarks.gemm_parts import narrow, narrow_check, tune
from benchmarks.gemm_parts.shapes import Shape
from s24compile.kernels import providers
from s24compile.kernels.gemm.cutlass.instantiations import DEFAULT, EXACT, Kernel
from s24compile.kernels.gemm.cutlass.training_sets import narrow_training_set
from s24compile.kernels.gemm.cutlass.tuned import row_of

SIZES = ((16, 8, 32), (12, 7, 20), (5, 9, 6))
KERNELS = {f"{k.signature.epilogue} {k.signature.dtype} {k.signature.d}": k for k in narrow_training_set()}


@pytest.fixture
def on_references(monkeypatch):
    """The kernels' place taken by the references, which are called without a choice."""
    for op in narrow_check.scaled.PROVIDERS:
        run = providers.find(op, "reference").run
        monkeypatch.setattr(narrow_check.scaled, op, lambda *args, run=run: run(*args[:-1]))


@pytest.mark.parametrize("name", KERNELS)
def test_find_no_fault_in_a_right_result_of_any_epilogue(name, on_references):
    torch.manual_seed(0)
    checks = [check for size in SIZES for check in narrow_check.check_narrow(KERNELS[name], size, "cpu")]
    assert len({check.kernel for check in checks}) >= (1 if KERNELS[name].signature.act == "" else 2)
    for check in checks:
        assert check.passes, check


def test_find_a_wrong_scale(on_references, monkeypatch):
    run = narrow_check.scaled.scaled_mm
    monkeypatch.setattr(
        narrow_check.scaled, "scaled_mm", lambda pair, *args: run(pair._replace(descale_b=pair.descale_a), *args)
    )
    kernel = next(kernel for kernel in narrow_training_set() if kernel.signature.epilogue == "plain")
    assert not any(check.passes for check in narrow_check.check_narrow(kernel, SIZES[0], "cpu"))


def test_sweep_every_signature_of_training_in_the_largest_tile():
    swept = narrow.to_sweep()
    assert len(set(swept)) == len(swept)
    rows = {row_of(kernel.signature) for kernel in swept}
    assert rows == {"fp8 plain", "fp8 act", "fp8 dact", "fp8 glu", "fp8 dglu"}
    for signature in {kernel.signature for kernel in swept}:
        assert Kernel(signature, DEFAULT) in swept
        assert Kernel(signature, EXACT) not in swept


def test_keep_what_another_sweep_has_measured(tmp_path):
    table, machine = tmp_path / "tuned.json", {"gpu": "one"}
    a, b = Shape("", "fw1", 64, 32, 16), Shape("", "fw1", 128, 32, 16)
    tune.write_table(table, [tune.Tuned(a, {"x": 3.0}, "plain"), tune.Tuned(b, {"y": 4.0}, "plain")], machine)
    tune.write_table(table, [tune.Tuned(a, {"z": 1.0, "w": 2.0}, "fp8 plain")], {"gpu": "two"})
    tune.write_table(table, [tune.Tuned(b, {"v": 2.5}, "plain")], machine)
    found = json.loads(table.read_text())
    assert (found["machine"], found["fp8"]["machine"]) == (machine, {"gpu": "two"})
    entries = [(entry["epilogue"], entry["shape"][0], entry["choice"], entry["us"]) for entry in found["entries"]]
    assert entries == [("plain", 64, "x", 3.0), ("plain", 128, "v", 2.5), ("fp8 plain", 64, "z", 1.0)]
