"""The prompt templates of checkpoints, read once."""

from __future__ import annotations

from collections import OrderedDict

from app.checkpoints.folder import CheckpointInfo
from model.text.template import Template

KEPT = 8


class Templates:
    """The templates that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Template] = OrderedDict()

    def of(self, info: CheckpointInfo) -> Template:
        """The checkpoint's template; blocking."""
        key = (info.name, info.digest)
        template = self._kept.pop(key, None) or Template.read(info.weights)
        self._kept[key] = template
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return template
