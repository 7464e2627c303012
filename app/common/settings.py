"""Settings of the server: one prefix (``OMNI_R1_``), read once from the environment, refused when unsafe.

Knows nothing of the parts that read it. ``Settings()`` raises pydantic's ``ValidationError``; :func:`read_settings`
turns that into one line a person can act on (``SettingsError``, exit code 2).
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

PREFIX = "OMNI_R1_"
# Variables of the same prefix that belong to other programs of the project (client, tests, installation).
FOREIGN = frozenset({"OMNI_R1_URL", "OMNI_R1_REQUIRE_BROWSER", "OMNI_R1_REQUIRE_POSTGRES"})

StringList = Annotated[tuple[str, ...], NoDecode]
PathList = Annotated[tuple[Path, ...], NoDecode]


class SettingsError(ValueError):
    """The environment asks for something that cannot or must not be done; one line for a person."""


class Settings(BaseSettings):
    """Everything a person may decide about the server; every field is ``OMNI_R1_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    home: Path = Field(Path("~/.omni-r1"), description="Folder for the database, pictures and checkpoints (mode 0700).")
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to bind; one that other machines reach needs an API key."
    )
    port: int = Field(7860, ge=0, le=65535, description="Port to bind; 0 takes a free one.")
    api_key: SecretStr | None = Field(None, description="Who calls needs it: as a bearer token, or once at /login.")
    database_url: str | None = Field(
        None,
        repr=False,
        description="Another database than the home's `omni-r1.db`: `sqlite:///…` or `postgresql://…`.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the engine computes.")
    checkpoint: str | None = Field(
        None, description="Checkpoint to start with: a name, a folder or a hub id (default: the one active last)."
    )
    memory_mb: int | None = Field(
        None, ge=1, description="MiB that loaded checkpoints may take together (default: half of the device's memory)."
    )
    max_queue: int = Field(64, ge=1, le=100_000, description="Traces that may wait before POST answers 429.")
    max_jobs: int = Field(2, ge=1, le=1000, description="Jobs that run at once; an `exclusive` one runs alone.")
    job_patience_s: float = Field(
        60.0, gt=0, le=86_400, description="Seconds a job's worker may take to save and stop before it is killed."
    )
    grace_s: float = Field(
        10.0, ge=0, le=3600, description="Seconds a trace with `background: false` outlives its last reader."
    )
    client_timeout_s: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="Seconds a client may take for the head of a request, or be silent in its body.",
    )
    hub_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds the hub may take to list a checkpoint's files (for 10 MB: ten times as many).",
    )
    ping_s: float = Field(
        15.0, gt=0, le=300, description="Seconds of silence after which an event stream sends a comment."
    )
    dead_after_s: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description="Seconds without a heartbeat after which other servers on the database end this one's traces.",
    )
    allowed_hosts: StringList = Field((), description="More `Host` names to accept, separated by commas.")
    allowed_roots: PathList = Field((), description="Folders beside the home that checkpoints may be read from.")
    cors_origins: StringList = Field((), description="Origins that may call from a browser, separated by commas.")
    log_format: Literal["text", "json"] = Field("text", description="Form of the log lines on stderr.")
    access_log: bool = Field(True, description="Whether there is a log line for every answered request.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("allowed_hosts", "allowed_roots", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("home", mode="after")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        if "\0" in str(value):
            raise ValueError("must not contain the NUL character")
        try:
            return value.expanduser().absolute()
        except (RuntimeError, OSError) as error:  # no HOME and no such user; no current folder
            raise ValueError(f"{value} leads nowhere ({str(error).rstrip('.')}); set it to a folder of yours") from None

    @field_validator("home", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if value == "":
            raise ValueError("is empty; set it to a folder of yours, or unset it")
        return value

    @field_validator("api_key", mode="after")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]{1,1000}", value.get_secret_value()):
            raise ValueError("must be 1 to 1000 visible ASCII characters without spaces; unset it to ask for no key")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _known_database(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):
            raise ValueError(
                "not a database URL; write sqlite:///path or postgresql://user:password@host/name"
            ) from None
        if url.drivername not in ("sqlite", "postgresql", "postgres", "postgresql+psycopg") or not url.database:
            raise ValueError("only sqlite:///path and postgresql://user:password@host/name are supported")
        return value.replace("postgres://", "postgresql://", 1)

    @model_validator(mode="after")
    def _others_need_a_key(self) -> Settings:
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"OMNI_R1_HOST={self.host} would let other machines in, and nobody is asked for a key: "
                "set OMNI_R1_API_KEY, or use 127.0.0.1 (and an SSH tunnel from elsewhere)"
            )
        return self

    @property
    def sqlalchemy_url(self) -> str:
        """The database in use, as SQLAlchemy spells it."""
        return self.database_url or f"sqlite:///{self.home / 'omni-r1.db'}"


def is_loopback(host: str) -> bool:
    """Whether binding `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_settings(**overrides: object) -> Settings:
    """Settings from the environment, `overrides` on top; raises :class:`SettingsError` with one line."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | FOREIGN
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]}; the known ones are {', '.join(sorted(known - FOREIGN))}")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = PREFIX + str(first["loc"][0]).upper() + ": " if first["loc"] else ""
        raise SettingsError(name + first["msg"].removeprefix("Value error, ")) from None
