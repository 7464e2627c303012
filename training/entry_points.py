"""What installed packages add to the studio: entry points of three groups. Imports none of them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

REWARDS = "omni_r1.rewards"
TASKS = "omni_r1.tasks"
TRACKERS = "omni_r1.trackers"


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, from the metadata of the installed packages."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def package_of(point: EntryPoint) -> str:
    """Name and version of the package that an entry point comes from."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.module
