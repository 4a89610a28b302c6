"""A small Hugging Face Hub on loopback: model repositories over real HTTP, with faults on demand.

It answers what `huggingface_hub` 0.30 to 2.x asks while creating, pushing, listing and downloading, and keeps all of it
in memory. Large files go through Git LFS, never through Xet: client 2.4 with hf_xet has no way back from Xet, so its
processes need HF_HUB_DISABLE_XET=1, which `client_env` and `client_here` set.

    with HubServer() as hub:
        hub.add_token("hf_ann", "ann")
        hub.put("ann/model", {"config.json": b"{}"})
        hub.fault("GET /ann/model/resolve/", status=503, times=2)
        done = run_client("from huggingface_hub import hf_hub_download; ...", client_env(hub, tmp_path, "hf_ann"))
        assert hub.seen("PUT ") == [] and hub.repo("ann/model").files()["config.json"] == b"{}"

As on the real Hub: a new repository holds a `.gitattributes`; large files are served from another origin (another port
here) through links that need no token; commits are immutable and have 40-digit ids. Unlike it: Xet, datasets, Spaces,
git itself, `.gitignore` rules, merging pull requests and cards' metadata beyond their syntax are absent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pytest
import yaml

__all__ = ["Blob", "Commit", "Fault", "HubServer", "Repo", "Request", "client_env", "client_here", "run_client"]

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
_HEX = re.compile(r"[0-9a-f]{40}")


# ----------------------------------------------------------------- what is stored


@dataclass(frozen=True)
class Blob:
    """One file's bytes, and whether they go through Git LFS."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The text that git stores in place of an LFS file."""
        size = len(self.data)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def git_oid(self) -> str:
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        """sha256 of an LFS file, git's blob id of any other: what names the file in the client's cache."""
        return self.sha256 if self.lfs else self.git_oid

    @property
    def lfs_info(self) -> dict[str, Any]:
        # one endpoint of the Hub says "oid", another "sha256"
        return {
            "oid": self.sha256,
            "sha256": self.sha256,
            "size": len(self.data),
            "pointerSize": len(self.pointer),
        }


@dataclass(frozen=True)
class Commit:
    """An immutable snapshot of a repository."""

    oid: str
    parent: str | None
    files: Mapping[str, Blob]
    message: str
    description: str
    author: str
    date: str


@dataclass
class Pull:
    """A pull request: `refs/pr/N` starts at its base and moves with what is committed to it."""

    title: str
    author: str
    base: str
    head: str


class Repo:
    """One model repository, for tests to read.

    Attributes:
        id: `user/name`.
        private: Seen by its namespace's writers and `readers` only.
        gated: Listed to everybody, downloaded by its namespace's writers and `readers` only.
        readers: Names of further users.
        branches: Branch to commit id; `tags` likewise; `pulls` by number.
        objects: LFS objects by sha256, whether a commit refers to them or not.
    """

    def __init__(self, repo_id: str, author: str, private: bool = False) -> None:
        self.id = repo_id
        self.private = private
        self.gated = False
        self.readers: set[str] = set()
        self.created = _now()
        self.log: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pulls: dict[int, Pull] = {}
        self.objects: dict[str, bytes] = {}
        first = self.commit(None, {".gitattributes": Blob(GITATTRIBUTES, lfs=False)}, "initial commit", author=author)
        self.branches["main"] = first.oid

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def head(self, revision: str = "main") -> Commit:
        """The commit that a branch, a tag, a full commit id or `refs/pr/N` stands for."""
        oid = self.branches.get(revision) or self.tags.get(revision)
        if oid is None and revision.startswith("refs/heads/"):
            oid = self.branches.get(revision.removeprefix("refs/heads/"))
        if oid is None and (number := _pull_number(revision)) in self.pulls:
            oid = self.pulls[number].head
        if oid is None and _HEX.fullmatch(revision) and revision in self.log:
            oid = revision
        if oid is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.log[oid]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Every file at a revision, `.gitattributes` included."""
        return {path: blob.data for path, blob in self.head(revision).files.items()}

    def commits(self, revision: str = "main") -> list[Commit]:
        """The commits that lead to a revision, the latest first."""
        found = [self.head(revision)]
        while (parent := found[-1].parent) is not None:
            found.append(self.log[parent])
        return found

    def commit(
        self,
        parent: Commit | None,
        changes: Mapping[str, Blob | None],
        message: str,
        description: str = "",
        author: str = "somebody",
    ) -> Commit:
        """Add a commit without moving any branch; None as a file's blob removes the file."""
        files = dict(parent.files) if parent else {}
        for path, blob in changes.items():
            if blob is None:
                files.pop(path, None)
            else:
                files[path] = blob
        files = dict(sorted(files.items()))
        date = _now()
        tree = [(path, blob.git_oid) for path, blob in files.items()]
        told = [self.id, parent and parent.oid, message, description, author, date, len(self.log), tree]
        oid = hashlib.sha1(json.dumps(told).encode(), usedforsecurity=False).hexdigest()
        made = Commit(oid, parent.oid if parent else None, MappingProxyType(files), message, description, author, date)
        self.log[oid] = made
        self.objects.update({blob.sha256: blob.data for blob in files.values() if blob.lfs})
        return made

    def move(self, revision: str, commit: Commit) -> None:
        """Let a branch or `refs/pr/N` stand for a commit."""
        number = _pull_number(revision)
        if number in self.pulls:
            self.pulls[number].head = commit.oid
        else:
            self.branches[revision] = commit.oid


