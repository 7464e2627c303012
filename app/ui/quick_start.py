"""Two things that Gradio does at every start and nobody here needs, left out: together a third of its start.

It writes type stubs for editors beside the source of every component as its class is made (and parses that source
twice for it), and it builds a whole application for every page of a site, of which the one for the mount is used. Each
is skipped by standing in for one function meanwhile; a later Gradio that has no such function just starts as it likes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """While Gradio is imported: its component classes have no source file, so there is nowhere to write stubs."""
    getfile = inspect.getfile

    def getfile_of_others(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("no stubs are wanted")
        return getfile(thing)

    with _standing_in(inspect, "getfile", getfile_of_others):
        yield


@contextlib.contextmanager
def without_spare_apps() -> Iterator[None]:
    """While pages are laid out: no application is built for them. Whoever mounts them makes one."""
    from gradio import blocks

    with _standing_in(blocks, "App", _NoApp):
        yield


class _NoApp:
    @staticmethod
    def create_app(*_: object, **__: object) -> None:
        return None


@contextlib.contextmanager
def _standing_in(module: Any, name: str, value: object) -> Iterator[None]:
    missing = object()
    real = getattr(module, name, missing)
    if real is missing:
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, real)
