"""`tilewright`, and `python -m tilewright`: the command line. Ctrl-C while its modules are being read ends it quietly too."""

from __future__ import annotations

import os
import sys

try:
    from .cli import INTERRUPTED, main
except KeyboardInterrupt:
    print("tilewright: interrupted", file=sys.stderr, flush=True)
    os._exit(130)  # INTERRUPTED, which was not read; for `_exit` see `cli.main`

__all__ = ["INTERRUPTED", "main"]

if __name__ == "__main__":
    main()
