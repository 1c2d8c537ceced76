"""Optional packages: imported when a command needs them, named in one line when they are missing.

An extra is a name in the package's own list of optional dependencies. Code asks for the module
through `require`, at the moment of use; nothing optional is imported when a module is loaded.
"""

import importlib
from types import ModuleType

from stemma.core.errors import ResourceError, nearest

MODULES = {
    "eval": "sacrebleu",
    "report": "matplotlib",
    "serve": "uvicorn",
}  # extra -> the module that proves it is installed


def require(extra: str, module: str | None = None) -> ModuleType:
    """Import the package behind an extra, or `module` of it (`"matplotlib.figure"`).

    Raises ResourceError with the command that installs the extra where the package is missing. A
    package that is there and fails on an import of its own is not hidden: its error goes through.
    """
    if extra not in MODULES:
        raise ValueError(f"no extra is named {extra}; {nearest(extra, MODULES)}")
    wanted = module or MODULES[extra]
    try:
        return importlib.import_module(wanted)
    except ModuleNotFoundError as error:
        missing = error.name or wanted
        if missing != wanted and not wanted.startswith(f"{missing}."):
            raise
        raise ResourceError(
            f"this needs the package {missing}, which is not installed",
            fix=f'pip install "stemma-lm[{extra}]"',
        ) from error
