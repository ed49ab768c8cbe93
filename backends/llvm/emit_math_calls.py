"""Calls of the math functions of `math.py`, each written once as an internal function that LLVM inlines.

What it does: emits `name` for one element type and number of lanes through llvmlite.ir, keeps its text for the process (the text
depends on nothing else), and adds it to a module that calls it. So a compile pays llvmlite's builder only for functions not met before.
Guarantees: the helper is internal and always inlined, so no call remains.
"""

from __future__ import annotations

import re
from functools import cache

from llvmlite import ir

from tilewright.backends.llvm.emit_text import Function, Module, mangled, shaped
from tilewright.backends.llvm.lanes import MathOptions
from tilewright.backends.llvm.math import MATH, emit_math

DECLARATION = re.compile(r'^declare (.*?) @"?([\w.]+)"?\((.*)\)', re.MULTILINE)

BRANCH_WEIGHTS = re.compile(r"!prof !\d+")


def call_math(code: Function, name: str, element: str, lanes: int, operands: tuple[str, ...]) -> str:
    """The result of the function `name` of MATH on operands of `lanes` elements, 'float' or 'double'."""
    symbol = f"tw_{name}_{mangled(element, lanes)}"
    require_helper(code.module, symbol, name, element, lanes)
    kind = shaped(element, lanes)
    return code.pure(f"call {kind} @{symbol}({', '.join(f'{kind} {text}' for text in operands)})")


def require_helper(module: Module, symbol: str, name: str, element: str, lanes: int) -> None:
    if symbol not in module.helpers:
        text, declarations = helper_text(symbol, name, element, lanes, module.options)
        for declared, result, arguments in declarations:
            module.declare(declared, result, arguments)
        module.helpers[symbol] = text


@cache
def helper_text(symbol: str, name: str, element: str, lanes: int,
                options: MathOptions) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    """The definition, and the intrinsics it needs as (name, result, arguments)."""
    module = ir.Module()
    scalar = ir.FloatType() if element == "float" else ir.DoubleType()
    kind = ir.VectorType(scalar, lanes) if lanes else scalar
    function = ir.Function(module, ir.FunctionType(kind, [kind] * MATH[name].operands), symbol)
    function.linkage = "internal"
    function.attributes.add("alwaysinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    builder.ret(emit_math(builder, name, *function.args, options=options))
    text = str(module)
    declarations = tuple((found[2], found[1], re.sub(r' %"[^"]*"', "", found[3])) for found in DECLARATION.finditer(text))
    body = text[text.index("define "):]
    # Every branch of the expansions jumps over a rare case, so all share the module's one set of weights.
    return BRANCH_WEIGHTS.sub("!prof !1", body[: body.index("\n}") + 2]), declarations
