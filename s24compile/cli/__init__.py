"""The command `s24` (also `python -m s24compile`): doctor, demo, explain, train, plot, bench, build, tune-decay.

Exit status: 0 done; 1 an error of s24compile, told in one line; 2 the command line itself was wrong, or asks for
something that this machine or version does not have. Tracebacks are left to bugs and to errors of the user's own code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from s24compile.cli import bench, build, demo, doctor, explain, plot, train, tune_decay
from s24compile.errors import S24Error


def _as_setting(name: str) -> str:
    return name.replace("-", "_")


app = typer.Typer(
    name="s24",
    help="2:4-sparse training of transformers: torch.compile(model, backend='s24').",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    # --max-iters is --max_iters: settings have nanoGPT's names, and people type either.
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _as_setting},
)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """2:4-sparse training of transformers: `torch.compile(model, backend="s24")`. Start with `s24 doctor`."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("doctor")(doctor.command)
app.command("demo")(demo.command)
app.command("explain")(explain.command)
app.command("train")(train.command)
app.command("plot")(plot.command)
# A benchmark's own options are not known to this parser.
app.command("bench", context_settings={"ignore_unknown_options": True})(bench.command)
app.command("build")(build.command)
app.command("tune-decay")(tune_decay.command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (None: that of the process) and returns its exit status."""
    command = typer.main.get_command(app)
    try:
        # standalone_mode=False: errors arrive here as exceptions instead of as a printed panel and SystemExit.
        status: Any = command.main(list(arguments) if arguments is not None else None, "s24", standalone_mode=False)
    except S24Error as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except Exception as error:
        return _usage_error(error)
    return status if isinstance(status, int) else 0


def _usage_error(error: Exception) -> int:
    # By attribute, not class: the parser's exceptions live in click or in typer, depending on typer's version.
    if type(error).__name__ == "Abort":
        return _say("interrupted", 130)
    if not hasattr(error, "format_message"):
        raise error
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "s24"
    return _say(f"{error.format_message().rstrip('.')}. Try '{where} --help'.", 2)


def _say(sentence: str, status: int) -> int:
    sys.stderr.write(f"s24: {' '.join(sentence.split())}\n")
    return status