# ----------------------------------------------------------------- what is asked and answered


@dataclass
class Request:
    """One request as it came, and the status that it got (0 until it is answered).

    Attributes:
        path: As sent, without the query.
        headers: Names in lower case.
        body: What came with it.
        to_cdn: Whether it went to the origin that serves large files.
        id: The X-Request-Id of the answer.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = field(repr=False)
    to_cdn: bool
    id: str
    status: int = 0

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def target(self) -> str:
        return f"{self.line}?{self.query}" if self.query else self.line

    @property
    def fields(self) -> dict[str, list[str]]:
        return parse_qs(self.query, keep_blank_values=True)

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise _Refusal(400, "The body is not JSON") from None

    def flag(self, name: str) -> bool:
        return self.fields.get(name, ["0"])[0].lower() in ("1", "true")


@dataclass
class _Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _Refusal(Exception):
    """An answer with an error status, told the way the Hub tells it."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def reply(self, **more: Any) -> _Reply:
        plain = str(self).encode("ascii", "replace").decode().replace("\n", " ")
        told = {"X-Error-Message": plain, **({"X-Error-Code": self.code} if self.code else {}), **self.headers}
        return _json({"error": str(self), **more}, self.status, told)


@dataclass
class Fault:
    """What `HubServer.fault` arranged; `hits` counts how often it struck, `stop` ends it."""

    match: str
    status: int | None
    times: int | None
    skip: int
    headers: dict[str, str]
    after_bytes: int | None
    reset: bool
    drop: bool
    truncate: int | None
    alter: bool
    delay: float
    hits: int = 0

    def concerns(self, target: str) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        found = self.match in target
        with suppress(re.error):
            found = found or re.search(self.match, target) is not None
        return found

    def stop(self) -> None:
        self.times = 0


@dataclass(frozen=True)
class _Account:
    user: str
    namespaces: frozenset[str]
    read_only: bool


# ----------------------------------------------------------------- the server


