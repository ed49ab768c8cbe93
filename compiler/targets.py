"""Targets that are more than a CPU's name: an accelerator with a scratchpad, as a record and as text.

The text is what `--target` takes: `scratchpad:512KiB`, with settings behind colons as in `scratchpad:512KiB:banks=4:parameters=streamed`.
Parsing and printing are inverse.
"""

from __future__ import annotations

import re

from msgspec import Struct

from .ir.errors import CompileError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MOST_BYTES = 2**48  # more than a machine can address
MOST_BANKS = 4096
MOST_CYCLES = 2**40
LEAST_ALIGNMENT, MOST_ALIGNMENT = 8, 2**20  # kernels load whole elements
MOST_SECONDS = 24 * 3600.0
PREFIX = "scratchpad:"
PARAMETERS = ("ignored", "streamed", "resident")
SHARING = ("in-place", "concat", "recompute", "slices")


class Scratchpad(Struct, frozen=True):
    """An accelerator whose kernels see `bytes` of memory that the schedule manages.

    banks                  equal parts of the addresses; a transfer waits for a kernel that is busy in a bank that it touches, and a
                           kernel for a transfer
    alignment              of values; each takes whole units of it
    dma_bytes_per_cycle    of a transfer, after dma_latency cycles
    operations_per_cycle   of a kernel, a multiply-add counting two; it reads and writes 64 bytes a bank and cycle
    parameters             constants lie in a memory of their own ('ignored'), are fetched like inputs ('streamed'), or stay in the
                           scratchpad ('resident')
    prefetch               whether what is fetched may come a kernel earlier, and what is spilled may leave beside the next kernel, where
                           there is room: the same bytes in fewer cycles
    time_limit             seconds to search for a better schedule, after what is instant
    allow                  what schedules may do beyond whole operators that share nothing: names of SHARING, or 'all'
    """

    bytes: int
    banks: int = 8
    alignment: int = 64
    dma_bytes_per_cycle: int = 16
    dma_latency: int = 100
    operations_per_cycle: int = 512
    parameters: str = "ignored"
    prefetch: bool = True
    time_limit: float = 10.0
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least, most in (("bytes", 1, MOST_BYTES), ("banks", 1, MOST_BANKS), ("dma_bytes_per_cycle", 1, MOST_CYCLES),
                                  ("dma_latency", 0, MOST_CYCLES), ("operations_per_cycle", 1, MOST_CYCLES),
                                  ("alignment", LEAST_ALIGNMENT, MOST_ALIGNMENT)):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise CompileError(f"target scratchpad: {name} must be a whole number from {least} to {most}, found {value!r}")
        if self.alignment & self.alignment - 1:
            raise CompileError(f"target scratchpad: alignment must be a power of two, found {self.alignment}")
        if not isinstance(self.prefetch, bool):
            raise CompileError(f"target scratchpad: prefetch must be true or false, found {self.prefetch!r}")
        if self.parameters not in PARAMETERS:
            raise CompileError(f"target scratchpad: parameters must be one of {', '.join(PARAMETERS)}, found {self.parameters!r}")
        limit: object = self.time_limit
        if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not 0 <= limit <= MOST_SECONDS:
            raise CompileError(f"target scratchpad: time_limit must be seconds from 0 to {MOST_SECONDS:.0f}, found {limit!r}")
        allowed: object = self.allow
        if not isinstance(allowed, tuple) or not all(name in (*SHARING, "all") for name in allowed):
            raise CompileError(f"target scratchpad: allow must be a tuple of names (in text as in allow=in-place+slices), each of "
                               f"{', '.join(SHARING)} or all, found {allowed!r}")

    def __str__(self) -> str:
        values = [(name, getattr(self, name), default) for name, default in zip(SETTINGS, self.__struct_defaults__)]
        settings = [f":{name}={'+'.join(value) if name == 'allow' else value}" for name, value, default in values if value != default]
        return f"{PREFIX}{self.bytes}{''.join(settings)}"


SETTINGS = Scratchpad.__struct_fields__[1:]


def parse_bytes(text: str) -> int:
    """Bytes as in 524288, 512KiB or 1.5MB; ValueError says what was expected."""
    match = re.fullmatch(r"(\d{1,18})(\.\d{1,9})?\s*([a-zA-Z]{0,3})", text.strip(), re.ASCII)
    unit = UNITS.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"found {text!r}, expected bytes as in 524288, 512KiB or 1.5MB")
    count = float(match[1] + match[2]) * unit if match[2] else int(match[1]) * unit
    if count != int(count) or not 1 <= count <= MOST_BYTES:
        raise ValueError(f"found {text!r}, expected 1 to {MOST_BYTES} whole bytes")
    return int(count)


def is_scratchpad(target: object) -> bool:
    return isinstance(target, Scratchpad) or isinstance(target, str) and target.strip().startswith(PREFIX)


def parse_scratchpad(text: str) -> Scratchpad:
    """The target that the text names; CompileError with what is wrong."""
    size, *settings = text.strip().removeprefix(PREFIX).split(":")
    try:
        count = parse_bytes(size)
    except ValueError as error:
        raise CompileError(f"target {text!r}: {error}") from None
    values: dict[str, int | float | str | tuple[str, ...]] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if name not in SETTINGS or not equals or name in values:
            raise CompileError(f"target {text!r}: found {setting!r}, expected each of {', '.join(SETTINGS)} at most once, as in banks=8")
        values[name] = _setting(text, name, value)
    return Scratchpad(count, **values)  # type: ignore[arg-type]  # each has the type of its default, which mypy cannot see


def _setting(text: str, name: str, value: str) -> int | float | str | tuple[str, ...]:
    if name == "parameters":
        return value
    if name == "allow":
        return tuple(value.split("+"))
    if name == "prefetch":
        if value not in ("True", "False", "true", "false"):
            raise CompileError(f"target {text!r}: {name}: found {value!r}, expected true or false")
        return value.lower() == "true"
    try:
        return float(value) if name == "time_limit" else int(value)
    except ValueError:
        raise CompileError(f"target {text!r}: {name}: found {value!r}, expected a number") from None
