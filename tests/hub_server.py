"""A small Hugging Face Hub on loopback: models, Spaces and, to be read, data sets over HTTP, with four faults.

It holds everything in memory and serves what huggingface_hub requests to create, push, list and download. Files named
`*.safetensors` go through Git LFS, never through Xet. A test makes this process its client:

    with HubServer() as hub:
        hub.tokens["hf_ann"] = {"ann"}
        hub.put("ann/model", {"config.json": b"{}"})
        hub.fault("GET /lfs/", "cut")
        client_here(monkeypatch, hub, tmp_path, "hf_ann")
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

__all__ = ["Fault", "HubServer", "Repo", "client_here"]


_REVISION = r"refs/pr/\d+|refs/convert/parquet|[^/]+"


@dataclass(frozen=True)
class Commit:
    """An immutable snapshot of a repository."""

    oid: str
    files: Mapping[str, bytes]
    message: str


@dataclass
class Repo:
    """One model repository: commits by id, branches (and `refs/pr/N`) as commit ids."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def head(self, revision: str = "main") -> Commit:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return dict(self.head(revision).files)

    def commit(
        self,
        changes: Mapping[str, bytes],
        message: str,
        revision: str = "main",
        branch: str = "",
        deleted: Sequence[str] = (),
    ) -> Commit:
        """Commit on top of a revision, and let `branch` (or that revision) stand for it."""
        files = {**(self.files(revision) if self.branches else {}), **changes}
        for name in deleted:
            del files[name]
        text = f"{len(self.commits)} {message} {sorted((name, _sha256(data)) for name, data in files.items())}"
        commit = Commit(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), files, message)
        self.commits[commit.oid] = commit
        self.branches[branch or revision] = commit.oid
        return commit


