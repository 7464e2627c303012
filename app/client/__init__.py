"""The Python client: `from app.client import Client`, and its errors."""

from app.client.client import (
    ApiError,
    BadInput,
    Client,
    Conflict,
    MalformedAnswer,
    NotAllowed,
    NotFound,
    NotReady,
    OmniError,
    QueueFull,
    ServerFailed,
    ServerUnreachable,
    default_key,
    default_url,
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
