"""The keys of a running server: OMNI_R1_API_KEY, an admin, and the named ones in the database.

A named key works within :data:`FRESH_S` seconds of its creation, and stops within as many of its revocation, sessions
included; while the database is away, those known last work on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from app.common import pools
from app.http.auth import ApiKey
from app.storage.keys import USED_EVERY, Caller, KeyStore, StoredKey, find

log = logging.getLogger("omni_r1.keys")

FRESH_S = 2.0
ADMIN = Caller(None, "admin")


class Keys:
    """Finds the caller of a request, and signs browsers in."""

    def __init__(self, main: ApiKey, store: KeyStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.main = main
        self._store = store
        self._clock = clock
        self._known: list[StoredKey] = []
        self._read_at: float | None = None
        self._used_at: dict[str, float] = {}
        self._reading = asyncio.Lock()

    async def caller_of(self, headers: Headers) -> Caller | None:
        """Whose key or valid cookie the headers carry; None without either."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (found := await self.holder_of(given.strip().encode("latin-1"))) is not None:
            return found
        for header in headers.getlist("cookie"):
            value = cookie_parser(header).get(self.main.cookie_name)
            owner = None if value is None else self.main.cookie_owner(value)
            if owner == "":
                return ADMIN
            if owner is not None:
                for key in await self._named():
                    if key.id == owner:
                        return await self._used(key)
        return None

    async def log_in(self, secret: bytes) -> str | None:
        """The cookie of a session with this key; None for a wrong one."""
        if self.main.is_key(secret):
            return self.main.new_cookie()
        key = find(await self._named(), secret)
        return None if key is None else self.main.new_cookie(key.id)

    async def holder_of(self, secret: bytes) -> Caller | None:
        """Whose key this is."""
        if self.main.is_key(secret):
            return ADMIN
        key = find(await self._named(), secret)
        return None if key is None else await self._used(key)

    async def _named(self) -> list[StoredKey]:
        async with self._reading:
            now = self._clock()
            if self._read_at is None or now - self._read_at > FRESH_S:
                try:
                    self._known = await pools.reads.run(self._store.all)
                except Exception as error:
                    log.error("the keys cannot be read: %s", str(error).splitlines()[0])
                self._read_at = self._clock()
            return self._known

    async def _used(self, key: StoredKey) -> Caller:
        """Note the use, once a minute."""
        name, now = key.caller.name or "", self._clock()
        if now - self._used_at.get(name, -1e9) > USED_EVERY.total_seconds():
            self._used_at[name] = now
            try:
                await pools.writes.run(self._store.note_use, name)
            except Exception as error:
                log.warning("the use of the key %s cannot be noted: %s", name, str(error).splitlines()[0])
        return key.caller
