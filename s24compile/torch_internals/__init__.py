"""Every private part of torch that this package touches. A leaf: the checklist of an upgrade of torch.

Whatever torch does not document may change with any release. It stands here, by subject, behind functions that say
what they are for; the rest of the package knows only those. Beside them each module lists what it touches as `PARTS`:
the name, the versions of torch in which it was seen, and what breaks without it. On a new torch, run
tests/test_torch_internals.py first: it names the parts that are gone.

* `dynamo`: errors, stances and locks of `torch.compile`.      `compiled`: what a compiled callable was compiled with.
* `compilers`: Inductor, AOTAutograd, their passes.            `modes`: Inductor's modes.
* `function`: the nodes of autograd.Functions.            `operators`: ops and the way into the dispatcher.
* `graphs`: FX graphs and fake tensors.                    `tensors`: subclasses, storages, version counters.
* `fsdp`: what FSDP2 gathers, and DTensors.                `processes`: the store of a job, DDP's groups.
* `products`: products and streams of CUDA.                `part`: what an entry says, and the error without it.
"""
