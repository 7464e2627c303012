"""Server settings: environment variables with the prefix ``OMNI_R1_``, read once, rejected when unsafe.

``Settings()`` raises pydantic's ``ValidationError``; :func:`read_settings` turns that into one actionable line
(``SettingsError``, exit code 2).
"""

from __future__ import annotations

import ipaddress
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from app.common.prefix import checked_prefix
from model.config import LONGEST_CONTEXT
from model.quantisation import QuantKind
from model.speculation import WIDEST, WINDOW

PREFIX = "OMNI_R1_"
# Variables with the same prefix that other parts of the project use (client, tests, installation).
FOREIGN = frozenset(
    {"OMNI_R1_URL", "OMNI_R1_REQUIRE_BROWSER", "OMNI_R1_REQUIRE_GENERATORS", "OMNI_R1_REQUIRE_POSTGRES"}
)

# A name or address, perhaps with a port; or an IPv6 address without brackets.
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?|(?:[0-9A-Fa-f]*:){2,}[0-9A-Fa-f.]*")
_STORE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.~-]+)*/?|file://(/[\w.~-]+)+/?", re.ASCII)

StringList = Annotated[tuple[str, ...], NoDecode]
PathList = Annotated[tuple[Path, ...], NoDecode]


# By the type of pydantic's error; none of these fields holds a secret.
_FORMS = {"bool_parsing": "1 (yes) or 0 (no)", "int_parsing": "a whole number", "float_parsing": "a number"}


class SettingsError(ValueError):
    """The environment holds an invalid or unsafe value; the message is one line."""


