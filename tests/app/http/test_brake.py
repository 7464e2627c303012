"""The rate limit of login attempts."""

from __future__ import annotations

from app.http.brake import EVERYWHERE, LIMIT, MOST_ADDRESSES, WINDOW_S, Brake
from tests.app.conftest import Serve, is_problem


async def test_wrong_logins_are_limited_bearer_keys_not(serve: Serve) -> None:
    key = "the-right-key-of-this-server"
    async with serve(api_key=key) as server:
        for _ in range(LIMIT):
            is_problem(await server.client.post("/login", json={"key": "wrong"}), 401, "wrong_key")
        braked = await server.client.post("/login", json={"key": key})
        is_problem(braked, 429, "too_many_tries")
        assert 0 < int(braked.headers["retry-after"]) <= WINDOW_S
        form = await server.client.post("/login", data={"key": "wrong"})
        assert form.status_code == 429
        assert "too many wrong keys" in form.text.lower()
        answer = await server.client.get("/v1/traces", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200


def test_limit_expires_and_is_bounded() -> None:
    now = 1000.0
    brake = Brake(clock=lambda: now)
    for _ in range(LIMIT - 1):
        brake.note_wrong("10.0.0.1")
    assert brake.wait_s("10.0.0.1") == 0
    brake.note_wrong("10.0.0.1")
    assert brake.wait_s("10.0.0.1") == WINDOW_S
    assert brake.wait_s("10.0.0.2") == 0
    now += WINDOW_S
    assert brake.wait_s("10.0.0.1") == 0
    for number in range(MOST_ADDRESSES + 50):
        brake.note_wrong(f"10.1.{number // 256}.{number % 256}")
    assert len(brake._wrong) == MOST_ADDRESSES
    assert brake.wait_s("10.9.9.9") > 0, "so many wrong keys from everywhere brake everybody"
    assert EVERYWHERE > LIMIT


def test_ipv6_network_counts_as_one_address() -> None:
    brake = Brake(clock=lambda: 0.0)
    for number in range(LIMIT):
        brake.note_wrong(f"2001:db8::{number:x}")
    assert brake.wait_s("2001:db8::ffff") > 0
    assert brake.wait_s("2001:db8:1::1") == 0
