"""Files and folders in a bucket: whole or absent, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from app.store import bucket as bucket_module
from app.store.bucket import PART_BYTES, Bucket, NoObject, StoreDown, StoreError, StoreRefused
from app.store.trees import WHOLE, Changed, Damaged, delete_tree, download_tree, tree_entries, upload_tree
from tests.app.store.s3 import S3


@pytest.fixture(params=["s3", "file"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    """A bucket, and a folder that stands for one."""
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3")
        return Bucket(s3.url)
    return Bucket(f"file://{tmp_path}/store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a job leaves it, with one file of several parts."""
    found = tmp_path / "folder"
    (found / "train").mkdir(parents=True)
    (found / "checkpoints" / "other").mkdir(parents=True)
    (found / "manifest.json").write_text("{}")
    (found / "train" / "state.pt").write_bytes(os.urandom(2 * PART_BYTES + 77))
    (found / "empty.txt").touch()
    (found / "checkpoints" / "other" / "model.safetensors").write_bytes(b"weights")
    (found / "worker.lock").write_text("mine")
    (found / "link").symlink_to(found / "manifest.json")
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_come_back_and_go(bucket: Bucket, tmp_path: Path) -> None:
    bucket.probe()
    file = tmp_path / "file"
    file.write_bytes(os.urandom(PART_BYTES + 1))
    bucket.upload(file, "images/ab/file.png")
    assert bucket.read("images/ab/file.png") == file.read_bytes()
    assert b"".join(bucket.pieces("images/ab/file.png", PART_BYTES + 1)) == file.read_bytes()
    assert list(bucket.keys("images")) == [["images/ab/file.png"]]
    for _ in range(2):  # also what is gone
        bucket.delete(["images/ab/file.png", "images/never"])
    with pytest.raises(NoObject):
        bucket.read("images/ab/file.png")
    assert [key for keys in bucket.keys("") for key in keys] == []  # the probe left nothing
    with pytest.raises(FileNotFoundError):
        bucket.upload(tmp_path / "missing", "x")


def alone(name: str) -> bool:
    return not name.startswith("checkpoints/")


def test_folder_is_the_same_elsewhere(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    upload_tree(bucket, folder, "jobs/one", alone)
    upload_tree(bucket, folder / "checkpoints" / "other", "jobs/one/checkpoints/other")
    download_tree(bucket, "jobs/one", tmp_path / "copy")
    left_out = {"worker.lock", "link", "checkpoints/other/model.safetensors"}
    assert files(tmp_path / "copy") == {name: data for name, data in files(folder).items() if name not in left_out}
    delete_tree(bucket, "jobs/one", alone)
    with pytest.raises(NoObject):
        download_tree(bucket, "jobs/one", tmp_path / "none")
    assert {entry.name for entry in tree_entries(bucket, "jobs/one/checkpoints/other")} == {"model.safetensors"}


def test_only_what_changed_is_sent_again(s3: S3, folder: Path) -> None:
    bucket = Bucket(s3.url)
    assert upload_tree(bucket, folder, "jobs/one") > 2 * PART_BYTES
    (folder / "manifest.json").write_text('{"more": 1}')
    s3.requests.clear()
    assert upload_tree(bucket, folder, "jobs/one") == len('{"more": 1}')
    sent = [key for method, key in s3.requests if method == "PUT"]
    assert sent == ["lab/jobs/one/manifest.json", f"lab/jobs/one/{WHOLE}"]  # the list last
    s3.requests.clear()
    assert upload_tree(bucket, folder, "jobs/one") == 0
    assert [method for method, _ in s3.requests] == ["GET"]
    (folder / "train" / "state.pt").unlink()
    assert upload_tree(bucket, folder, "jobs/one") == 0
    assert "lab/jobs/one/train/state.pt" not in s3.objects
    assert "train/state.pt" not in {entry.name for entry in tree_entries(bucket, "jobs/one")}


@pytest.mark.parametrize("change", ["goes", "grows", "folder goes"])
def test_folder_that_changes_is_not_whole(s3: S3, folder: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    bucket, plain = Bucket(s3.url), Bucket.upload

    def upload(self: Bucket, file: Path, key: str) -> None:
        if change == "folder goes":
            shutil.rmtree(folder)
        elif change == "goes":
            file.unlink()
        plain(self, file, key)
        file.write_bytes(b"more than there was")

    monkeypatch.setattr(Bucket, "upload", upload)
    with pytest.raises(Changed):
        upload_tree(bucket, folder, "jobs/one")
    with pytest.raises(NoObject):
        tree_entries(bucket, "jobs/one")


@pytest.mark.parametrize("after", [1, 3, 5])
def test_interrupted_upload_shows_nothing(s3: S3, folder: Path, tmp_path: Path, after: int) -> None:
    bucket = Bucket(s3.url)
    upload_tree(bucket, folder, "c/one")
    for name in files(folder):
        if name not in ("link", "worker.lock"):
            (folder / name).write_bytes(b"another content of " + name.encode())
    writes = [0]
    plain = bucket._obstore.put

    class Dies:
        """obstore, until a number of objects is written."""

        exceptions = bucket._obstore.exceptions
        get, delete = bucket._obstore.get, bucket._obstore.delete

        @staticmethod
        def put(*arguments: object, **options: object) -> object:
            writes[0] += 1
            if writes[0] == after:
                raise KeyboardInterrupt
            return plain(*arguments, **options)  # type: ignore[arg-type]

    bucket._obstore = Dies  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        upload_tree(bucket, folder, "c/one")
    whole = Bucket(s3.url)
    with pytest.raises(NoObject):
        download_tree(whole, "c/one", tmp_path / "half")
    assert not (tmp_path / "half").exists()
    upload_tree(whole, folder, "c/one")
    download_tree(whole, "c/one", tmp_path / "copy")
    assert (tmp_path / "copy" / "train" / "state.pt").read_bytes() == b"another content of train/state.pt"


@pytest.mark.parametrize("harm", ["truncated", "longer", "other", "missing", "empty"])
def test_damaged_object_is_noticed(s3: S3, folder: Path, tmp_path: Path, harm: str) -> None:
    bucket = Bucket(s3.url)
    upload_tree(bucket, folder, "c/one")
    key = "lab/c/one/train/state.pt"
    data = s3.objects.pop(key)
    harmed = {"truncated": data[:-9], "longer": data + b"x", "other": b"x" + data[1:], "empty": b""}
    if harm != "missing":
        s3.objects[key] = harmed[harm]
    if harm == "longer":  # what was uploaded is there, whole
        download_tree(bucket, "c/one", tmp_path / "copy")
        assert (tmp_path / "copy" / "train" / "state.pt").read_bytes() == data
    else:
        with pytest.raises(StoreDown):
            download_tree(bucket, "c/one", tmp_path / "copy")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "", "a//b", "a\0b"])
