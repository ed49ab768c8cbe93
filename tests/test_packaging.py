"""What is installed is what is in the folders."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


def test_every_package_folder_is_listed() -> None:
    """A folder with an `__init__.py` that pyproject.toml does not list would be missing from the wheel."""
    found = set()
    for package, folder in FOLDERS.items():
        for initializer in (ROOT / folder).rglob("__init__.py"):
            parts = initializer.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)


def test_type_information_is_shipped() -> None:
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    for package, folder in FOLDERS.items():
        assert "py.typed" in shipped[package]
        assert (ROOT / folder / "py.typed").is_file()