class Settings(BaseSettings):
    """All settings of the server; each field is ``OMNI_R1_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    home: Path = Field(Path("~/.omni-r1"), description="Folder for the database, images and checkpoints (mode 0700).")
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to bind; non-loopback addresses require an API key."
    )
    port: int = Field(7860, ge=0, le=65535, description="Port to bind; 0 picks a free one.")
    api_key: SecretStr | None = Field(
        None, description="Key that callers send as a bearer token or enter once at /login."
    )
    database_url: str | None = Field(
        None,
        repr=False,
        description="Database URL instead of the home's `omni-r1.db`: `sqlite:///…` or `postgresql://…`.",
    )
    store: str | None = Field(
        None,
        description="Object store that gets the home's images, checkpoints and job folders, `s3://bucket/prefix` or "
        "`file:///folder` (default: none).",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Device the engine runs on.")
    engine: Literal["local", "ray"] = Field(
        "local", description="Where the engine runs: `local`, a child process, or `ray`, actors of a Ray cluster."
    )
    replicas: int = Field(1, ge=1, le=1000, description="Engines on the Ray cluster, each with every checkpoint.")
    gpus_per_replica: float | None = Field(
        None, ge=0, le=64, description="GPUs of each replica (default: 1 where the cluster has GPUs, else 0)."
    )
    retry: bool = Field(
        False, description="`1`: traces of a replica that dies go on in another one; otherwise they fail."
    )
    checkpoint: str | None = Field(
        None, description="Checkpoint to start with: a name, a folder or a hub id (default: the last active one)."
    )
    memory_mb: int | None = Field(
        None,
        ge=1,
        description="Memory budget in MiB for loaded checkpoints (default: what fits; idle ones keep to half of the "
        "device).",
    )
    speculation: int = Field(
        WINDOW,
        ge=0,
        le=WIDEST,
        description=f"Most codes of an image that one forward pass may give, 0 to {WIDEST}; 0 means one.",
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Precision of the served weights; auto: fp32 on a CPU, else bf16."
    )
    quant: QuantKind | None = Field(
        None,
        description="Form of the served matrices in memory, `int8` or `fp8`: one byte a number (default: as `dtype`).",
    )
    kv_mb: int | None = Field(
        None,
        ge=1,
        description="MiB for the keys and values of each loaded checkpoint (default: what the device, or half of it "
        "where that is ample, has beside its weights, at most 16 contexts).",
    )
    context: int | None = Field(
        None,
        ge=64,
        le=LONGEST_CONTEXT,
        description="Tokens of a trace's context (default: the checkpoint's own; with pages what its budget holds).",
    )
    jobs: Literal["local", "ray"] = Field(
        "local", description="Where jobs run: `local`, on this machine, or `ray`, on the cluster of `RAY_ADDRESS`."
    )
    max_queue: int = Field(64, ge=1, le=100_000, description="Queued traces before POST answers 429.")
    cpu_ranks: int = Field(
        1, ge=1, le=64, description="Processes that a job with `num_gpus` may have on a machine without GPUs."
    )
    max_jobs: int = Field(
        2, ge=1, le=1000, description="Jobs that run in parallel; an `exclusive` job runs alone, except on a cluster."
    )
    job_patience_s: float = Field(
        60.0, gt=0, le=86_400, description="Seconds for a job's worker to save and stop before it is killed."
    )
    grace_s: float = Field(
        10.0, ge=0, le=3600, description="Seconds a trace with `background: false` outlives its last reader."
    )
    client_timeout_s: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="Seconds for a client to send the request head, and maximum pause within the body.",
    )
    hub_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds for the hub to list a checkpoint's files (and ten times that per 10 MB).",
    )
    ping_s: float = Field(
        15.0, gt=0, le=300, description="Seconds of silence before an event stream sends a keep-alive comment."
    )
    dead_after_s: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description="Seconds without a heartbeat before other servers on the database end this one's traces.",
    )
    keep_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="Days after its end that a trace is kept, unless rated, tagged or annotated (default: for ever).",
    )
    home_max_gb: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="Size of the home, in GB, above which the oldest such traces are deleted (default: no limit).",
    )
    pages: bool = Field(True, description="`0` serves the API alone: no pages, and Gradio is not loaded.")
    root_path: str = Field(
        "", description="Path prefix under which a proxy shows the studio, such as `/studio` (default: none)."
    )
    allowed_hosts: StringList = Field((), description="Additional accepted `Host` names, comma-separated.")
    allowed_roots: PathList = Field((), description="Folders outside the home that may hold checkpoints.")
    rewards_dir: Path | None = Field(
        None,
        description="Folder, outside the home, whose Python files jobs may use as rewards: anyone who may start "
        "jobs may then run them (default: none).",
    )
    cors_origins: StringList = Field((), description="Origins allowed to call from a browser, comma-separated.")
    log_format: Literal["text", "json"] = Field("text", description="Format of the log lines on stderr.")
    access_log: bool = Field(True, description="Log every answered request.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum log level.")

    @field_validator("allowed_hosts", "allowed_roots", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("home", "rewards_dir", mode="after")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        if "\0" in str(value):
            raise ValueError("must not contain the NUL character")
        try:
            return value.expanduser().absolute()
        except (RuntimeError, OSError) as error:  # no HOME, unknown user, or no current folder
            raise ValueError(
                f"{value} cannot be resolved ({str(error).rstrip('.')}); set it to a folder you own"
            ) from None

    @field_validator("home", "rewards_dir", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if value == "":
            raise ValueError("is empty; set it to a folder you own, or unset it")
        return value

    @field_validator("root_path", mode="after")
    @classmethod
    def _prefix(cls, value: str) -> str:
        return checked_prefix(value)

    @field_validator("allowed_hosts", mode="after")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is not a host name; write it as studio.example, without http:// and path")
        return value

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _callers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            scheme, _, host = origin.rstrip("/").partition("://")
            if origin != "*" and (scheme not in ("http", "https") or not _HOST.fullmatch(host)):
                raise ValueError(f"{origin!r} is not an origin; write it as https://studio.example, without a path")
        return value

    @field_validator("api_key", mode="after")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]{1,1000}", value.get_secret_value()):
            raise ValueError("must be 1 to 1000 visible ASCII characters without spaces; unset it to require no key")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _known_database(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):
            raise ValueError("not a database URL; use sqlite:///path or postgresql://user:password@host/name") from None
        if url.drivername not in ("sqlite", "postgresql", "postgres", "postgresql+psycopg") or not url.database:
            raise ValueError("only sqlite:///path and postgresql://user:password@host/name are supported")
        return value.replace("postgres://", "postgresql://", 1)

    @field_validator("store", mode="after")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value is not None and (not _STORE.fullmatch(value) or re.search(r"/\.{1,2}(/|$)", value)):
            raise ValueError("not a store; use s3://bucket/prefix, or file:///folder")
        return None if value is None else value.rstrip("/")

    @model_validator(mode="after")
    def _others_need_a_key(self) -> Settings:
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"OMNI_R1_HOST={self.host} accepts connections from other machines without a key: "
                "set OMNI_R1_API_KEY, or use 127.0.0.1 (with an SSH tunnel for remote access)"
            )
        return self

    @model_validator(mode="after")
    def _replicas_need_ray(self) -> Settings:
        if self.engine == "local" and (self.replicas > 1 or self.gpus_per_replica is not None or self.retry):
            raise ValueError("OMNI_R1_REPLICAS, OMNI_R1_GPUS_PER_REPLICA and OMNI_R1_RETRY need OMNI_R1_ENGINE=ray")
        return self

    @model_validator(mode="after")
    def _jobs_need_a_cluster(self) -> Settings:
        if self.jobs == "ray" and (lack := lack_of_cluster()) is not None:
            raise ValueError(f"OMNI_R1_JOBS=ray needs {lack}")
        return self

    @model_validator(mode="after")
    def _uploads_are_no_rewards(self) -> Settings:
        if self.rewards_dir is not None:
            home, rewards = self.home.resolve(), self.rewards_dir.resolve()
            if home.is_relative_to(rewards) or rewards.is_relative_to(home):
                raise ValueError("OMNI_R1_REWARDS_DIR must lie outside OMNI_R1_HOME, which holds what callers upload")
        return self

    @model_validator(mode="after")
    def _store_is_elsewhere(self) -> Settings:
        if self.store is not None and self.store.startswith("file:"):
            home, folder = self.home.resolve(), Path(self.store.removeprefix("file://")).resolve()
            if home.is_relative_to(folder) or folder.is_relative_to(home):
                raise ValueError(
                    "OMNI_R1_STORE must lie outside OMNI_R1_HOME, and not around it: its copies would be the files "
                    "themselves"
                )
        return self

    @property
    def serving(self) -> dict[str, Any]:
        """What the engine process takes of these settings."""
        return self.model_dump(include={"device", "speculation", "dtype", "quant", "kv_mb", "context"})

    @property
    def sqlalchemy_url(self) -> str:
        """The URL of the database in SQLAlchemy's spelling."""
        return self.database_url or f"sqlite:///{self.home / 'omni-r1.db'}"


