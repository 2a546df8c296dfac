"""numpy, imported when its first name is used.

Importing numpy takes a tenth of a second; `leanmark --help` and `leanmark plan` use
none of it. Its names are looked up once and kept.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as numpy
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:

    class _Module:
        def __init__(self, name: str) -> None:
            self.__name__ = name

        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    numpy = _Module("numpy")
    Array = "NDArray[Any]"
