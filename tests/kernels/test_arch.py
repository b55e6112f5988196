"""One row an architecture: what it names exists, and what no row knows runs the reference and says so."""

import importlib.util
import logging
import re
from pathlib import Path

import pytest
import torch

import s24compile
from s24compile.kernels import ops, providers, target
from s24compile.kernels.arch import ADA, AMPERE, CPU, HOPPER, KNOWN, PROVIDERS, UNKNOWN, arch_of
from s24compile.kernels.format import FORMATS
from s24compile.kernels.target import Target

ROWS = [CPU, *KNOWN, UNKNOWN]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_name_formats_and_providers_that_exist(row):
    assert row.format in FORMATS
    assert row.gated_format in ("", *(name for name, format in FORMATS.items() if format.interleaved))
    assert row.stand_in in ("", *row.providers)
    assert row.providers[-1] == "reference"
    assert len(set(row.providers)) == len(row.providers)
    for name in row.providers:
        modules = {f"s24compile.kernels.{folder}.{name}" for folder in providers.FOLDER_OF.values()}
        assert any(importlib.util.find_spec(module) for module in modules), name


def test_have_a_row_for_every_provider():
    assert set(PROVIDERS) == {name for row in KNOWN for name in row.providers}


@pytest.mark.parametrize(
    ("capability", "row"),
    [(None, CPU), ((9, 0), HOPPER), ((8, 0), AMPERE), ((8, 6), AMPERE), ((8, 9), ADA)]
    + [(capability, UNKNOWN) for capability in ((7, 5), (9, 1), (10, 0), (12, 0))],
    ids=str,
)
def test_find_the_row_of_a_capability(capability, row):
    assert arch_of(capability) is row


@pytest.mark.parametrize("name", ["sm_100", "sm_120", "sm_75"])
def test_run_the_reference_on_a_gpu_that_no_row_knows(name):
    unknown = Target.parse(name)
    assert set(providers.serving(unknown).values()) == {"reference"}
    assert unknown.format == "plain"
    assert f"no 2:4 kernels for {name}, only for Hopper (sm_90), Ada (sm_89), Ampere (sm_8x)" in unknown.unknown
    b = torch.randn(32, 8)
    values, metadata = ops.pack(torch.eye(32), None, torch.float32, unknown.format)
    choice = providers.choose("mm", values, metadata, 32, 32, "plain", b, None, "row", torch.float32, target=unknown)
    assert choice.refused["cutlass"] == f"its kernels are for Hopper (sm_90), this is {name}"
    # Formats that other kernels write are refused by none of them there: they are not asked.
    assert set(choice.refused) == set(PROVIDERS) - {"reference"}
    assert torch.equal(ops.mm(values, metadata, 32, 32, "plain", b, None, "row", torch.float32), b)


@pytest.mark.parametrize(("capability", "warned"), [((10, 0), True), ((9, 0), False)])
def test_say_once_that_no_kernel_is_for_the_gpu_at_hand(capability, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    target._cuda_target.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="s24compile"):
            found = [Target.detect(torch.device("cuda", 0)) for _ in range(2)]
    finally:
        target._cuda_target.cache_clear()
    assert found[0].capability == capability
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"cuda:0: {found[0].unknown}"] * warned


def test_ask_no_module_but_the_table_for_a_number_of_compute_capability():
    package, compared = Path(s24compile.__file__).parent, re.compile(r"[!=<>] \((7|8|9|1\d), \d\)|(arch|capability)\[")
    asking = {path.name for path in package.rglob("*.py") if compared.search(path.read_text())}
    assert asking == {"target.py"}, "facts of an architecture are in its row of arch.py; target.py prints the number"
