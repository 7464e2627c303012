"""The one database whose files a store has: others would delete them. The object `owner` holds its id. Blocking."""

from __future__ import annotations

from app.store.bucket import Bucket, NoObject, StoreError, StoreRefused

OWNER = "owner"


class OtherOwner(StoreRefused):
    """The store belongs to another database."""


def check_owner(bucket: Bucket, database_id: str | None) -> bool:
    """Whether the store has an owner; raises OtherOwner unless that is the given one, and StoreError."""
    try:
        found = bucket.read(OWNER)
    except NoObject:
        return False
    if database_id is None or found.strip() != database_id.encode():
        raise OtherOwner(
            f"{bucket.url} has the files of another database: choose another prefix, or to take them over, "
            f"stop the servers of that one and delete {bucket.url}/{OWNER}"
        )
    return True


def claim(bucket: Bucket, database_id: str) -> bool:
    """Make this database the owner of a store that has none; True, or raises as `check_owner`."""
    if not check_owner(bucket, database_id):
        bucket.write(OWNER, f"{database_id}\n".encode())
        check_owner(bucket, database_id)  # another may have claimed it meanwhile
    return True


def refusal(url: str, database_id: str | None) -> str | None:
    """Why this database cannot use a store, in one line; claims nothing and tries once."""
    try:
        bucket = Bucket(url, retries=0)
        check_owner(bucket, database_id)
        bucket.probe()
    except StoreError as error:
        return str(error)
    return None
