"""Tools from a Python file."""

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from session_core.tools.functions import Tool


class ToolFileError(ValueError):
    """A file that cannot be loaded, or a function in it that cannot be a tool. The text names file, line and
    remedy."""


def load_tools(path: str) -> list[Tool]:
    """The tools of a file: its `TOOLS` list, if it has one, else every public function that is defined in it.

    The file may import its neighbours. Raises ToolFileError.
    """
    module = _load(path)
    functions = getattr(module, "TOOLS", None)
    if functions is None:
        functions = [
            value
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
    if not isinstance(functions, list | tuple) or not functions:
        raise ToolFileError(f"{path} has no tools: define a public function, or list functions in TOOLS")
    return [_tool(path, function) for function in functions]


def _load(path: str) -> ModuleType:
    folder, name = os.path.split(os.path.abspath(path))
    module_name = f"tools_of_{os.path.splitext(name)[0]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise ToolFileError(f"{path} cannot be read as a Python file: give the path of one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses and pydantic look for it
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ToolFileError(f"{path} line {error.lineno}: {error.msg}; correct the line") from error
    except BaseException as error:  # the file is anybody's code
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        text = " ".join(str(error).split())[:200]
        line = lines[-1] if lines else 1
        raise ToolFileError(f"{path} line {line}: {type(error).__name__}: {text}; correct the line") from error
    return module


def _tool(path: str, function: Callable[..., Any]) -> Tool:
    try:
        return Tool(function, os.path.basename(path))
    except ValueError as error:
        code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
        line = f" line {code.co_firstlineno}" if code else ""
        raise ToolFileError(f"{path}{line}: {error}") from error
