"""The cost model: refuses with the measured number, asks nothing of a CPU, and can be overruled."""

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
import torch
from torch import nn

import s24compile
from s24compile.graphs.layer import Layer
from s24compile.kernels.costs import H100
from s24compile.kernels.target import Target
from s24compile.lowering.cost import estimate_us, layer_of, mvue_from, refuse_slow

HOPPER = Target.parse("sm_90")
ROWS = tuple(row for row in H100.layers if not row.state)
SMALL = Layer(768, 3072, False, 16384, torch.bfloat16)
LARGE = Layer(4096, 14336, True, 16384, torch.bfloat16)


def test_refuse_what_asks_for_more_than_was_measured_and_say_the_number():
    sentence = refuse_slow(SMALL, HOPPER, 1.5)
    assert sentence is not None
    assert f"{ROWS[0].dense_us / ROWS[0].sparse_us:.2f} times dense" in sentence
    assert "D 768, F 3072, 16384 tokens" in sentence
    assert "min_speedup=0 forces it" in sentence


@pytest.mark.parametrize("row", ROWS)
def test_agree_with_every_measured_row(row):
    ratio = row.dense_us / row.sparse_us
    assert estimate_us(layer_of(row), row, H100) == pytest.approx((row.dense_us, row.sparse_us))
    assert refuse_slow(layer_of(row), HOPPER, 0.99 * ratio) is None
    assert refuse_slow(layer_of(row), HOPPER, 1.01 * ratio) is not None


@pytest.mark.parametrize("row", ROWS)
def test_predict_a_measured_row_from_the_others_within_a_sixth(row):
    """What the roofline is for: layers that nobody measured."""
    others = [other for other in ROWS if other is not row and other.gated == row.gated]
    nearest = min(others, key=lambda other: abs(other.width - row.width))
    predicted = estimate_us(layer_of(row), nearest, H100)
    ratio = predicted[0] / predicted[1]
    assert ratio == pytest.approx(row.dense_us / row.sparse_us, rel=1 / 6)


def speedup(row, **of_layer):
    dense, sparse = estimate_us(dataclasses.replace(layer_of(row), **of_layer), row, H100)
    return dense / sparse


def test_predict_exact_weight_gradients_within_a_tenth():
    rows = json.loads((RESULTS / "ffn.json").read_text())["rows"]
    exact = {(row["width"], row["hidden"]): row["ratios"].get("s24 dense dW") for row in rows}
    measured = [row for row in ROWS if exact[row.width, row.hidden]]
    assert len(measured) >= 5
    for row in measured:
        expected = pytest.approx(exact[row.width, row.hidden], rel=0.1)
        assert speedup(row, dw=("dense", "dense")) == expected, row


EXACT = {"dw": ("dense", "dense")}
OPTIONS = {
    "s24 down": {"first": False, **EXACT}, "s24 up": {"last": False, **EXACT}, "s24 ste": {"dx": "dense", **EXACT},
    "s24 ste mvue-dx": {"dx": "mvue"},
}  # fmt: skip


def test_predict_layers_under_other_options_within_an_eighth():
    compared = 0
    for measured in json.loads((RESULTS / "ffn_options.json").read_text())["rows"]:
        (row,) = [r for r in ROWS if (r.width, r.hidden) == (measured["width"], measured["hidden"])]
        for name in OPTIONS.keys() & measured["ratios"].keys():
            assert speedup(row, **OPTIONS[name]) == pytest.approx(measured["ratios"][name], rel=1 / 8), name
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("row", ROWS)
def test_expect_less_of_a_layer_that_is_2_to_4_in_part(row):
    whole, exact = speedup(row), speedup(row, dw=("dense", "dense"))
    for part in ({"first": False}, {"last": False}):
        assert 1 < speedup(row, **part) < whole
        assert 0.99 < speedup(row, **part, dw=("dense", "dense")) < exact
    assert speedup(row, dx="dense") < speedup(row, dx="mvue") < whole, "row-wise masks"


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def measured_gemms():
    return json.loads((RESULTS / "gemm.json").read_text())["shapes"]


def rates_of(shapes):
    """Geometric means of cuBLAS's and our dense-equivalent operations per microsecond."""
    dense = [2 * s["m"] * s["n"] * s["k"] / (s["us"] * s["speedup"]) for s in shapes]
    ours = [2 * s["m"] * s["n"] * s["k"] / s["us"] for s in shapes]
    return statistics.geometric_mean(dense), statistics.geometric_mean(ours)


def test_reckon_with_the_rates_that_were_measured():
    many = [s for s in measured_gemms() if s["k" if s["role"].startswith("dW") else "n"] == 16384]
    assert rates_of(many) == pytest.approx((H100.dense_flops_per_us, H100.sparse_flops_per_us), rel=1e-3)
    narrow = [s for s in many if s["role"].startswith("dW") and "gpt2" in s["model"]]
    assert rates_of(narrow) == pytest.approx((H100.dw_dense_flops_per_us, H100.dw_sparse_flops_per_us), rel=1e-3)
    rows = json.loads((RESULTS / "memory_kernels.json").read_text())["rows"]
    (pack,) = [row for row in rows if (row["name"], row["shape"]) == ("mvue_pack, row-major", "16384x3072")]
    assert pack["bytes"] / pack["us"] == pytest.approx(H100.mvue_bytes_per_us, rel=1e-2)


