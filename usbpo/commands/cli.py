"""The command line: one verb for each stage, and the user's verbs."""

import inspect as introspection
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from typing import Annotated, Any

import typer

from usbpo import __version__
from usbpo.artifacts.header import versions
from usbpo.commands import stage_verbs, user_verbs
from usbpo.commands.exchange import exports, imports
from usbpo.commands.stage_verbs import SECTIONS
from usbpo.errors import UsbpoError, one_line

PANEL_STAGES, PANEL_USER = "Stages", "Looking at runs"


def warm_up() -> None:
    """Import everything that a stage needs, and parse a command; the warm worker does it once for all its children."""
    for stage in SECTIONS:
        _command(stage)
    versions()
    with suppress(SystemExit), redirect_stdout(StringIO()):
        _command("block").main(["block", "--help"], prog_name="usbpo")


def main(argv: list[str], also: Sequence[Callable[..., None]] = ()) -> int:
    """Run one command.

    Args:
        also: verbs of rooms above this one.

    Returns:
        The exit code: 0, 1 for bad input (one sentence on standard error), 2 for a wrong call.
    """
    name = next((argument for argument in argv if not argument.startswith("-")), "")
    command = _command(name, *also)
    try:
        command.main(_with_repeated_options(name, argv), prog_name="usbpo", standalone_mode=True)
    except UsbpoError as error:
        print(one_line(f"usbpo {name}: {error}"), file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:  # of a standard stream, or of something else that is no file of the user's
            raise
        path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        cure = "mend its name or the permissions, or name another"
        print(one_line(f"usbpo {name}: {path}: it cannot be used ({error.strerror}); {cure}."), file=sys.stderr)
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@cache
def _command(chosen: str, *also: Callable[..., None]) -> Any:
    """The verbs, ready to parse a command line; it takes milliseconds, so the warm worker does it once."""
    return typer.main.get_command(_application(chosen, *also))


def _application(chosen: str, *also: Callable[..., None]) -> typer.Typer:
    """The verbs; only the chosen stage is imported, the others are named for the help."""
    app = typer.Typer(
        name="usbpo",
        help="USB-PO and its relatives as stages that hand each other files. See README.md.",
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        add_completion=False,
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            print(__version__)
            raise typer.Exit

    @app.callback()
    def about(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
        ] = False,
    ) -> None:
        pass

    for stage in SECTIONS:
        if stage == chosen:
            app.command(stage, rich_help_panel=PANEL_STAGES)(stage_verbs.verb(stage))
        else:
            app.command(stage, rich_help_panel=PANEL_STAGES, help=stage_verbs.first_line(stage))(lambda: None)
    for verb in user_verbs.VERBS:
        app.command(verb.__name__.replace("_", "-"), rich_help_panel=PANEL_USER)(verb)
    for verb_above in also:
        app.command(verb_above.__name__, rich_help_panel=PANEL_USER)(verb_above)
    for name, verbs in (("export", exports), ("import", imports)):
        app.add_typer(verbs, name=name, rich_help_panel=PANEL_USER)
    return app


def _with_repeated_options(stage: str, argv: list[str]) -> list[str]:
    """Let file and list options take any number of values: `--data a.h5 b.h5`, and none where none is needed."""
    if stage not in SECTIONS:
        if stage != "results":
            return argv
        many, optional = {"--runs", "--returns"}, set[str]()
    else:
        kinds = {
            f"--{n.replace('_', '-')}": str(p.annotation)
            for n, p in introspection.signature(stage_verbs.stage_function(stage)).parameters.items()
        }
        many = {option for option, kind in kinds.items() if "list" in kind}
        optional = {option for option, kind in kinds.items() if "None" in kind}
    made: list[str] = []
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if argument not in many | optional:
            made.append(argument)
            continue
        values: list[str] = []
        while position < len(argv) and not argv[position].startswith("--") and (argument in many or not values):
            values.append(argv[position])
            position += 1
        made.extend(part for value in values for part in (argument, value))
    return made
