"""Bytes per step and memory per rank under FSDP2, by arithmetic: `python benchmarks/distributed_plan.py`.

Per rank and step of one micro-batch, reshard_after_forward=True: two all-gathers of bf16 weights and a reduce-scatter
of fp32 gradients, each (R - 1) / R of the model. Memory: fp32 masters, gradients and two moments, sharded; one block
gathered in bf16, with its gradient; and of 2:4 layers pattern bytes, present and previous, which every rank has whole
(1 / 16 byte for each element, each), and one block packed (W and W^T: half of the bf16 values, a quarter of a byte of
metadata for each element, together). Activations are the same in both.
"""

from __future__ import annotations

MODELS = {"8B": (4096, 14336, 32, 8.03e9), "70B": (8192, 28672, 80, 70.6e9)}
"""Name -> (D, F, layers, parameters): of Llama 3.1."""
RANKS = (64, 1024)


def row(name: str, ranks: int) -> str:
    """One line of the table, in GB (1e9 bytes)."""
    width, hidden, layers, parameters = MODELS[name]
    sparse = 3 * width * hidden * layers
    moved = (ranks - 1) / ranks * parameters * (2 + 2 + 4)
    block = parameters / layers
    dense = 16 * parameters / ranks + (2 + 2) * block
    patterns, packed = sparse / 8, sparse / layers * (2 + 0.25)
    cells = (name, str(ranks), *(f"{size / 1e9:.2f}" for size in (moved, dense, dense + patterns + packed, patterns)))
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table of docs/distributed.md."""
    print("| model | ranks | bytes moved, dense and 2:4 | memory, dense | memory, 2:4 | of which pattern bytes |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: |")
    for name in MODELS:
        for ranks in RANKS:
            print(row(name, ranks))


if __name__ == "__main__":
    main()
