"""The cost model: refuses with the measured number, asks nothing of a CPU, and can be overruled."""

import pytest
import torch
from torch import nn

import s24compile
from s24compile.kernels.target import FAMILIES, Target
from s24compile.layer import Layer
from s24compile.lowering.cost import HOPPER, refuse_slow

H100 = Target("cuda", (9, 0), FAMILIES)
SMALL = Layer(768, 3072, False, 16384, torch.bfloat16)
LARGE = Layer(4096, 14336, True, 16384, torch.bfloat16)


def test_refuse_what_was_measured_slower_and_say_the_number():
    sentence = refuse_slow(SMALL, H100, 1.0)
    assert sentence is not None
    assert f"{HOPPER[0].speedup:.2f} times dense" in sentence
    assert "D 768, F 3072, 16384 tokens" in sentence
    assert "min_speedup=0 forces it" in sentence


def test_take_what_was_measured_faster_up_to_the_factor_asked_for():
    assert refuse_slow(LARGE, H100, 1.0) is None
    assert refuse_slow(LARGE, H100, 1.3) is not None


@pytest.mark.parametrize("layer", [SMALL, LARGE])
def test_force_and_leave_the_cpu_alone(layer):
    assert refuse_slow(layer, H100, 0) is None
    assert refuse_slow(layer, Target(), 1.0) is None


def test_refuse_what_has_no_kernel():
    assert "sm_80" in str(refuse_slow(LARGE, Target("cuda", (8, 0), FAMILIES), 1.0))
    wide = Layer(4096, 14336, True, 16384, torch.float32)
    assert "float32" in str(refuse_slow(wide, H100, 1.0))


def test_show_the_refusal_where_the_options_fake_a_hopper():
    layer = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
    fast = torch.compile(layer, backend="s24", options={"target": "sm_90", "inner": "eager"})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = s24compile.explain(fast, torch.randn(4, 768))
    (site,) = report.refused
    assert "times dense speed" in site.reason
    assert report.target == "sm_90"


def test_warn_where_a_whole_graph_would_stay_dense(caplog):
    layer = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
    fast = torch.compile(layer, backend="s24", options={"target": "sm_90", "inner": "eager"})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast(torch.randn(4, 768))
    (message,) = [r.getMessage() for r in caplog.records if r.name == "s24compile" and r.levelname == "WARNING"]
    assert "no layer of this graph trains 2:4" in message
    assert "min_speedup=0" in message
