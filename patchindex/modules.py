"""Packages whose modules are found by themselves: a file that is added needs no line elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

__all__ = ["import_modules"]


def import_modules(package: str, path: Iterable[str]) -> list[ModuleType]:
    """Import all modules of a package, given its name and its path; return them in the order of their names.

    Examples
    --------
    >>> import patchindex.images.formats as formats
    >>> [each.__name__.rpartition(".")[2] for each in import_modules(formats.__name__, formats.__path__)][:2]
    ['celeba', 'cifar']
    """
    return [import_module(f"{package}.{name}") for name in sorted(each.name for each in iter_modules(path))]
