"""`tilewright opt`: the pipeline entered and left at any stage, in text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .cli_shared import dims_option, load_graph, precision_option, progress, target_option, write_out
from .driver import compile_half
from .ir.errors import CompileError
from .ir.graph import Graph
from .ir.parser import parse
from .ir.printer import constants_of, format_graph, save_text
from .ir.program import Program
from .ir.verify import verify
from .options import Options
from .runtime.artifact import write_bytes

LOWER = "lower"  # where programs are made of graphs that went through all passes
FORMS = ("graph", "loop", "llvm", "optimized", "asm")


@click.command("opt")
@click.argument("model", required=False)
@click.option("--from", "start", default="", metavar="PASS",
              help=f"Begin with this pass: MODEL is what stands before it. {LOWER}: behind them all.")
@click.option("--until", default="", metavar="PASS", help="End after this pass.")
@click.option("--emit", type=click.Choice(FORMS), help="What to write.  [default: graph]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write, with large constants in FILE.npz.  [default: stdout]")
@click.option("--list", "list_passes", is_flag=True, help="Name the passes in order.")
@click.option("--locations", is_flag=True, help="Say where each node came from.")
@target_option
@dims_option
@precision_option
def opt_command(model: str | None, start: str, until: str, emit: str | None, output: Path | None, list_passes: bool,
                locations: bool, target: str, dims: Sequence[str], precision: str) -> None:
    """Run MODEL (.ir, .onnx, .loop, or - for a graph from stdin) through passes and write the result as text.

    Large constants are named by digest in text; with -o they go to a file beside it, from which they are read again.
    """
    if list_passes:
        write_out("\n".join(compile_half().stages_of()) + "\n")
        return
    if model is None:
        raise click.UsageError("missing argument MODEL")
    form = emit or "graph"
    if form != "graph" and until:
        raise click.UsageError(f"--until ends within the passes, --emit {form} comes after them")
    stage = read_stage(model, dims)
    if isinstance(stage, Program):
        if start or form == "graph":
            raise click.UsageError(f"{model} is past all passes; --emit loop, llvm, optimized or asm")
        write_program(stage, form, target, output)
        return
    if start == LOWER and form == "graph":
        raise click.UsageError(f"--from {LOWER} is past all passes; --emit loop, llvm, optimized or asm")
    if start == LOWER:
        verify(stage)
        graph = stage
    else:
        with progress("running passes"):
            graph = compile_half().enter(stage, start, until, target, Options(precision=precision))
    if form == "graph":
        write_graph(graph, output, locations)
    else:
        with progress("generating code"):
            program = compile_half().lower(graph, target)
        write_program(program, form, target, output)


def read_stage(model: str, dims: Sequence[str]) -> Graph | Program:
    """A graph, or from a .loop file a program."""
    if dims and (model == "-" or model.endswith(".loop")):
        raise click.UsageError(f"--dims is for reading an ONNX model, but {model} is text of the IR, which declares its own sizes")
    if model == "-":
        return parse(sys.stdin.read(), file="stdin")
    path = Path(model)
    if path.suffix == ".loop":
        if not path.is_file():
            raise CompileError(f"{path}: there is no such file")
        program: Program = compile_half().load_program(path)
        return program
    found: Graph = load_graph(path, dims)
    return found


def write_graph(graph: Graph, output: Path | None, locations: bool) -> None:
    if output is not None:
        save_text(graph, output, locations)
        return
    write_out(format_graph(graph, locations))
    if constants_of(graph):
        click.echo("tilewright: large constants are named by digest only; -o FILE also writes their values", err=True)


def write_program(program: Program, form: str, target: str, output: Path | None) -> None:
    text: Any = compile_half().program_text(program, form, target)
    if output is None:
        write_out(text)
        return
    if form == "loop":
        compile_half().save_program_constants(program, output)
    write_bytes(output, text.encode())
