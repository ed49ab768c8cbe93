"""The version of the package: artifacts and the cache carry it."""

__version__ = "0.1.0"
