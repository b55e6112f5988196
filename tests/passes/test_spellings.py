"""Every spelling of the zoo: taken ones compute what masked dense computes, refused ones say why and stay dense."""

from __future__ import annotations

import pytest
import torch

from tests import ffns
from tests.ffn_lookalikes import NO_LAYER, REFUSED
from tests.passes.harness import Capture, check_masked, input_of


@pytest.mark.parametrize("name", ffns.TAKEN)
def test_take_every_spelling(name):
    layer = ffns.TAKEN[name]
    torch.manual_seed(0)
    model, capture = layer.make(), Capture()
    check_masked(model, capture, input_of())
    sites = [site for site in capture.sites if site.status == "rewritten"]
    assert [site.family for site in sites] == [layer.family], capture.sites
    assert capture.linears == layer.linears == sites[0].linears


@pytest.mark.parametrize("name", REFUSED)
def test_refuse_lookalikes_with_a_reason(name):
    layer = REFUSED[name]
    torch.manual_seed(0)
    model, capture = layer.make(), Capture()
    check_masked(model, capture, input_of())
    assert capture.linears == 0
    assert all(site.status == "refused" for site in capture.sites)
    if layer.reason:
        assert layer.reason in capture.sites[0].reason, capture.sites
        assert layer.family == capture.sites[0].family


@pytest.mark.parametrize("name", NO_LAYER)
def test_list_nothing_where_several_linears_are_no_layer(name):
    torch._dynamo.reset()
    capture = Capture()
    torch.compile(NO_LAYER[name](), backend=capture)(input_of())
    assert not capture.sites
