"""Exact packing of values with lifetimes: who lies where in a memory, and a proof where nothing fits."""

from .checker import fault_of
from .packer import Item, Packing, pack, pack_least

__all__ = ["Item", "Packing", "fault_of", "pack", "pack_least"]