def lack_of_cluster() -> str | None:
    """What jobs on a Ray cluster need and do not have; None if they can ask for one."""
    if not os.environ.get("RAY_ADDRESS"):
        return "RAY_ADDRESS, the host:port of a Ray cluster's head"
    return "Ray: pip install 'omni-r1-studio[ray]'" if find_spec("ray") is None else None


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_settings(**overrides: object) -> Settings:
    """Read the settings from the environment, with `overrides` on top.

    Raises:
        SettingsError: with a message of one line.
    """
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | FOREIGN
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]}; known settings: {', '.join(sorted(known - FOREIGN))}")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = PREFIX + str(first["loc"][0]).upper() + ": " if first["loc"] else ""
        raise SettingsError(
            name + (_unreadable(first) or _bounds(first) or first["msg"].removeprefix("Value error, "))
        ) from None


def _unreadable(error: ErrorDetails) -> str:
    """What a value should look like that cannot be read as its type; "" for any other error."""
    wanted = _FORMS.get(error["type"])
    if wanted is None:
        return ""
    given = str(error["input"]).strip()
    return f"{given!r} must be {wanted}" if given else f"is empty; set it to {wanted}, or unset it"


def _bounds(error: ErrorDetails) -> str:
    """Both bounds of a number that lies outside of them."""
    if error["type"] not in ("greater_than_equal", "less_than_equal"):
        return ""
    bounds = Settings.model_fields[str(error["loc"][0])].metadata
    least, most = (next((getattr(b, k) for b in bounds if hasattr(b, k)), None) for k in ("ge", "le"))
    return "" if least is None or most is None else f"{error['input']} is outside {least} to {most}"
