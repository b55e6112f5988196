"""`s24 tune-decay`: the search for masked decay's lambda by flip rates."""

from __future__ import annotations

import typer


def command() -> None:
    """Search the masked decay (lambda) that keeps the flip rate at 0.60-0.95 of the dense run's [FST 4.3].

    Not in this version. Until it is: 6e-5 (the default) is the paper's value for GPT-2 124M, 2e-4 for 350M and 774M.
    """
    typer.echo(
        "s24: tune-decay is not there yet; start from decay=6e-5 (GPT-2 124M) or 2e-4 (350M, 774M) and watch "
        "`s24compile.sparse_weights(model)[name].flip_rate`, which should rise, then fall towards 0.",
        err=True,
    )
    raise typer.Exit(2)
