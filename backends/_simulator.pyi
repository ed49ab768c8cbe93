"""Types of the native extension; what it promises is in csrc/simulator/accelerator.h."""

from collections.abc import Sequence

import numpy as np

Row = tuple[int, int, int, int, int, int, int, list[tuple[int, int, bool, bool, list[int]]], str]

class Simulator:
    def __init__(self, object_code: bytes, symbol: str, constants: np.ndarray | None, name: str, scratchpad_bytes: int, alignment: int,
                 banks: int, transfer_bytes_per_cycle: int, transfer_latency: int, workspace_bytes: int, steps: Sequence[Row]) -> None: ...
    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> dict[str, int]: ...
    @property
    def thread_bytes(self) -> int: ...
