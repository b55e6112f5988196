"""What must hold of every feed-forward layer, however it is written: numbers, gradients, and a row that is true.

S24_EXAMPLES=1000 tries as many that nobody has tried before; otherwise the same few each time.
"""

from __future__ import annotations

import os

import hypothesis
import torch
from hypothesis import strategies

from s24compile.config import Config
from s24compile.report import Site
from tests.masked import masked_call
from tests.passes.harness import Capture, check_masked, input_of, train_step
from tests.passes.random_ffns import TIES, Draft, Model, drafts

EXAMPLES = int(os.environ.get("S24_EXAMPLES", "0"))
CHECKS = hypothesis.settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


TARGETS = {
    "ffn": Config(),
    "down": Config(targets="down"),
    "linear": Config(targets="linear"),
    "some": Config(exclude=(r"layers\.0\.(up|gate)", r"layers\.1\.down")),
}


@CHECKS
@hypothesis.given(
    written=strategies.lists(drafts(), min_size=2, max_size=3).map(tuple),
    tie=strategies.sampled_from(("", "", *TIES)),
    targets=strategies.sampled_from(("ffn", *TARGETS)),
    dynamic=strategies.sampled_from((None, None, True)),
    how=strategies.sampled_from(("train", "train", "evaluate", "autocast")),
)
def test_compute_what_is_written_and_say_so(written, tie, targets, dynamic, how):
    check_random(written, tie, TARGETS[targets], dynamic, how)


def check_random(written: tuple[Draft, ...], tie: str, config: Config, dynamic: bool | None, how: str) -> None:
    torch.manual_seed(0)
    model, capture, x = Model(written, tie), Capture(config=config), input_of(dtype=torch.float64)
    plain = model.without_checkpoints()
    if how == "train":
        reject_what_eager_refuses(plain, x)
        # fp64: what is left are the digits to which spellings round their constants, magnified by the layers.
        check_masked(model, capture, x, reference=plain, rtol=1e-4, dynamic=dynamic)
    elif how == "autocast":
        model.float()
        with torch.autocast("cpu", torch.bfloat16):
            reject_what_eager_refuses(plain, x.float())
            check_output(model, plain, capture, x.float(), tolerance=2**-4, dynamic=dynamic)
    else:
        with torch.no_grad():
            check_output(model, model, capture, x, tolerance=1e-4, dynamic=dynamic)
    weights = {name for name, p in model.named_parameters() if p.dim() == 2}
    outside = {name for rewrite in capture.rewrites for name in rewrite.outside}
    assert weights <= outside.union(*(site.weights for site in capture.sites))
    assert not outside or config.targets != "linear"
    for site in capture.sites:
        assert_true(site, set(capture.masks))


def check_output(
    model: Model, plain: Model, capture: Capture, x: torch.Tensor, tolerance: float, dynamic: bool | None
) -> None:
    """Of numbers of about 1: a layer norm makes them."""
    torch._dynamo.reset()
    y = torch.compile(model, backend=capture, dynamic=dynamic)(x)
    expected = masked_call(plain, capture.masks, x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.0, atol=tolerance * (1.0 + expected.abs().max().item()))


def reject_what_eager_refuses(model: Model, x: torch.Tensor) -> None:
    """A tensor that was written to, and whose value the backward needs; numbers that are none."""
    try:
        _, dx = train_step(model, x.detach().requires_grad_())
        hypothesis.assume(bool(dx.isfinite().all()))
    except RuntimeError as error:
        hypothesis.event(f"eager refuses: {str(error)[:40]}")
        hypothesis.reject()
    finally:
        model.zero_grad()


def assert_true(site: Site, sparse: set[str]) -> None:
    """A row says what became of its linears."""
    assert (site.status == "rewritten") == (site.linears > 0), site
    assert site.linears or site.reason, site
    if site.linears < len(site.weights):
        assert site.reason, site
    for name in site.weights:
        told_dense = site.status == "refused" or "dense" in site.reason
        assert name in sparse or told_dense, (name, site)
