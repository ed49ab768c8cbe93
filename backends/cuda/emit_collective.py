"""What the threads of a block do together, as calls of the device header."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.cuda.emit_scalars import loaded, stored
from tilewright.backends.cuda.emit_sizes import ATOM, Text
from tilewright.ir.errors import InternalError
from tilewright.ir.loop import Collect
from tilewright.ir.types import DType

WARP = 32


def emit_collect(statement: Collect, dtype: DType, elements: Sequence[str], threads: int) -> list[str]:
    """Each of a thread's registers becomes the combination of those of its group: by shuffles within a warp, and through shared
    memory between the warps of a block."""
    combine, width = statement.combine, statement.width
    lines = []
    for element in elements:
        value = loaded(element, dtype)
        if width <= WARP:
            call = f"tw_warp_{combine}({value.text}, {width})"
        elif width == threads:
            call = f"tw_block_{combine}({value.text}, {threads})"
        else:
            raise InternalError(f"cuda: collect over {width} of {threads} threads")
        lines.append(f"{element} = {stored(Text(call, ATOM), dtype)};")
    return lines


def emit_copy(target: str, source: str, count: int, given: str) -> str:
    """A copy from global to shared memory that goes on while the thread does; zeros where what is `given` is false."""
    return f"tw_copy_async_{count}_or_zero({target}, {source}, {given});" if given else f"tw_copy_async_{count}({target}, {source});"
