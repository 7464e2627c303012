"""Skips two unneeded steps of Gradio's start, together a third of its time.

Gradio writes type stubs for editors next to the source of every component class (and parses that source twice), and
builds an application for every page of a site, of which only the mounted one is used. Each step is skipped by patching
one function meanwhile; a later Gradio without that function just starts normally.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """For the import of Gradio: hides the source files of component classes, so that no stubs are written."""
    getfile = inspect.getfile

    def getfile_of_others(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("no stubs are wanted")
        return getfile(thing)

    with _standing_in(inspect, "getfile", getfile_of_others):
        yield


@contextlib.contextmanager
def without_spare_apps() -> Iterator[None]:
    """For building pages: creates no application for them; mounting creates one."""
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
