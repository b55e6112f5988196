"""One kernel that takes or compares the samples of many weights. Legend: see watch/reference.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["number"])  # it is another at each launch
def samples_many(
    entries, owners, found, number, BITS: tl.constexpr, TAKE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program i works on samples of entry owners[i]; watch/triton.py lists an entry's words. TAKE: else compare."""
    entry = entries + tl.load(owners + tl.program_id(0)) * 6
    weight = tl.load(entry).to(tl.pointer_type(BITS))
    sample = tl.load(entry + 1).to(tl.pointer_type(BITS))
    stride, count, place = tl.load(entry + 2), tl.load(entry + 3), tl.load(entry + 4)
    at = (tl.program_id(0) - tl.load(entry + 5)) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    now = tl.load(weight + at * stride, mask=inside, other=0)
    if TAKE:
        tl.store(sample + at, now, mask=inside)
    else:
        before = tl.load(sample + at, mask=inside, other=0)
        differs = tl.max((now != before).to(tl.int32), axis=0)
        tl.store(found + place, number, mask=differs != 0)