def test_list_with_a_name_outside_is_damaged(s3: S3, tmp_path: Path, name: str) -> None:
    bucket = Bucket(s3.url)
    facts = {"size": 1, "sha256": "0" * 64}
    s3.objects[f"lab/c/one/{WHOLE}"] = json.dumps({"files": {name: facts}}).encode()
    for listed in (json.dumps({"files": {name: facts}}), "[]", "{", '{"files": {"a": {}}}', '{"files": {"a": 1}}'):
        s3.objects[f"lab/c/one/{WHOLE}"] = listed.encode()
        with pytest.raises(Damaged):
            download_tree(bucket, "c/one", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "InvalidAccessKeyId", StoreRefused),
        (403, "AccessDenied", StoreRefused),
        (404, "NoSuchBucket", StoreRefused),
        (503, "SlowDown", StoreDown),
        (500, "InternalError", StoreDown),
    ],
)
def test_answers_tell_a_refusal_from_a_failure(s3: S3, status: int, code: str, expected: type[StoreError]) -> None:
    bucket = Bucket(s3.url)
    with s3.refusing(status, code):
        for call, error in (
            (bucket.probe, expected),
            (lambda: bucket.read("a"), expected),
            (lambda: bucket.delete(["a"]), StoreError),
            (lambda: list(bucket.keys("")), StoreError),
        ):
            with pytest.raises(error) as caught:
                call()
            assert "\n" not in str(caught.value)
            assert "secret" not in str(caught.value)
            assert s3.url in str(caught.value)
    bucket.probe()


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
@pytest.mark.parametrize(
    "value",
    [
        "127.0.0.1:1",
        "minio:9000",
        "",
        "http://",
        "http://:80",
        "http://a b",
        "ftp://x",
        "http://x:99999",
        "http://[::1",
    ],
)
def test_malformed_endpoints_are_refused(s3: S3, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreRefused, match=rf"^{name} must be like https://host:port[^\n]*$"):
        Bucket(s3.url)


@pytest.mark.parametrize("value", ["http://minio:9000", "https://my_store", "HTTP://[::1]:9/a/b-c/", "https://1.2.3.4"])
def test_endpoints_of_all_forms_are_taken(s3: S3, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    Bucket(s3.url)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"])
def test_values_that_cannot_be_sent_are_refused(s3: S3, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "secret\n")
    with pytest.raises(StoreRefused, match=name) as caught:
        Bucket(s3.url).probe()
    assert "secret" not in str(caught.value)


def test_panic_in_rust_is_a_refusal(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "_is_endpoint", lambda _value: True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:1")
    bucket = Bucket(s3.url)
    with pytest.raises(StoreRefused, match="cannot be used"):
        bucket.probe()


def test_missing_credentials_are_named(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # this machine has no role
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    with pytest.raises(StoreRefused, match=f"{wanted} belong together"):
        Bucket(s3.url)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreRefused, match=f"{wanted} belong together"):
        Bucket(s3.url)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreDown, match=f"there are no credentials: set {wanted}") as caught:
        Bucket(s3.url).probe()
    assert "http" not in str(caught.value)


def test_malformed_options_are_refused(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "perhaps")
    with pytest.raises(StoreRefused, match="perhaps"):
        Bucket(s3.url)


def test_silent_and_absent_stores_are_down(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "SILENT_S", 0.3)
    bucket = Bucket(s3.url)
    s3.gate.clear()
    with pytest.raises(StoreDown):
        bucket.read("a")
    s3.gate.set()
    s3.down()
    with pytest.raises(StoreDown):
        Bucket(s3.url).probe()
    s3.up()
    Bucket(s3.url).probe()
