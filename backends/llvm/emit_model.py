"""The constant data that describes a model (`tw_model` of csrc/abi.h), and the public functions of an ahead-of-time build.

Guarantees: constants only, so the object has no writable data (pointers stand in .data.rel.ro); private strings, each once; nothing is
visible outside but the seven functions that csrc/run.h names, and those only with a public name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from tilewright.backends.llvm.emit_text import Module
from tilewright.ir.dims import DimLike
from tilewright.ir.errors import CompileError
from tilewright.ir.program import Program
from tilewright.ir.types import TensorType

ABI_VERSION = 2
DESCRIPTOR = "{ ptr, i32, i32, ptr, ptr }"
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# public function -> (result, parameters behind the model) as in csrc/run.h
WRAPPERS = {
    "describe": ("ptr", ()),
    "plan": ("i32", ("ptr", "ptr", "ptr", "ptr")),
    "run": ("i32", ("ptr", "ptr", "ptr", "ptr", "ptr", "ptr")),
    "open": ("i32", ("ptr", "ptr", "ptr")),
    "close": ("void", ("ptr",)),
    "selftest": ("i32", ("ptr", "ptr")),
    "profile": ("i32", ("ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr")),
}


class ModelFacts(Struct, frozen=True):
    """What `tw_model` says beyond the program itself. `constants_symbol`: an external that holds the embedded constants segment;
    '' when it is in a sidecar file."""

    target: str = ""
    features: str = ""
    version: str = ""
    constants_digest: str = ""
    constants_symbol: str = ""
    golden_offset: int = 0
    golden_bytes: int = 0


SPELLED = tuple(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\{c:02X}" for c in range(256))  # bytes in a string of LLVM IR


class Data:
    """Private constants of a module, numbered in order of first use."""

    def __init__(self, module: Module, stem: str = "tw_data") -> None:
        self.module = module
        self.stem = stem
        self.known: dict[str, str] = {}

    def constant(self, text: str, kind: str = "private unnamed_addr constant", alignment: int = 1) -> str:
        """The name of a constant with this type and value."""
        name = self.known.get(text)
        if name is None:
            name = self.known[text] = f"@{self.stem}{len(self.known)}"
            self.module.parts.append(f"{name} = {kind} {text}, align {alignment}")
        return name

    def string(self, text: str) -> str:
        return self.block(text.replace("\0", " ").encode(errors="replace") + b"\0", alignment=1)

    def block(self, content: bytes, alignment: int = 64) -> str:
        spelled = "".join(SPELLED[byte] for byte in content)
        return self.constant(f'[{len(content)} x i8] c"{spelled}"', alignment=alignment)

    def pointers(self, names: Sequence[str]) -> str:
        return self.array("ptr", names)

    def array(self, element: str, values: Sequence[str]) -> str:
        """A pointer to the values; null for none."""
        if not values:
            return "null"
        return self.constant(f"[{len(values)} x {element}] [{', '.join(f'{element} {v}' for v in values)}]", alignment=8)


def emit_model(module: Module, program: Program, name: str, facts: ModelFacts, plan: str, thread: str,
               thread_bytes: int) -> None:
    """Appends the constant `name`. Call it last: the table of messages is complete only then."""
    data = Data(module)
    inputs, outputs = (_descriptors(data, entries) for entries in (program.inputs, program.outputs))
    kernels = program.kernels()
    fields = [
        f"i32 {ABI_VERSION}", "i32 0", f"ptr {data.string(program.name)}", f"ptr {data.string(facts.target)}",
        f"ptr {data.string(facts.features)}", f"ptr {data.string(facts.version)}",
        f"i32 {len(program.inputs)}", f"i32 {len(program.outputs)}", f"ptr {inputs}", f"ptr {outputs}",
        f"i64 {program.constants_bytes}", f"ptr {data.string(facts.constants_digest)}",
        f"ptr {_embedded(module, facts.constants_symbol)}", f"i32 {len(kernels)}", f"i32 {len(module.sites)}",
        f"ptr {data.pointers([data.string(kernel.name) for kernel in kernels])}",
        f"ptr {data.pointers([data.string(message) for message in module.sites])}",
        f"ptr @{plan}", f"ptr @{thread}", f"i64 {_static(program.workspace_bytes)}",
        f"i64 {facts.golden_offset}", f"i64 {facts.golden_bytes}", f"i64 {thread_bytes}",
        f"ptr @{name}", "ptr null",  # the list of variants: itself alone
    ]
    kinds = ", ".join(field.split(" ")[0] for field in fields)
    # In process, the loader finds the symbol whatever its visibility; in a library it must not be seen.
    module.parts.append(f"@{name} = hidden constant {{ {kinds} }} {{ {', '.join(fields)} }}, align 8")


def _embedded(module: Module, symbol: str) -> str:
    if not symbol:
        return "null"
    module.parts.append(f"@{symbol} = external hidden constant i8, align 64")
    return f"@{symbol}"


def _static(size: DimLike) -> int:
    return size if isinstance(size, int) else -1


def _descriptors(data: Data, entries: Sequence[tuple[str, TensorType]]) -> str:
    rows = []
    for name, kind in entries:
        dims = data.array("i64", [str(_static(size)) for size in kind.shape])
        names = ["null" if isinstance(size, int) else data.string(str(size)) for size in kind.shape]
        dim_names = data.pointers(names) if any(n != "null" for n in names) else "null"
        rows.append(f"{{ ptr {data.string(name)}, i32 {kind.dtype.code}, i32 {kind.rank}, ptr {dims}, ptr {dim_names} }}")
    return data.array(DESCRIPTOR, rows)


def emit_wrappers(module: Module, prefix: str, model: str) -> None:
    """The public functions of an ahead-of-time build; each puts the model in front and calls the runtime."""
    if not IDENTIFIER.fullmatch(prefix):
        raise CompileError(f"the name {prefix!r} is no C identifier, which the functions of the library begin with")
    for name, (result, parameters) in WRAPPERS.items():
        runtime = f"tw_{name}_model"
        module.declarations[runtime] = f"declare hidden {result} @{runtime}({', '.join(('ptr', *parameters))})"
        taken = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(parameters))
        call = f"tail call {result} @{runtime}({', '.join((f'ptr @{model}', *filter(None, (taken,))))})"
        body = f"  {call}\n  ret void" if result == "void" else f"  %r = {call}\n  ret {result} %r"
        module.parts.append(f"define {result} @{prefix}_{name}({taken}) nounwind {{\n{body}\n}}")


RUNTIME_SYMBOLS = frozenset(f"tw_{name}_model" for name in WRAPPERS)
