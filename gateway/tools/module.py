# SPDX-License-Identifier: GPL-2.0-or-later
"""The module of tools in Python that ``tools.module`` names: found, imported once, and read."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType

from gateway.tools.api import MARK, Options
from gateway.tools.schema import NAME
from gateway.tools.signature import Signature, SignatureError


class ToolModuleError(Exception):
    """The module cannot be used. ``file`` and ``line`` (from 1) are None when it is not there."""

    def __init__(self, message: str, file: Path | None = None, line: int = 1) -> None:
        super().__init__(message)
        self.file = file
        self.line = line


@dataclass(frozen=True, slots=True)
class PythonTool:
    """One function of a tool module."""

    name: str
    description: str
    function: Callable[..., object]
    signature: Signature
    options: Options

    @property
    def is_async(self) -> bool:
        """Whether it runs on the event loop; otherwise in a thread."""
        return inspect.iscoroutinefunction(self.function)


_loaded: dict[tuple[str, Path], Mapping[str, PythonTool]] = {}


def python_tools(
    name: str, folder: Path, reserved: Collection[str] = ()
) -> Mapping[str, PythonTool]:
    """The tools of a module (``hotel.tools``), or of a file (``tools.py``, from ``folder``).

    What is marked with ``@tool`` is a tool; in a module that marks nothing, each public function
    that it defines and documents. None may have a ``reserved`` name. The code runs once in a
    process. Raises ToolModuleError.
    """
    key = (name, folder)
    if key not in _loaded:
        _loaded[key] = MappingProxyType(_tools_of(_imported(name, folder), reserved))
    return _loaded[key]


def _imported(name: str, folder: Path) -> ModuleType:
    path = folder / Path(name).expanduser() if name.endswith(".py") else None
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for what the module imports beside itself
    try:
        if path is None:
            return importlib.import_module(name)
        if not path.is_file():
            raise ToolModuleError(f"{path} is no file")
        spec = importlib.util.spec_from_file_location(f"gateway_tools_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except ToolModuleError:
        raise
    except BaseException as error:  # whatever it does when imported, an exit too
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _fault(error, name) from error
    return module


def _fault(error: BaseException, name: str) -> ToolModuleError:
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return ToolModuleError(f"{error.msg}", Path(error.filename), error.lineno or 1)
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        return ToolModuleError(f"there is no module {name}")
    ours = str(Path(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != ours and not frame.filename.startswith("<frozen")
    ]
    # What stands in the module itself, not in a library that it hands something wrong to.
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    if not own:
        return ToolModuleError(said)
    first = own[0]
    at = next((frame for frame in reversed(own) if frame.filename == first.filename), first)
    return ToolModuleError(said, Path(at.filename), at.lineno or 1)


def _tools_of(module: ModuleType, reserved: Collection[str]) -> dict[str, PythonTool]:
    members = [
        one for one in vars(module).values() if inspect.isfunction(one) or hasattr(one, MARK)
    ]
    marked = [one for one in members if isinstance(getattr(one, MARK, None), Options)]
    chosen = marked or [
        one
        for one in members
        if one.__module__ == module.__name__ and not one.__name__.startswith("_") and one.__doc__
    ]
    tools: dict[str, PythonTool] = {}
    for function in dict.fromkeys(chosen):
        one = _tool_of(function, reserved)
        if one.name in tools:
            raise _at(function, f"the name {one.name!r} is there twice")
        tools[one.name] = one
    return tools


def _tool_of(function: Callable[..., object], reserved: Collection[str]) -> PythonTool:
    options = getattr(function, MARK, Options())
    name = options.name or function.__name__
    if not NAME.fullmatch(name):
        raise _at(function, f"{name!r}: a tool's name has 1 to 64 letters, digits, _ and -")
    if name in reserved:
        raise _at(function, f"{name!r} is the name of a tool of the gateway's own")
    try:
        signature = Signature(function)
    except SignatureError as error:
        raise _at(function, f"{function.__name__}: {error}") from None
    description = options.description or signature.summary
    if not description:
        raise _at(function, f"{function.__name__}: has no docstring, which the model is to read")
    return PythonTool(name, description, function, signature, options)


def _at(function: Callable[..., object], message: str) -> ToolModuleError:
    code = inspect.unwrap(function).__code__
    return ToolModuleError(message, Path(code.co_filename), code.co_firstlineno)
