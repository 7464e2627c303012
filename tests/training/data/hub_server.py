"""A small hub: the addresses that `huggingface_hub` asks for a data set, answered from memory."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """One data set; every `push` is a commit, and `fetched` names the files that were sent."""

    daemon_threads = True

    def __init__(self, repo: str = "lab/shapes") -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repo = repo
        self.commits: list[str] = []
        self.files: dict[str, dict[str, bytes]] = {}
        self.fetched: list[str] = []
        self.silent = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, files: dict[str, bytes]) -> str:
        """Commit these files as the whole data set."""
        commit = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits.append(commit)
        self.files[commit] = files
        return commit

    def commit(self, revision: str) -> str:
        return self.commits[-1] if revision in ("main", "refs/convert/parquet") else revision


class _Answers(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = urlsplit(self.path).path, self.server
        if hub.silent:
            self.rfile.read()  # until the client gives up
            return
        about, files = f"/api/datasets/{hub.repo}", f"/datasets/{hub.repo}/resolve/"
        if path == about or path.startswith(f"{about}/revision/"):
            commit = hub.commit(unquote(path.removeprefix(about).removeprefix("/revision/")) or "main")
            self._json({"id": hub.repo, "sha": commit} if commit in hub.files else None)
        elif path.startswith(f"{about}/tree/"):
            found = hub.files.get(hub.commit(path.removeprefix(f"{about}/tree/")))
            self._json(None if found is None else [_entry(name, data) for name, data in found.items()])
        elif path.startswith(files):
            commit, _, name = path.removeprefix(files).partition("/")
            self._file(hub.commit(unquote(commit)), unquote(name))
        else:
            self._json(None)

    def _file(self, commit: str, name: str) -> None:
        data = self.server.files.get(commit, {}).get(name)
        if data is None:
            self._json(None)
            return
        self._send(data, {"ETag": f'"{_hash(data)}"', "X-Repo-Commit": commit})
        if self.command == "GET":
            self.server.fetched.append(name)

    def _json(self, value: object) -> None:
        status = 404 if value is None else 200
        answer = {"error": "not found"} if value is None else value
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": _hash(data)}


def _hash(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