def test_prune_gradients_where_the_measured_gemms_win_back_what_it_costs():
    clear = {}
    for shape in [shape for shape in measured_gemms() if shape["role"].startswith("dW")]:
        features, inputs, tokens = shape["m"], shape["n"], shape["k"]
        dense = shape["us"] * shape["speedup"]
        saved = dense - shape["us"] - 3.125 * tokens * features / H100.mvue_bytes_per_us
        if abs(saved) > 0.02 * dense:  # the others are as good one way as the other
            clear[inputs, features, tokens] = saved > 0
    assert {inputs for inputs, _, _ in clear} >= {768, 1024, 1600, 3072, 4096}
    assert clear == {key: key[0] >= H100.mvue_from for key in clear}
    assert 1600 < H100.mvue_from <= 3072, "between those two nothing was measured: the rates decide"


def test_prune_alike_on_every_machine():
    assert {mvue_from(Target.parse(name)) for name in ("cpu", "sm_90", "sm_80", "sm_100")} == {H100.mvue_from}


def test_refuse_few_tokens_unless_launches_cost_nothing():
    few = dataclasses.replace(SMALL, tokens=2048)
    assert "the GPU waits for the host" in str(refuse_slow(few, HOPPER, 1.0))
    assert refuse_slow(dataclasses.replace(few, tokens=8192), HOPPER, 1.0, "reduce-overhead") is None
    assert refuse_slow(dataclasses.replace(few, tokens=None), HOPPER, 1.0) is None


def test_gain_more_with_more_tokens():
    ratios = []
    for tokens in (64, 512, 4096, 32768):
        dense, sparse = estimate_us(dataclasses.replace(SMALL, tokens=tokens), ROWS[0], H100)
        ratios.append(dense / sparse)
    assert ratios == sorted(ratios)


@pytest.mark.parametrize("layer", [SMALL, LARGE])
def test_force_and_leave_the_cpu_alone(layer):
    assert refuse_slow(layer, HOPPER, 0) is None
    assert refuse_slow(layer, Target(), 1.0) is None


def test_refuse_what_has_no_kernel():
    assert "no 2:4 layer has been measured on sm_80" in str(refuse_slow(LARGE, Target.parse("sm_80"), 1.0))
    assert "no 2:4 kernels for sm_100, only for Hopper" in str(refuse_slow(LARGE, Target.parse("sm_100"), 1.0))
    wide = Layer(4096, 14336, True, 16384, torch.float32)
    assert "float32" in str(refuse_slow(wide, HOPPER, 1.0))


def test_show_the_refusal_where_the_options_fake_a_hopper():
    layer = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
    fast = torch.compile(layer, backend="s24", options={"target": "sm_90", "inner": "eager"})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = s24compile.explain(fast, torch.randn(4, 768))
    (site,) = report.refused
    assert "the GPU waits for the host" in site.reason
    assert report.target == "sm_90"


def test_warn_where_a_whole_graph_would_stay_dense(caplog):
    layer = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
    fast = torch.compile(layer, backend="s24", options={"target": "sm_90", "inner": "eager"})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast(torch.randn(4, 768))
    (message,) = [r.getMessage() for r in caplog.records if r.name == "s24compile" and r.levelname == "WARNING"]
    assert "no layer of this graph trains 2:4" in message
    assert "min_speedup=0" in message


def test_estimate_hidden_states_by_their_own_passes_where_none_was_measured():
    costs = dataclasses.replace(H100, layers=ROWS)
    for row in (row for row in ROWS if not row.gated):
        layer = dataclasses.replace(layer_of(row), state=True)
        dense, both = estimate_us(layer, row, costs)
        assert dense == pytest.approx(row.dense_us)
        _, one = estimate_us(dataclasses.replace(layer, dw=("mvue", "dense")), row, costs)
        _, none = estimate_us(dataclasses.replace(layer, dw=("dense", "dense")), row, costs)
        assert row.sparse_us < both < one < none, "four 2:4 products of six, three, two"
        assert both < dense


def test_say_where_a_2_4_hidden_state_was_not_measured():
    layer = dataclasses.replace(SMALL, state=True)
    measured = any(row.state for row in H100.layers)
    sentence = refuse_slow(layer, HOPPER, 2.0)
    assert sentence is not None
    assert ("with 2:4 weights instead of a 2:4 hidden state" in sentence) == (not measured)


def test_agree_with_every_measured_hidden_state():
    for row in (row for row in H100.layers if row.state):
        assert estimate_us(layer_of(row), row, H100) == pytest.approx((row.dense_us, row.sparse_us))
