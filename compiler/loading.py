"""`tw.load`: an artifact that `save` wrote becomes something to call. Imports the runtime alone."""

from __future__ import annotations

from os import PathLike

from .runtime.artifact import load_library
from .runtime.executable import Executable


def load(path: str | PathLike[str], *, weights: str | PathLike[str] | None = None, threads: int = 0,
         verify: bool = True, variant: str = "") -> Executable:
    """Load a saved library (.so). `weights`: its file of constants where that is not beside it; `verify` compares the
    checksum of the constants, which reads them once. Of a library with variants for several CPUs the best one that this CPU
    can run is used, or the one whose target `variant` is. ArtifactError when it is damaged, of another version or for another
    CPU.
    """
    return load_library(path, weights=weights, threads=threads, verify=verify, variant=variant)
