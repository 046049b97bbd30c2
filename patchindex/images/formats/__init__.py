"""Image formats: one file for each, which defines a `Format`."""

from patchindex.images.format import Format
from patchindex.modules import import_modules

__all__ = ["all_formats"]


def all_formats() -> tuple[Format, ...]:
    """Return the formats of all modules of this folder; formats that match anything are last.

    Examples
    --------
    >>> all_formats()[-1].description[:33]
    'image file, or folder or .zip of '
    """
    modules = import_modules(__name__, __path__)
    found = [each for module in modules for each in vars(module).values() if isinstance(each, Format)]
    return tuple(sorted(dict.fromkeys(found), key=lambda each: each.matches_anything))
