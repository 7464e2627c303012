"""The Python client: `from app.client import Client`, and its errors."""

from app.client.client import Client, default_key, default_url
from app.client.errors import (
    ApiError,
    BadInput,
    Conflict,
    MalformedAnswer,
    NotAllowed,
    NotFound,
    NotReady,
    OmniError,
    QueueFull,
    ServerFailed,
    ServerUnreachable,
)

__all__ = [
    "ApiError",
    "BadInput",
    "Client",
    "Conflict",
    "MalformedAnswer",
    "NotAllowed",
    "NotFound",
    "NotReady",
    "OmniError",
    "QueueFull",
    "ServerFailed",
    "ServerUnreachable",
    "default_key",
    "default_url",
]
