"""Where ONNX Runtime defines its sessions and values."""

from __future__ import annotations

from ..binding import IOBinding
from ..names import OrtDeviceVendorId
from ..session import InferenceSession, Session
from ..values import OrtDevice, OrtValue, copy_tensors

__all__ = ["IOBinding", "InferenceSession", "OrtDevice", "OrtDeviceVendorId", "OrtValue", "Session", "copy_tensors"]
