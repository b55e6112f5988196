"""What is trained: the recipes, their settings, and the dense controls, as rows of one table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from s24compile.config import Config
from s24compile.errors import OptionError
from s24compile.training.step_update import Denominator


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train the same model on the same batches."""

    name: str
    options: Mapping[str, Any] | None = None
    """Fields of s24compile.Config; None trains dense with Inductor."""
    hidden: float = 1.0
    """Hidden width of the feed-forward layers, as a share of the full one; above 8, the width itself."""
    head: float = 0.0
    """Share of the steps that is dense at the start."""
    tail: float = 0.0
    """Share of the steps that is dense at the end."""
    optimizer: Literal["AdamW", "AdamW_STEP"] = "AdamW"
    denominator: Denominator = "sqrt(v+eps)"
    """Of AdamW_STEP's second phase."""
    length: float = 1.0
    """Share of the steps that is trained at all, the schedule shortened with it."""
    activation: Literal["gelu", "relu2", "relu"] = "gelu"
    """Of the feed-forward layers."""

    def config_options(self, steps: int) -> dict[str, Any] | None:
        """The options of a run of `steps` optimizer steps."""
        if self.options is None:
            return None
        tail = {"dense_after": steps - round(steps * self.tail)} if self.tail else {}
        # A recipe is judged where its speed would not pay, too: the loss is the same on every machine.
        return {**self.options, **tail, "min_speedup": 0.0}

    def hidden_width(self, full: int) -> int:
        """The hidden width, a multiple of 64 but for toy models."""
        if self.hidden > 8:
            return int(self.hidden)
        least = 64 if full >= 256 else 8
        return max(least, round(full * self.hidden / least) * least)


def _fst(interval: int = 40, decay: float = 6e-5, **more: Any) -> dict[str, Any]:
    return {"recipe": "fst", "mask_interval": interval, "decay": decay, **more}


def _variants() -> list[Variant]:
    ste, sste = {"recipe": "ste"}, {"recipe": "sste"}
    three = {"input_gradient": "mvue"}
    return [
        Variant("dense"),
        Variant("half", hidden=0.5),
        Variant("dense-0.9", length=0.9),
        # [FST], and its ablation (Table 7): decay, dense tail, MVUE, interval.
        Variant("fst", _fst(), tail=1 / 6),
        Variant("fst-end", _fst()),
        Variant("fst-end-decay0", _fst(decay=0.0)),
        Variant("fst-end-decay2e-4", _fst(decay=2e-4)),
        Variant("fst-end-decay1e-3", _fst(decay=1e-3)),
        Variant("fst-end-no-mvue", _fst(gradient="dense")),
        Variant("fst-decay0", _fst(decay=0.0), tail=1 / 6),
        Variant("fst-l1", _fst(1), tail=1 / 6),
        Variant("fst-l1-end", _fst(1)),
        Variant("fst-l10", _fst(10), tail=1 / 6),
        Variant("fst-l10-end", _fst(10)),
        *(Variant(f"fst-l10-tail{round(6 * tail)}/6", _fst(10), tail=tail) for tail in (2 / 6, 3 / 6, 4 / 6)),
        Variant("fst-l1-tail3/6", _fst(1), tail=3 / 6),
        Variant("fst-l10-head1/6", _fst(10), head=1 / 6, tail=1 / 6),
        Variant("fst-l1-no-mvue", _fst(1, gradient="dense"), tail=1 / 6),
        Variant("fst-l1-no-mvue-decay0", _fst(1, 0.0, gradient="dense"), tail=1 / 6),
        *(
            Variant(f"fst-l1-no-mvue-head{round(6 * head)}/6", _fst(1, gradient="dense"), head=head, tail=1 / 6)
            for head in (1 / 6, 2 / 6)
        ),
        Variant("fst-l1-no-mvue-down", _fst(1, gradient="dense", exclude=(r"mlp\.c_fc",)), tail=1 / 6),
        Variant(
            "fst-l1-no-mvue-down-head1/6", _fst(1, gradient="dense", exclude=(r"mlp\.c_fc",)), head=1 / 6, tail=1 / 6
        ),
        Variant("fst-l1-no-mvue-end", _fst(1, gradient="dense")),
        Variant("fst-l1-no-mvue-tail3/6", _fst(1, gradient="dense"), tail=3 / 6),
        Variant("fst-l1-auto", _fst(1, gradient="auto"), tail=1 / 6),
        Variant("fst-l1-auto-tail3/6", _fst(1, gradient="auto"), tail=3 / 6),
        Variant("fst-l10-but-ends", _fst(10, exclude=(r"blocks\.0\.", r"blocks\.(7|11)\.")), tail=1 / 6),
        # Row-wise masks: dX dense, or by MVUE of dZ too, so that all three GEMMs are 2:4.
        Variant("ste", ste),
        Variant("ste-tail3/6", ste, tail=3 / 6),
        Variant("ste-head3/6", ste, head=3 / 6),
        Variant("ste-no-mvue", {**ste, "gradient": "dense"}),
        Variant("ste-no-mvue-tail1/6", {**ste, "gradient": "dense"}, tail=1 / 6),
        Variant("ste-mvue-dx", ste | three),
        Variant("ste-mvue-dx-tail1/6", ste | three, tail=1 / 6),
        Variant("ste-mvue-dx-tail3/6", ste | three, tail=3 / 6),
        # Which linears are sensitive.
        *(
            Variant(f"fst-l1-no-mvue-end-{name}", _fst(1, gradient="dense", exclude=(left_out,)))
            for name, left_out in (
                ("up", r"mlp\.c_proj"),
                ("down", r"mlp\.c_fc"),
                ("early", r"blocks\.([4-7])\."),
                ("late", r"blocks\.([0-3])\."),
            )
        ),
        Variant("sste", sste),
        Variant("sste-tail3/6", sste, tail=3 / 6),
        Variant("sste-no-mvue", {**sste, "gradient": "dense"}),
        Variant("sste-mvue-dx", sste | three),
        Variant("srste", {"recipe": "srste", "decay": 2e-4}),
        Variant("srste-mvue-dx", {"recipe": "srste", "decay": 2e-4} | three),
        Variant("step", {"recipe": "step"}, optimizer="AdamW_STEP", denominator="sqrt(v)+eps"),
        Variant("step-damped", {"recipe": "step"}, optimizer="AdamW_STEP"),
        # 2:4 hidden states, to be compared with the dense model of the same activation.
        Variant("relu2-dense", activation="relu2"),
        Variant("activation", {"recipe": "activation"}, activation="relu2"),
        Variant("activation-no-mvue", {"recipe": "activation", "gradient": "dense"}, activation="relu2"),
    ]


VARIANTS: Mapping[str, Variant] = MappingProxyType({variant.name: variant for variant in _variants()})
BASIC = ("dense", "half", "fst", "fst-l10", "ste", "ste-mvue-dx", "sste", "srste")
"""A first look: the controls and each recipe as it comes."""


def variant(name: str) -> Variant:
    """The variant of a name. "narrow=1536" is dense with that hidden width.

    Raises:
        OptionError: no such name.
    """
    narrow = re.fullmatch(r"narrow=(\d+)", name)
    if narrow and int(narrow[1]) > 8:
        return Variant(name, hidden=int(narrow[1]))
    if name not in VARIANTS:
        raise OptionError(name="variants", value=name, accepted=f"narrow=WIDTH, or one of {', '.join(VARIANTS)}")
    found = VARIANTS[name]
    Config.from_options(found.config_options(1000))
    return found
