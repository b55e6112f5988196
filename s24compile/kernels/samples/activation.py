"""Sample inputs of the ops on hidden states that are sparse by themselves. T tokens, F hidden width."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from s24compile.kernels.activation import reference
from s24compile.kernels.samples.maker import FORMATS, Maker, Sample, Samples


def _coarse(x: Tensor) -> Tensor:
    """Values on a grid, so that sums of them are exact in any order."""
    return (4 * x).round() / 4


def _states(make: Maker) -> Iterator[tuple[str, Tensor, Tensor | None, str, float, str]]:
    for format in FORMATS:
        yield f"{format}, relu2", _coarse(make.normal(70, 48)), None, "relu2", 1.0, format
        yield f"{format}, relu, ties", make.grid(64, 64), None, "relu", 1.0, format
        yield f"{format}, dropout", _coarse(make.normal(20, 80)), make.normal(20, 80) > -0.5, "relu2", 1.25, format
        yield f"{format}, column-major", _coarse(make.normal(80, 37)).t(), None, "relu", 0.5, format
        yield f"{format}, strided", _coarse(make.normal(8, 40))[1:, 4:36], None, "relu2", 1.0, format
        yield f"{format}, no tokens", make.normal(0, 16), None, "relu2", 1.0, format


def _activation_pack(make: Maker) -> Iterator[Sample]:
    for note, *args in _states(make):
        yield Sample(note, tuple(args))


def _activation_backward_pack(make: Maker) -> Iterator[Sample]:
    for number, (note, z, keep, act, scale, format) in enumerate(_states(make)):
        values, metadata, _ = reference.activation_pack(z, keep, act, scale, format)
        dp = _coarse(make.normal(*z.shape[::-1]).t() if "column" in note else make.normal(*z.shape))
        wanted = number % 3 != 1, number % 3 != 2, number % 2 == 0
        yield Sample(note, (dp, values, metadata, *z.shape, format, act, scale, make.seed(), *wanted))


def _activation_layer(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        for up_layout, down_layout, dw, biased in (
            ("out_in", "out_in", "mvue", True),
            ("in_out", "in_out", "dense", False),
            ("", "in_out", "mvue", True),
        ):
            width, hidden = 24, 48
            x = make.normal(3, 7, width if up_layout else hidden).requires_grad_()
            up, down = make.normal(hidden, width), make.normal(width, hidden)
            up = (up if up_layout == "out_in" else up.t().contiguous()).requires_grad_()
            down = (down if down_layout == "out_in" else down.t().contiguous()).requires_grad_()
            first = (up, up.detach(), make.normal(hidden).requires_grad_() if biased else None)
            keep = make.normal(3, 7, hidden) > -0.5 if biased else None
            last = (down, down.detach(), make.normal(width).requires_grad_() if biased else None)
            options = "relu2" if biased else "relu", 1.25 if biased else 1.0, format
            yield Sample(
                f"{format}, up {up_layout or 'elsewhere'}, down {down_layout}, {dw}",
                (
                    x, *(first if up_layout else (None, None, None)), keep, *last, *options,
                    up_layout or "out_in", down_layout, dw, dw,
                ),
            )  # fmt: skip


SAMPLES: Samples = {
    "activation_pack": _activation_pack,
    "activation_backward_pack": _activation_backward_pack,
    "activation_layer": _activation_layer,
}
