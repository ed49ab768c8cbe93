"""What tests of kernels for GPUs need to run them without one."""

from __future__ import annotations

import shutil

import pytest

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="kernels run on the host only where there is g++")
