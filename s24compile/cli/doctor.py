"""`s24 doctor`: what this machine can run, what is missing, and which kernels each op would use."""

from __future__ import annotations

from typing import Annotated

import typer

STYLES = {"ok": "green", "missing": "red", "absent": "dim"}


def command(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what this machine can run and what is missing. Exit status 1 if something that is needed is missing."""
    import dataclasses
    import json as writer

    from s24compile.cli.machine import examine, providers

    facts = examine()
    chosen = providers()
    if json:
        typer.echo(writer.dumps({"facts": [dataclasses.asdict(f) for f in facts], "providers": chosen}, indent=1))
    else:
        from rich.table import Table
        from rich.text import Text

        from s24compile.cli.terminal import console

        terminal = console()
        table = Table(title="this machine", show_header=False)
        for fact in facts:
            found = Text(fact.found).append(f"\n{fact.advice}" if fact.advice else "", style="dim")
            table.add_row(fact.name, Text(fact.status, style=STYLES[fact.status]), found)
        terminal.print(table)
        ops = Table("op", "kernels", title="what runs each op here")
        for op, provider in chosen.items():
            ops.add_row(op, provider)
        terminal.print(ops)
    if any(fact.status == "missing" for fact in facts):
        raise typer.Exit(1)
