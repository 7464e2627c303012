"""The process that runs a reward of your own: ``python -m training.scoring.custom_child FD``.

FD is one end of a pair of sockets. The first message names the function, each further one is a case; every message gets
one reply, ``{"value": ...}`` or ``{"error": ...}``. What the function prints goes to the parent's bounded sink. The
process ends when its stdin closes, that is, with its parent.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from training.entry_points import REWARDS, installed
from training.scoring.custom import Case, read_value

MAX_ERROR = 300  # characters of an error

Function = Callable[..., Any]


def main(arguments: list[str]) -> int:
    """Serve until the connection closes; return the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the job, which decides when to end this process
        signal.signal(number, signal.SIG_IGN)
    with Connection(int(arguments[0])) as connection:
        try:
            function = find(**json.loads(connection.recv_bytes()))
        except BaseException as error:
            _reply(connection, {"error": _text(error)})
            return 1
        _reply(connection, {"value": None})
        while True:
            try:
                message = connection.recv_bytes()
            except EOFError:
                return 0
            _reply(connection, call(function, Case.from_json(json.loads(message))))


def find(name: str | None = None, file: str | None = None) -> Function:
    """Import the function.

    Args:
        name: of an entry point.
        file: ``/folder/file.py:function``.

    Raises:
        LookupError: there is none.
        TypeError: it is no function.
        Exception: whatever importing it raises.
    """
    if file is not None:
        path, _, attribute = file.rpartition(":")
        found = getattr(_module(Path(path)), attribute, None)
        if found is None:
            raise LookupError(f"{path} has no function {attribute}")
    else:
        point = installed(REWARDS).get(name or "")
        if point is None:
            raise LookupError(f"no installed package has the entry point {name} in {REWARDS}")
        found = point.load()
    if not callable(found):
        raise TypeError(f"{name or file} is a {type(found).__name__}, not a function")
    function: Function = found
    return function


def call(function: Function, case: Case) -> dict[str, Any]:
    """Call the function and check what it returns."""
    try:
        returned = function(case.sample, case.response)
    except BaseException as error:
        return {"error": _text(error)}
    try:
        found = read_value(returned)
    except Exception as error:  # a class of the author's may raise anything
        return {"error": str(error)[:MAX_ERROR]}
    return {"value": dict(found.parts) if found.parts else found.value}


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"custom_reward_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LookupError(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickles look their module up
    spec.loader.exec_module(module)
    return module


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_ERROR]


def _reply(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