class HubServer:
    """A Hub that lives as long as the `with` block.

    Args:
        lfs_threshold: Files of at least so many bytes are LFS files.
        lfs_patterns: Files that are LFS whatever their size (an empty file never is).
        lfs_chunk: Where given, LFS uploads come in parts of so many bytes ("multipart"), else in one ("basic").
        page_size: Entries a page of a tree or commit listing has.
        hidden_status: Answer about a repository that is absent or private, to somebody without a token; the real Hub
            says 401 there, with the same X-Error-Code as a 404.

    Attributes:
        url: Address of the Hub, HF_ENDPOINT of its clients.
        cdn_url: Address from which LFS files are served and to which they are sent.
        requests: Every request so far, to both addresses, oldest first.
    """

    def __init__(
        self,
        *,
        lfs_threshold: int = 10 * 1024 * 1024,
        lfs_patterns: Sequence[str] = ("*.safetensors",),
        lfs_chunk: int | None = None,
        page_size: int = 1000,
        hidden_status: int = 404,
    ) -> None:
        self.lfs_threshold = lfs_threshold
        self.lfs_patterns = tuple(lfs_patterns)
        self.lfs_chunk = lfs_chunk
        self.page_size = page_size
        self.hidden_status = hidden_status
        self.requests: list[Request] = []
        self.repos: dict[str, Repo] = {}
        self._accounts: dict[str, _Account] = {}
        self._faults: list[Fault] = []
        self._parts: dict[str, dict[int, bytes]] = {}
        self._crashes: list[str] = []
        self._secret = secrets.token_bytes(16)
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._listeners = [_Listener(self, to_cdn=False), _Listener(self, to_cdn=True)]
        self.url, self.cdn_url = (listener.url for listener in self._listeners)
        self._threads = [
            threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True) for listener in self._listeners
        ]

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
        if self._crashes and kind is None:
            raise AssertionError("the server itself failed:\n" + "\n".join(self._crashes))

    # -- for tests

    def add_token(self, token: str, user: str, namespaces: Sequence[str] = (), *, read_only: bool = False) -> None:
        """Let a token stand for a user, who writes to the namespace of that name and to the further ones."""
        self._accounts[token] = _Account(user, frozenset({user, *namespaces}), read_only)

    def repo(self, repo_id: str) -> Repo:
        """A repository that exists.

        Raises:
            KeyError: It does not.
        """
        return self.repos[repo_id]

    def put(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        revision: str = "main",
        message: str = "planted",
        *,
        private: bool | None = None,
    ) -> str:
        """Commit files without any client, making the repository and the branch if they are missing.

        Args:
            repo_id: `user/name`.
            files: Bytes by path; None removes a file.
            revision: A branch or `refs/pr/N`.
            message: The commit's.
            private: Makes the repository private, or public again.

        Returns:
            The commit's id.
        """
        with self._lock:
            author = repo_id.split("/")[0]
            repo = self.repos.setdefault(repo_id, Repo(repo_id, author))
            repo.private = repo.private if private is None else private
            if _pull_number(revision) not in repo.pulls:
                repo.branches.setdefault(revision, repo.branches["main"])
            blobs = {
                path: None if data is None else Blob(data, self._is_lfs(path, len(data)))
                for path, data in files.items()
            }
            commit = repo.commit(repo.head(revision), blobs, message, author=author)
            repo.move(revision, commit)
            return commit.oid

    def fault(
        self,
        match: str,
        *,
        status: int | None = None,
        times: int | None = 1,
        skip: int = 0,
        headers: Mapping[str, str] | None = None,
        after_bytes: int | None = None,
        reset: bool = False,
        drop: bool = False,
        truncate: int | None = None,
        alter: bool = False,
        delay: float = 0.0,
    ) -> Fault:
        """Spoil answers to come; the oldest fault that concerns a request strikes, with all it says.

        Args:
            match: Part of, or a regular expression found in, "METHOD path" or "METHOD path?query".
            status: Answer so instead of doing what was asked (500 where no other argument says what to do).
            times: How often; None for ever.
            skip: Let so many matching requests pass first.
            headers: Added to the answer, e.g. {"Retry-After": "1"}.
            after_bytes: Do what was asked, announce the whole answer, send so many bytes of its body and close the
                connection; 0 is an answer that gets lost.
            reset: Cut with a TCP reset instead of an orderly close; bytes still on their way may be lost with it.
            drop: Close the connection without doing or answering anything; so does `reset` alone.
            truncate: Send so many bytes of the body as if they were all.
            alter: Flip one byte in the middle of the body.
            delay: Seconds to wait before doing what was asked.
        """
        drop = drop or (reset and after_bytes is None)
        silent = after_bytes is None and truncate is None and not (alter or drop or delay or headers)
        fault = Fault(
            match=match,
            status=500 if status is None and silent else status,
            times=times,
            skip=skip,
            headers=dict(headers or {}),
            after_bytes=after_bytes,
            reset=reset,
            drop=drop,
            truncate=truncate,
            alter=alter,
            delay=delay,
        )
        with self._lock:
            self._faults.append(fault)
        return fault

    def seen(self, match: str) -> list[Request]:
        """The requests whose "METHOD path?query" holds a text or matches a regular expression, oldest first."""
        return [r for r in list(self.requests) if match in r.target or re.search(match, r.target)]

    # -- requests

    def _received(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.concerns(request.target):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.hits += 1
                    return fault
        return None

    def _reply(self, request: Request, fault: Fault | None) -> _Reply:
        if fault is not None and fault.delay:
            self._closing.wait(fault.delay)
        try:
            if fault is not None and fault.status is not None:
                raise _Refusal(fault.status, "Something is wrong on purpose")
            parts = [unquote(part) for part in request.path.strip("/").split("/")]
            if request.to_cdn:
                return self._cdn(request, parts)
            account = self._account(request)
            with self._lock:
                return self._hub(request, parts, account)
        except _Refusal as refusal:
            return refusal.reply()
        except Exception:
            self._crashes.append(f"{request.target}\n{traceback.format_exc()}")
            return _json({"error": traceback.format_exc()}, 500)

    def _hub(self, request: Request, parts: list[str], account: _Account | None) -> _Reply:
        method = "GET" if request.method == "HEAD" else request.method
        match (method, *parts):
            case ("GET", "api", "whoami-v2"):
                return self._whoami(account)
            case ("GET", "api", "agent-harnesses"):
                return _json({"standardEnvVars": [], "harnesses": {}})
            case ("POST", "api", "validate-yaml"):
                return _validated_card(str(request.json().get("content", "")))
            case ("POST", "api", "repos", "create"):
                return self._create(request, account)
            case ("DELETE", "api", "repos", "delete"):
                asked = request.json()
                owner = asked.get("organization") or (account.user if account else "")
                repo = self._writable(f"{owner}/{asked['name']}", account)
                del self.repos[repo.id]
                return _json({})
            case ("POST", "api", "complete_multipart"):
                return self._completed(request)
            case (_, "api", "models", user, name, *rest):
                return self._model(method, f"{user}/{name}", rest, request, account)
            case ("POST", user, name, "info", "lfs", "objects", "batch") if name.endswith(".git"):
                return self._lfs_batch(f"{user}/{name.removesuffix('.git')}", request, account)
            case ("POST", user, name, "info", "lfs", "verify") if name.endswith(".git"):
                return self._lfs_verify(f"{user}/{name.removesuffix('.git')}", request, account)
            case ("GET", user, name, "resolve", revision, *path) if path:
                return self._resolve(f"{user}/{name}", revision, "/".join(path), request, account)
        raise _Refusal(404, f"This server has no {request.line}")

    def _model(self, method: str, repo_id: str, rest: list[str], request: Request, account: _Account | None) -> _Reply:
        match (method, *rest):
            case ("GET",):
                return self._info(self._readable(repo_id, account), "main", request)
            case ("GET", "revision", revision):
                return self._info(self._readable(repo_id, account), revision, request)
            case ("GET", "refs"):
                return _json(_refs(self._readable(repo_id, account), request.flag("include_prs")))
            case ("GET", "commits", revision):
                return self._page([_told(c) for c in self._readable(repo_id, account).commits(revision)], request)
            case ("GET", "tree", revision, *path):
                commit = self._readable(repo_id, account).head(revision)
                return self._page(_tree(commit, "/".join(path), request.flag("recursive")), request)
            case ("POST", "paths-info", revision):
                return _paths_info(self._readable(repo_id, account).head(revision), request)
            case ("POST", "branch", branch):
                return self._branch(self._writable(repo_id, account), branch, request.json().get("startingPoint"))
            case ("POST", "tag", revision):
                repo = self._writable(repo_id, account)
                tag = request.json()["tag"]
                if tag in repo.tags:
                    raise _Refusal(409, f"Tag {tag} already exists")
                repo.tags[tag] = repo.head(revision).oid
                return _json({})
            case ("DELETE", ("branch" | "tag") as kind, name):
                repo = self._writable(repo_id, account)
                refs = repo.branches if kind == "branch" else repo.tags
                if name == "main" or name not in refs:
                    raise _Refusal(403 if name == "main" else 404, f"Cannot delete {kind} {name}", "RevisionNotFound")
                del refs[name]
                return _json({})
            case ("PUT", "settings"):
                repo = self._writable(repo_id, account)
                asked = request.json()
                repo.private = bool(asked.get("private", asked.get("visibility", repo.private) in (True, "private")))
                repo.gated = bool(asked.get("gated", repo.gated))
                return _json({"private": repo.private, "gated": repo.gated})
            case ("POST", "preupload", revision):
                return self._preupload(repo_id, revision, request, account)
            case ("POST", "commit", revision):
                return self._commit(repo_id, revision, request, account)
            case ("POST", "discussions"):
                return self._open_pull(self._readable(repo_id, account), request, account)
            case ("GET", "discussions", number):
                return self._pull(self._readable(repo_id, account), number)
        raise _Refusal(404, f"This server has no {request.line}")

    # -- who may do what

    def _account(self, request: Request) -> _Account | None:
        header = request.headers.get("authorization")
        if header is None:
            return None
        account = self._accounts.get(header.removeprefix("Bearer ").strip())
        if account is None:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return account

    def _readable(self, repo_id: str, account: _Account | None) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and not _member(repo, account)):
            status = 404 if account else self.hidden_status
            told = "Repository not found" if status == 404 else "Invalid username or password."
            raise _Refusal(status, told, "RepoNotFound")
        return repo

    def _writable(self, repo_id: str, account: _Account | None) -> Repo:
        repo = self._readable(repo_id, account)
        if account is None:
            raise _Refusal(401, "Invalid username or password.")
        if account.read_only or repo.namespace not in account.namespaces:
            raise _Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def _proposable(self, repo_id: str, account: _Account | None) -> tuple[Repo, _Account]:
        """A repository in which somebody may open a pull request: whoever is somebody and may read it."""
        repo = self._readable(repo_id, account)
        if account is None:
            raise _Refusal(401, "Invalid username or password.")
        return repo, account

    def _whoami(self, account: _Account | None) -> _Reply:
        if account is None:
            raise _Refusal(401, "Invalid username or password.")
        others = sorted(account.namespaces - {account.user})
        role = "read" if account.read_only else "write"
        return _json(
            {
                "type": "user",
                "id": hashlib.sha1(account.user.encode(), usedforsecurity=False).hexdigest()[:24],
                "name": account.user,
                "fullname": account.user.title(),
                "isPro": False,
                "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in others],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
            }
        )

    # -- repositories and their revisions

    def _create(self, request: Request, account: _Account | None) -> _Reply:
        if account is None:
            raise _Refusal(401, "Invalid username or password.")
        asked = request.json()
        if asked.get("type") not in (None, "model"):
            raise _Refusal(400, "This server has model repositories only")
        namespace = asked.get("organization") or account.user
        repo_id = f"{namespace}/{asked['name']}"
        url = f"{self.url}/{repo_id}"
        if account.read_only or namespace not in account.namespaces:
            raise _Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if repo_id in self.repos:
            return _Refusal(409, "You already created this model repo").reply(url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[repo_id] = Repo(repo_id, account.user, private)
        return _json({"url": url, "name": repo_id, "id": repo_id})

    def _info(self, repo: Repo, revision: str, request: Request) -> _Reply:
        commit = repo.head(revision)
        siblings: list[dict[str, Any]] = []
        for path, blob in commit.files.items():
            one: dict[str, Any] = {"rfilename": path}
            if request.flag("blobs"):
                one |= {"size": len(blob.data), "blobId": blob.git_oid, **({"lfs": blob.lfs_info} if blob.lfs else {})}
            siblings.append(one)
        info: dict[str, Any] = {
            "author": repo.namespace,
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": repo.created,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            "usedStorage": sum(map(len, repo.objects.values())),
        }
        if wanted := request.fields.get("expand"):
            info = {key: value for key, value in info.items() if key in wanted}
        return _json({"_id": hashlib.md5(repo.id.encode()).hexdigest()[:24], "id": repo.id, "modelId": repo.id, **info})

    def _branch(self, repo: Repo, branch: str, start: str | None) -> _Reply:
        if branch.startswith("refs/"):
            raise _Refusal(400, f"Invalid reference for a branch: {branch}")
        if branch in repo.branches:
            raise _Refusal(409, f"Reference refs/heads/{branch} already exists")
        repo.branches[branch] = repo.head(start or "main").oid
        return _json({})

    def _page(self, entries: list[dict[str, Any]], request: Request) -> _Reply:
        fields = {key: values[0] for key, values in request.fields.items()}
        start = int(fields.pop("cursor", "0"))
        reply = _json(entries[start : start + self.page_size])
        if len(entries) > start + self.page_size:
            following = urlencode({**fields, "cursor": start + self.page_size})
            reply.headers["Link"] = f'<{self.url}{request.path}?{following}>; rel="next"'
        return reply

    # -- uploads

    def _is_lfs(self, path: str, size: int) -> bool:
        named = any(fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in self.lfs_patterns)
        return size > 0 and (named or size >= self.lfs_threshold)

    def _preupload(self, repo_id: str, revision: str, request: Request, account: _Account | None) -> _Reply:
        if request.flag("create_pr"):
            repo, _ = self._proposable(repo_id, account)
        else:
            repo = self._pushable(repo_id, revision, account)
        commit = repo.head(revision)
        answers: list[dict[str, Any]] = []
        for file in request.json()["files"]:
            path, there = file["path"], commit.files.get(file["path"])
            mode = "lfs" if self._is_lfs(path, file["size"]) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": there and there.etag})
        return _json({"files": answers, "commitOid": commit.oid})

    def _lfs_batch(self, repo_id: str, request: Request, account: _Account | None) -> _Reply:
        asked = request.json()
        # the client names no ref where it is about to open a pull request
        if asked.get("ref"):
            repo = self._pushable(repo_id, asked["ref"]["name"], account)
        else:
            repo, _ = self._proposable(repo_id, account)
        if asked.get("operation") != "upload" or asked.get("hash_algo", "sha256") != "sha256":
            raise _Refusal(422, "This server does uploads hashed with sha256 only")
        parts = self.lfs_chunk if "multipart" in asked.get("transfers", ()) else None
        answers: list[dict[str, Any]] = []
        for wanted in asked["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
            if not re.fullmatch(r"[0-9a-f]{64}", oid):
                answer["error"] = {"code": 422, "message": f"{oid} is no sha256"}
            elif oid not in repo.objects:
                verify = {"href": f"{self.url}/{repo.id}.git/info/lfs/verify", "header": {}}
                answer["actions"] = {"upload": self._upload_action(repo, oid, size, parts), "verify": verify}
            answers.append(answer)
        return _json({"transfer": "multipart" if parts else "basic", "objects": answers})

    def _upload_action(self, repo: Repo, oid: str, size: int, chunk: int | None) -> dict[str, Any]:
        whole = f"/cdn/upload/{repo.id}/{oid}"
        if chunk is None:
            return {"href": self._signed(whole, size=size), "header": {}}
        header = {"chunk_size": str(chunk)}
        for number in range(1, ceil(size / chunk) + 1):
            length = min(chunk, size - chunk * (number - 1))
            header[str(number)] = self._signed(f"{whole}/{number}", size=length)
        self._parts[f"{repo.id}/{oid}"] = {}
        done = urlencode({"repo": repo.id, "size": size, "sig": self._signature(f"{repo.id}/{oid}", str(size))})
        return {"href": f"{self.url}/api/complete_multipart?{done}", "header": header}

    def _completed(self, request: Request) -> _Reply:
        fields, asked = request.fields, request.json()
        repo_id, size, oid = fields["repo"][0], fields["size"][0], asked["oid"]
        if not hmac.compare_digest(fields["sig"][0], self._signature(f"{repo_id}/{oid}", size)):
            raise _Refusal(403, "The link is not signed for this object")
        parts = self._parts.get(f"{repo_id}/{oid}", {})
        for told in asked["parts"]:
            held = parts.get(told["partNumber"])
            if held is None or told["etag"].strip('"') != hashlib.md5(held).hexdigest():
                raise _Refusal(400, f"Part {told['partNumber']} is missing or another one")
        if len(asked["parts"]) != len(parts):
            raise _Refusal(400, f"{len(parts)} parts were sent, {len(asked['parts'])} are named")
        self._keep(repo_id, oid, b"".join(parts[number] for number in sorted(parts)), int(size))
        return _json({"success": True})

    def _lfs_verify(self, repo_id: str, request: Request, account: _Account | None) -> _Reply:
        repo, _ = self._proposable(repo_id, account)
        asked = request.json()
        if len(repo.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Refusal(404, f"Object {asked['oid']} of {asked['size']} bytes is not here")
        return _json({})

    def _keep(self, repo_id: str, oid: str, data: bytes, size: int) -> None:
        if len(data) != size:
            raise _Refusal(400, f"{size} bytes were announced, {len(data)} came")
        if hashlib.sha256(data).hexdigest() != oid:
            raise _Refusal(400, f"The bytes that came are not those of sha256 {oid}")
        if repo_id not in self.repos:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        self.repos[repo_id].objects[oid] = data

    def _pushable(self, repo_id: str, revision: str, account: _Account | None) -> Repo:
        """A repository with a branch, or a pull request, to which somebody may commit."""
        number = _pull_number(revision)
        repo, somebody = self._proposable(repo_id, account)
        if number not in repo.pulls or repo.pulls[number].author != somebody.user:
            repo = self._writable(repo_id, account)
        if number not in repo.pulls and revision not in repo.branches:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo

    def _commit(self, repo_id: str, revision: str, request: Request, account: _Account | None) -> _Reply:
        proposes = request.flag("create_pr")
        if proposes:
            repo, _ = self._proposable(repo_id, account)
            if revision not in repo.branches:
                raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        else:
            repo = self._pushable(repo_id, revision, account)
        assert account is not None
        base = repo.head(revision)
        header: dict[str, Any] = {}
        changes: dict[str, Blob | None] = {}
        for line in request.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                header = entry["value"]
            else:
                changes |= dict(_changes(repo, base, entry["key"], entry["value"]))
        if not header.get("summary"):
            raise _Refusal(400, "A commit needs a summary")
        parent = header.get("parentCommit")
        if parent and not base.oid.startswith(parent):
            raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
        commit = repo.commit(base, changes, header["summary"], header.get("description", ""), account.user)
        answer = {
            "success": True,
            "commitOid": commit.oid,
            "commitUrl": f"{self.url}/{repo.id}/commit/{commit.oid}",
            "hookOutput": "",
        }
        if proposes:
            number = len(repo.pulls) + 1
            repo.pulls[number] = Pull(header["summary"], account.user, revision, commit.oid)
            answer["pullRequestUrl"] = f"{self.url}/{repo.id}/discussions/{number}"
        else:
            repo.move(revision, commit)
        return _json(answer)

    def _open_pull(self, repo: Repo, request: Request, account: _Account | None) -> _Reply:
        _, somebody = self._proposable(repo.id, account)
        asked = request.json()
        if not asked.get("pullRequest"):
            raise _Refusal(400, "This server has pull requests only, no discussions")
        number = len(repo.pulls) + 1
        repo.pulls[number] = Pull(asked["title"], somebody.user, "main", repo.head().oid)
        return _json({"num": number, "url": f"{self.url}/{repo.id}/discussions/{number}", "pullRequest": True})

    def _pull(self, repo: Repo, number: str) -> _Reply:
        pull = repo.pulls.get(int(number)) if number.isdigit() else None
        if pull is None:
            raise _Refusal(404, f"There is no discussion {number}")
        return _json(
            {
                "num": int(number),
                "title": pull.title,
                "author": {"name": pull.author},
                "createdAt": repo.created,
                "status": "draft",
                "repo": {"name": repo.id, "type": "model"},
                "isPullRequest": True,
                "events": [],
                "filesWithConflicts": [],
                "changes": {"base": f"refs/heads/{pull.base}"},
                "diff": "",
            }
        )

    # -- downloads

    def _resolve(self, repo_id: str, revision: str, path: str, request: Request, account: _Account | None) -> _Reply:
        repo = self._readable(repo_id, account)
        if repo.gated and not _member(repo, account):
            told = f"Access to model {repo.id} is restricted and you are not in the authorized list."
            raise _Refusal(403 if account else 401, told, "GatedRepo")
        commit = repo.head(revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        blob = commit.files.get(path)
        if blob is None:
            raise _Refusal(404, "Entry not found", "EntryNotFound", headers)
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        if not blob.lfs:
            return _bytes(blob, path, request, headers)
        place = self._signed(f"/cdn/{repo.id}/{blob.sha256}/{quote(path)}")
        return _Reply(302, f"Found. Redirecting to {place}".encode(), {**headers, **linked, "Location": place})

    def _cdn(self, request: Request, parts: list[str]) -> _Reply:
        size = request.fields.get("size", [""])[0]
        signature = self._signature(request.path, size)
        if not hmac.compare_digest(request.fields.get("sig", [""])[0], signature):
            raise _Refusal(403, "The link is not signed")
        match (request.method, *parts):
            case ("PUT", "cdn", "upload", user, name, oid):
                self._keep(f"{user}/{name}", oid, request.body, int(size))
                return _Reply(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
            case ("PUT", "cdn", "upload", user, name, oid, number):
                if len(request.body) != int(size):
                    raise _Refusal(400, f"{size} bytes were announced, {len(request.body)} came")
                self._parts[f"{user}/{name}/{oid}"][int(number)] = request.body
                return _Reply(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
            case ("GET" | "HEAD", "cdn", user, name, oid, *path):
                repo = self.repos.get(f"{user}/{name}")
                if repo is None or oid not in repo.objects:
                    raise _Refusal(404, "There is no such object")
                return _bytes(Blob(repo.objects[oid], lfs=True), "/".join(path), request, {"Accept-Ranges": "bytes"})
        raise _Refusal(404, f"This server has no {request.line}")

    def _signature(self, path: str, size: str) -> str:
        return hmac.new(self._secret, f"{unquote(path)} {size}".encode(), "sha256").hexdigest()[:32]

    def _signed(self, path: str, size: int | str = "") -> str:
        return f"{self.cdn_url}{path}?{urlencode({'size': size, 'sig': self._signature(path, str(size))})}"


# ----------------------------------------------------------------- small pieces


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _pull_number(revision: str) -> int:
    """N of `refs/pr/N`, 0 of anything else (no pull request has that number)."""
    found = re.fullmatch(r"refs/pr/([1-9]\d*)", revision)
    return int(found[1]) if found else 0


def _member(repo: Repo, account: _Account | None) -> bool:
    return account is not None and (repo.namespace in account.namespaces or account.user in repo.readers)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> _Reply:
    told = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return _Reply(status, json.dumps(value).encode(), told)


def _validated_card(text: str) -> _Reply:
    """What the Hub says of a README.md's front matter; of its contents only that they are a mapping."""
    front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    errors: list[dict[str, str]] = []
    warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
    try:
        if front and not isinstance(yaml.safe_load(front[1]), dict):
            errors = [{"message": "metadata is not a mapping"}]
    except yaml.YAMLError as error:
        errors = [{"message": str(error)}]
    return _json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def _refs(repo: Repo, with_pulls: bool) -> dict[str, Any]:
    def named(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]

    found: dict[str, Any] = {
        "branches": named("heads", repo.branches),
        "converts": [],
        "tags": named("tags", repo.tags),
    }
    if with_pulls:
        found["pullRequests"] = [
            {"name": f"refs/pr/{number}", "ref": f"refs/pr/{number}", "targetCommit": pull.head}
            for number, pull in repo.pulls.items()
        ]
    return found


def _told(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.oid,
        "title": commit.message,
        "message": commit.description,
        "authors": [{"user": commit.author}],
        "date": commit.date,
    }


def _entry(commit: Commit, path: str) -> dict[str, Any] | None:
    """A file or a folder as tree listings tell it, None where there is neither."""
    blob = commit.files.get(path)
    if blob is not None:
        told = {"type": "file", "oid": blob.git_oid, "size": len(blob.data), "path": path}
        return {**told, "lfs": blob.lfs_info} if blob.lfs else told
    inside = [f"{name} {blob.git_oid}" for name, blob in commit.files.items() if name.startswith(f"{path}/")]
    if not inside:
        return None
    oid = hashlib.sha1("\n".join(inside).encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def _tree(commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    paths: set[str] = set()
    for path in commit.files:
        if path.startswith(prefix):
            steps = path[len(prefix) :].split("/")
            depths = range(1, len(steps) + 1) if recursive else [1]
            paths |= {prefix + "/".join(steps[:depth]) for depth in depths}
    if folder and not paths:
        raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
    return [entry for path in sorted(paths) if (entry := _entry(commit, path)) is not None]


def _paths_info(commit: Commit, request: Request) -> _Reply:
    if "json" in request.headers.get("content-type", ""):
        paths = request.json().get("paths", [])
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    return _json([entry for path in paths if (entry := _entry(commit, path.strip("/"))) is not None])


def _changes(repo: Repo, base: Commit, key: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Blob | None]]:
    """What one line of a commit asks for."""
    path = value["path"]
    if key == "file":
        try:
            data = base64.b64decode(value["content"], validate=True)
        except binascii.Error:
            raise _Refusal(400, f"The content of {path} is not base64") from None
        yield path, Blob(data, lfs=False)
    elif key == "lfsFile":
        if value["oid"] not in repo.objects:
            raise _Refusal(400, f"LFS pointer of {path} points to a file that was not uploaded: {value['oid']}")
        yield path, Blob(repo.objects[value["oid"]], lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        wanted = path.rstrip("/")
        gone = [name for name in base.files if name == wanted or name.startswith(f"{wanted}/")]
        if not gone or (key == "deletedFile" and gone != [wanted]):
            raise _Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        yield from ((name, None) for name in gone)
    else:
        raise _Refusal(400, f"Unknown operation {key}")


def _bytes(blob: Blob, path: str, request: Request, headers: Mapping[str, str]) -> _Reply:
    """A file's bytes, or the range of them that was asked for."""
    told = {
        **headers,
        "ETag": f'"{blob.etag}"',
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])};",
    }
    size = len(blob.data)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "").replace(" ", ""))
    if asked is None or asked[0] == "bytes=-":
        return _Reply(200, blob.data, told)
    if asked[1]:
        first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
    else:
        first, last = max(size - int(asked[2]), 0), size - 1
    if first > last:
        raise _Refusal(416, "Requested Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return _Reply(206, blob.data[first : last + 1], {**told, "Content-Range": f"bytes {first}-{last}/{size}"})


# ----------------------------------------------------------------- sockets


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: HubServer, *, to_cdn: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.to_cdn = to_cdn
        self.url = f"http://127.0.0.1:{self.server_port}"

    def server_bind(self) -> None:
        # HTTPServer asks the resolver for this host's name here, which takes seconds on some machines
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a client that went away is what many a test is about; anything else is a defect
        if not isinstance(sys.exc_info()[1], OSError):
            self.hub._crashes.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes | None:
        """What came with the request, None where the client went away in its middle."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            return body if len(body) == size else None
        chunks: list[bytes] = []
        while line := self.rfile.readline():
            if not (size := int(line.split(b";")[0], 16)):
                while self.rfile.readline().strip():
                    pass
                return b"".join(chunks)
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        return None

    def _serve(self) -> None:
        url, body = urlsplit(self.path), self._body()
        request = Request(
            method=self.command,
            path=url.path,
            query=url.query,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body or b"",
            to_cdn=self.server.to_cdn,
            id=self.headers.get("X-Amzn-Trace-Id") or uuid.uuid4().hex,
        )
        hub = self.server.hub
        fault = hub._received(request)
        if body is None or (fault is not None and fault.drop):
            self._cut(reset=fault is not None and fault.reset)
            return
        reply = hub._reply(request, fault)
        request.status = reply.status
        body, cut = reply.body, None
        if fault is not None:
            reply.headers.update(fault.headers)
            if fault.alter and body:
                at = len(body) // 2
                body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
            body = body[: fault.truncate]
            cut = fault.after_bytes
        self.send_response(reply.status)
        for name, value in {**reply.headers, "X-Request-Id": request.id, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if fault is not None and cut is not None:
            self._cut(fault.reset)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _cut(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # closing at once, with nothing lingering, is what makes the kernel send RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())


# ----------------------------------------------------------------- clients


def client_env(hub: HubServer, home: str | Path, token: str | None = None, **more: str) -> dict[str, str]:
    """Environment of a process whose huggingface_hub talks to this server, and to nothing else.

    Args:
        hub: The server.
        home: Becomes HF_HOME: cache and stored token.
        token: Becomes HF_TOKEN.
        more: Further variables, e.g. HF_HUB_OFFLINE="1".
    """
    unwanted = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME", "AI_AGENT")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    env = {name: value for name, value in env.items() if not name.lower().endswith("_proxy")}
    env |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    return {**env, **({"HF_TOKEN": token} if token else {}), **more}


def run_client(
    code: str, env: Mapping[str, str], *args: str | Path, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own; `args` are its sys.argv[1:], its output is text."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=timeout, check=False)


def client_here(monkeypatch: pytest.MonkeyPatch, hub: HubServer, home: str | Path, token: str | None = None) -> None:
    """Point this process's huggingface_hub at the server for one test: `HfApi()`, `hf_hub_download` and the like.

    Faster than a process of its own by the time that imports take. The functions of `huggingface_hub` that are methods
    of an HfApi made at import (`huggingface_hub.create_repo`, `upload_folder`, `model_info`) keep their address; use
    those of an `HfApi()` made in the test, or `run_client`.
    """
    from huggingface_hub import constants, file_download

    home = Path(home)
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value, raising=False)
        if hasattr(file_download, name):  # clients before 1.0 copy some of them
            monkeypatch.setattr(file_download, name, value)
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
