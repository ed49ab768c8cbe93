"""The command line: `tilewright compile | run | check | verify | opt | inspect | explain | bench | profile | quantize | schedule | fuzz |
targets | cache | doctor`.

Answers go to stdout, messages and progress to stderr (progress only on a terminal). Exit status: 0 only on success, 1
for an error that is explained, 2 for a command line that is not understood, 130 after Ctrl-C, 143 after a request to end;
files that were being written do not stay behind.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, TextIO

import click

from .cli_fuzz import fuzz_command
from .cli_machine import cache_group, doctor_command, targets_command
from .cli_model import bench_command, compile_command, inspect_command, run_command
from .cli_onnx import check_command, verify_command
from .cli_passes import opt_command
from .cli_profile import explain_command, profile_command
from .cli_quantize import quantize_command
from .cli_schedule import schedule_command
from .ir.errors import TilewrightError
from .options import read_environment
from .version import __version__

INTERRUPTED, TERMINATED = 130, 143


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tilewright")
def cli() -> None:
    """Compile tensor programs (ONNX models, graphs in text) to native code, run them, look at them."""


for _command in (compile_command, run_command, check_command, verify_command, opt_command, inspect_command, explain_command,
                 bench_command, profile_command, quantize_command, schedule_command, fuzz_command, targets_command, cache_group,
                 doctor_command):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of the `tilewright` program; ends the process with the status."""
    signal.signal(signal.SIGTERM, _terminate)
    status = run(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and said: Ctrl-C would only turn it into a failure
    try:
        if sys.stdout is not None:  # None: the program was started with it closed
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    except OSError as error:
        click.echo(f"tilewright: stdout: {error.strerror or error}", err=True)
        status = status or 1
    if status == INTERRUPTED:  # where Ctrl-C fell into `exec` of a string (dataclasses), Python would end by the signal instead
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run(arguments: Sequence[str] | None = None) -> int:
    """One command; returns its exit status. Every error is explained on stderr."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            cli.main(args=None if arguments is None else list(arguments), prog_name="tilewright", standalone_mode=False)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("tilewright: interrupted", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough
        _forget_stdout()
        return 1
    except TilewrightError as error:
        click.echo(f"tilewright: {type(error).__name__}: {error}", err=True)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"tilewright: {where}{error.strerror or error}", err=True)
    except MemoryError:
        click.echo("tilewright: out of memory", err=True)
    except Exception as error:
        _report_fault(error)
    return 1


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
                  line: str | None = None) -> None:
    """In one line: a place in Python says nothing here."""
    del category, filename, lineno, file, line
    click.echo(f"tilewright: warning: {message}", err=True)


def _report_fault(error: Exception) -> None:
    """A fault of ours: one line, and the trace for those who asked for it."""
    click.echo(f"tilewright: internal error: {type(error).__name__}: {error}", err=True)
    if read_environment().debug >= 1:
        traceback.print_exception(error)
    else:
        click.echo("  hint: this is a fault of tilewright; TILEWRIGHT_DEBUG=1 shows where, please report it", err=True)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Ends like Ctrl-C does, so that what cleans up gets to run."""
    del number, frame
    sys.exit(TERMINATED)


def _forget_stdout() -> None:
    """So that the interpreter does not complain about the closed pipe when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