class Refusal(Exception):
    """A response with an error status, in the Hub's form."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """Spoils responses to requests whose "METHOD path" matches: a status, a body cut in half, or one altered byte."""

    match: str
    kind: int | Literal["cut", "altered"]
    times: int


class HubServer:
    """A Hub that lives as long as the `with` block.

    Attributes:
        url: HF_ENDPOINT of its clients.
        tokens: Token to the namespaces that its owner writes to.
        repos: Repositories by `user/name`, a Space's by `spaces/user/name`.
        requests: "METHOD path" of every request, oldest first.
    """

    def __init__(self) -> None:
        self.tokens: dict[str, set[str]] = {}
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.objects: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._lfs_url = f"http://localhost:{self._server.server_port}/lfs"  # large files are on another host

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, repo_id: str, files: Mapping[str, bytes], private: bool = False) -> str:
        """Commit files to main without a client; returns the commit's id."""
        return self.repos.setdefault(repo_id, Repo(private)).commit(files, "planted").oid

    def fault(self, match: str, kind: int | Literal["cut", "altered"], times: int = 1000) -> Fault:
        """Spoil the next responses to requests that match; `times = 0` ends it."""
        fault = Fault(match, kind, times)
        self._faults.append(fault)
        return fault

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[Reply, bool]:
        """The response to a request, and whether it is to be cut short."""
        url = urlsplit(target)
        path, query = unquote(url.path), {key: values[0] for key, values in parse_qs(url.query).items()}
        with self._lock:
            self.requests.append(f"{method} {path}")
            fault = next((f for f in self._faults if f.times > 0 and re.search(f.match, f"{method} {path}")), None)
            if fault is not None:
                fault.times -= 1
            try:
                if fault is not None and isinstance(fault.kind, int):
                    raise Refusal(fault.kind, "Something is wrong on purpose")
                reply = self._route(method, path, query, headers, body)
            except Refusal as refusal:
                reply = _json({"error": str(refusal)}, refusal.status, refusal.headers)
        if (part := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range") or "")) and reply.status == 200:
            first, last = int(part[1]), int(part[2] or len(reply.body) - 1)
            reply.headers["Content-Range"] = f"bytes {first}-{last}/{len(reply.body)}"
            reply.status, reply.body = 206, reply.body[first : last + 1]
        if fault is not None and fault.kind == "altered":
            reply.body = reply.body[:-1] + bytes([reply.body[-1] ^ 1])
        return reply, fault is not None and fault.kind == "cut"

    def _route(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> Reply:
        user = self._namespaces(headers)
        if found := re.fullmatch(r"/lfs/(\w{64})", path):
            if method == "PUT":
                assert _sha256(body) == found[1]
                self.objects[found[1]] = body
                return Reply()
            return Reply(200, self.objects[found[1]], {"ETag": f'"{found[1]}"'})
        if found := re.fullmatch(r"/((?:spaces/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._writable(found[1], user)
            return self._lfs_links(json.loads(body)["objects"])
        if found := re.fullmatch(rf"(?:/datasets)?/([^/]+/[^/]+)/resolve/({_REVISION})/(.+)", path):
            return self._file(self._readable(found[1], user), found[2], found[3])
        if found := re.fullmatch(rf"/api/datasets/([^/]+/[^/]+)(?:/(\w[\w-]*)/({_REVISION})(?:/(.+))?)?", path):
            commit = self._readable(found[1], user).head(found[3] or "main")
            return _listing(commit, found[1], found[2], found[4] or "", parse_qs(body.decode()))
        if path == "/api/repos/create":
            return self._create(json.loads(body), user)
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        path = path.replace("/api/spaces/", "/api/models/spaces/")
        if found := re.fullmatch(r"/api/models/((?:spaces/)?[^/]+/[^/]+)/(\w+)/(.+)", path):
            repo_id, what, revision = found.groups()
            if what == "tree":
                files = self._readable(repo_id, user).files(revision)
                return _json(
                    [{"type": "file", "oid": _etag(n, d), "size": len(d), "path": n} for n, d in files.items()]
                )
            repo = self._writable(repo_id, user)
            if what == "branch":
                if revision in repo.branches:
                    raise Refusal(409, f"Reference refs/heads/{revision} already exists")
                repo.branches[revision] = repo.branches["main"]
                return _json({})
            if what == "preupload":
                modes = [(file["path"], _is_large(file["path"])) for file in json.loads(body)["files"]]
                files = repo.files(revision)
                return _json(
                    {
                        "files": [
                            {
                                "path": name,
                                "uploadMode": "lfs" if large else "regular",
                                "shouldIgnore": False,
                                "oid": _etag(name, files[name]) if name in files else None,
                            }
                            for name, large in modes
                        ]
                    }
                )
            if what == "commit":
                return self._commit(repo_id, repo, revision, body, "create_pr" in query)
        raise Refusal(404, f"This server has no {method} {path}")

    def _namespaces(self, headers: Mapping[str, str]) -> set[str] | None:
        if "Authorization" not in headers:
            return None
        token = headers["Authorization"].removeprefix("Bearer ")
        if token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def _readable(self, repo_id: str, user: set[str] | None) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and repo_id.split("/")[-2] not in (user or ())):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def _writable(self, repo_id: str, user: set[str] | None) -> Repo:
        repo = self._readable(repo_id, user)
        if repo_id.split("/")[-2] not in (user or ()):
            raise Refusal(403, "Forbidden")
        return repo

    def _create(self, request: Mapping[str, Any], user: set[str] | None) -> Reply:
        repo_id = f"{request['organization']}/{request['name']}"
        if request["organization"] not in (user or ()):
            raise Refusal(403, "You don't have the rights to create a model under this namespace")
        if request.get("type") == "space":
            repo_id = f"spaces/{repo_id}"
        url = {"url": f"{self.url}/{repo_id}"}
        if repo_id in self.repos:
            return _json({"error": "You already created this model repo", **url}, 409)
        self.repos[repo_id] = Repo(bool(request.get("private")) or request.get("visibility") == "private")
        self.repos[repo_id].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return _json(url)

    def _lfs_links(self, objects: list[dict[str, Any]]) -> Reply:
        links = []
        for item in objects:
            link = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.objects:
                link["actions"] = {"upload": {"href": f"{self._lfs_url}/{item['oid']}", "header": {}}}
            links.append(link)
        return _json({"transfer": "basic", "objects": links})

    def _commit(self, repo_id: str, repo: Repo, revision: str, body: bytes, create_pr: bool) -> Reply:
        changes, gone, message = dict[str, bytes](), list[str](), ""
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                gone.append(value["path"])
            else:
                assert entry["key"] == "lfsFile"
                changes[value["path"]] = self.objects[value["oid"]]
        number = sum(name.startswith("refs/pr/") for name in repo.branches) + 1
        commit = repo.commit(changes, message, revision, f"refs/pr/{number}" if create_pr else "", gone)
        pull = {"pullRequestUrl": f"{self.url}/{repo_id}/discussions/{number}"} if create_pr else {}
        url = f"{self.url}/{repo_id}/commit/{commit.oid}"
        return _json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": "", **pull})

    def _file(self, repo: Repo, revision: str, name: str) -> Reply:
        commit = repo.head(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if name not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        data = commit.files[name]
        if not _is_large(name):
            return Reply(200, data, {**headers, "ETag": f'"{_etag(name, data)}"'})
        self.objects[_sha256(data)] = data
        linked = {"X-Linked-Etag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
        return Reply(302, b"", {**headers, **linked, "Location": f"{self._lfs_url}/{_sha256(data)}"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        reply, cut = self.hub.respond("GET" if self.command == "HEAD" else self.command, self.path, self.headers, body)
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if cut else reply.body)
        self.close_connection = cut

    do_GET = do_HEAD = do_POST = do_PUT = _serve


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _etag(name: str, data: bytes) -> str:
    """sha256 of a large file, git's blob id of any other: the file's name in the client's cache."""
    blob = b"blob %d\0" % len(data) + data
    return _sha256(data) if _is_large(name) else hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _listing(commit: Commit, repo_id: str, what: str | None, below: str, form: Mapping[str, list[str]]) -> Reply:
    """What a data set's repository holds: all of it, the files and folders below a path, or some paths."""
    if what in (None, "revision"):
        siblings = [{"rfilename": name} for name in commit.files]
        return _json({"id": repo_id, "sha": commit.oid, "private": False, "tags": [], "siblings": siblings})
    folders = {str(p) for name in commit.files for p in PurePosixPath(name).parents if str(p) != "."}
    entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
    entries += [{"type": "file", "oid": _etag(n, d), "size": len(d), "path": n} for n, d in commit.files.items()]
    if what == "paths-info":
        return _json([entry for entry in entries if entry["path"] in form["paths"]])
    return _json([entry for entry in entries if not below or str(entry["path"]).startswith(f"{below}/")])


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def client_here(monkeypatch: pytest.MonkeyPatch, hub: HubServer, home: Path, token: str) -> None:
    """Point this process's huggingface_hub at the server for one test.

    Functions such as `huggingface_hub.create_repo`, methods of an `HfApi` made at import, keep their address.
    """
    from huggingface_hub import constants

    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "HUGGING_FACE_HUB_TOKEN":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", token)
