"""`tilewright`, and `python -m tilewright`: the command line. Ctrl-C while its modules are being read ends it quietly too."""

from __future__ import annotations

import sys

try:
    from .cli import INTERRUPTED, main
except KeyboardInterrupt:
    print("tilewright: interrupted", file=sys.stderr)
    sys.exit(130)  # INTERRUPTED, which was not read

__all__ = ["INTERRUPTED", "main"]

if __name__ == "__main__":
    main()
