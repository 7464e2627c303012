"""What the server and its Ray driver (`model/cluster/driver.py`) exchange; replicas are numbered from 0."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Connect:
    """How many actors there will be, and what each one needs; the first message to the driver.

    Attributes:
        replicas: their number.
        gpus: of each; None: 1 where the cluster has GPUs and the device may be one.
        device: as `Configure.device`.
        environment: variables of their processes.
    """

    replicas: int
    gpus: float | None
    device: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Connected:
    """The driver is connected to the cluster at this address."""

    address: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The driver cannot connect, in one line; it exits."""

    detail: str


@dataclass(frozen=True, slots=True)
class Create:
    """Start the actor of a replica."""

    replica: int


@dataclass(frozen=True, slots=True)
class Post:
    """Pickled commands for an actor, batch `number` of them."""

    replica: int
    number: int
    commands: bytes


@dataclass(frozen=True, slots=True)
class Kill:
    """End the actor of a replica, if there is one."""

    replica: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Pickled items of an actor's stream."""

    replica: int
    items: bytes


@dataclass(frozen=True, slots=True)
class Died:
    """The actor of a replica has ended, in one line."""

    replica: int
    detail: str
