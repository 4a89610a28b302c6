"""The loopback Hub is one as far as the plain huggingface_hub client can tell."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import pytest
from hub_server import HubServer, client_env, client_here, run_client
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub import __version__ as version
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

MB = 1024 * 1024

retrying = pytest.mark.skipif(version.startswith(("0.", "1.")), reason="this client tries fewer requests again")


def some_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes in which no two parts are alike."""
    block = hashlib.shake_256(str(seed).encode()).digest(64 * 1024)
    return b"".join(number.to_bytes(4, "big") + block for number in range(size // len(block) + 1))[:size]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub of which Ann and Bob are users, and this process a client without a token."""
    with HubServer() as server:
        server.add_token("hf_ann", "ann", ["lab"])
        server.add_token("hf_bob", "bob")
        client_here(monkeypatch, server, tmp_path / "home")
        yield server


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's pauses between tries, not waited for."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def ann(hub: HubServer) -> HfApi:
    return HfApi(token="hf_ann")


def fetched(repo: str, name: str, **options: Any) -> bytes:
    return Path(hf_hub_download(repo, name, **options)).read_bytes()


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


# ----------------------------------------------------------------- the way there and back


def test_a_folder_comes_back_byte_by_byte_its_large_file_through_lfs(
    hub: HubServer, ann: HfApi, tmp_path: Path
) -> None:
    files = {"config.json": b'{"a": 1}', "model.safetensors": some_bytes(5 * MB), "notes/read me.txt": "grüße".encode()}
    url = ann.create_repo("ann/model", private=False)
    assert (url.repo_id, url.repo_type, url) == ("ann/model", "model", f"{hub.url}/ann/model")
    info = ann.upload_folder(repo_id="ann/model", folder_path=folder_of(tmp_path / "out", files), commit_message="one")
    assert {name: fetched("ann/model", name) for name in files} == files
    assert len(hub.seen("PUT /cdn/upload/ann/model/")) == 1
    assert len(hub.seen("POST /ann/model.git/info/lfs/verify")) == 1
    there = hub.repo("ann/model")
    assert {name: data for name, data in there.files().items() if name != ".gitattributes"} == files
    assert [commit.message for commit in there.commits()] == ["one", "initial commit"]
    assert there.head().oid == info.oid
    assert info.commit_url == f"{hub.url}/ann/model/commit/{info.oid}"


def test_lfs_bytes_travel_without_the_token_and_only_through_signed_links(hub: HubServer, ann: HfApi) -> None:
    ann.create_repo("ann/model", private=True)
    ann.upload_file(repo_id="ann/model", path_or_fileobj=b"weights", path_in_repo="model.safetensors")
    assert fetched("ann/model", "model.safetensors", token="hf_ann") == b"weights"
    to_cdn = [request for request in hub.requests if request.to_cdn]
    assert [request.method for request in to_cdn] == ["PUT", "GET"]
    assert not any("authorization" in request.headers for request in to_cdn)
    with pytest.raises(Exception, match="403"):
        urlopen(f"{hub.cdn_url}{to_cdn[1].path}", timeout=5)


def test_a_large_file_goes_in_parts_where_the_server_asks_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = some_bytes(5 * MB + 1)
    with HubServer(lfs_chunk=2 * MB) as hub:
        hub.add_token("hf_ann", "ann")
        client_here(monkeypatch, hub, tmp_path, "hf_ann")
        HfApi().create_repo("ann/model")
        HfApi().upload_file(repo_id="ann/model", path_or_fileobj=data, path_in_repo="model.safetensors")
        assert [len(request.body) for request in hub.seen("PUT /cdn/")] == [2 * MB, 2 * MB, MB + 1]
        assert len(hub.seen("POST /api/complete_multipart")) == 1
        assert fetched("ann/model", "model.safetensors") == data


def test_size_alone_makes_a_file_lfs_at_the_threshold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with HubServer(lfs_threshold=100) as hub:
        hub.add_token("hf_ann", "ann")
        client_here(monkeypatch, hub, tmp_path, "hf_ann")
        HfApi().create_repo("ann/model")
        made = folder_of(tmp_path / "out", {"large.bin": bytes(100), "small.bin": bytes(99), "empty.safetensors": b""})
        HfApi().upload_folder(repo_id="ann/model", folder_path=made)
        files = hub.repo("ann/model").head().files
        assert {path for path, blob in files.items() if blob.lfs} == {"large.bin"}


def test_unchanged_files_are_not_sent_again(hub: HubServer, ann: HfApi, tmp_path: Path) -> None:
    made = folder_of(tmp_path / "out", {"config.json": b"{}", "model.safetensors": b"weights"})
    ann.create_repo("ann/model")
    first = ann.upload_folder(repo_id="ann/model", folder_path=made)
    assert ann.upload_folder(repo_id="ann/model", folder_path=made).oid == first.oid
    assert (len(hub.seen("PUT ")), len(hub.seen("POST .*/commit/"))) == (1, 1)


def test_uploaded_bytes_that_do_not_match_their_hash_are_refused(hub: HubServer, ann: HfApi) -> None:
    hub.put("ann/model", {})
    oid = hashlib.sha256(b"right").hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 5}], "ref": {"name": "main"}}
    asked = UrlRequest(
        f"{hub.url}/ann/model.git/info/lfs/objects/batch",
        json.dumps(batch).encode(),
        {"Authorization": "Bearer hf_ann"},
    )
    with urlopen(asked, timeout=5) as answer:
        href = json.load(answer)["objects"][0]["actions"]["upload"]["href"]
    for wrong in (b"wrong", b"longer"):
        with pytest.raises(Exception, match="400"):
            urlopen(UrlRequest(href, wrong, method="PUT"), timeout=5)
    assert hub.repo("ann/model").objects == {}
    operation = CommitOperationAdd("model.safetensors", b"right")
    operation._upload_mode, operation._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="not uploaded"):
        ann.create_commit("ann/model", [operation], commit_message="a pointer to nothing")


def test_listings_name_hashes_sizes_and_folders_over_several_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with HubServer(page_size=2) as hub:
        client_here(monkeypatch, hub, tmp_path)
        hub.put("ann/model", {"a/b/c.json": b"{}", "model.safetensors": b"weights", "z.txt": b"z"})
        api = HfApi()
        tree = {entry.path: entry for entry in api.list_repo_tree("ann/model", recursive=True)}
        assert list(tree) == [".gitattributes", "a", "a/b", "a/b/c.json", "model.safetensors", "z.txt"]
        assert [entry.path for entry in api.list_repo_tree("ann/model", "a")] == ["a/b"]
        large: Any = tree["model.safetensors"]
        assert (large.size, large.lfs.sha256) == (7, hashlib.sha256(b"weights").hexdigest())
        small: Any = tree["a/b/c.json"]
        # what `printf {} | git hash-object --stdin` says
        assert (small.blob_id, small.lfs) == ("9e26dfeeb6e641a33dae4961196235bdb965b21b", None)
        assert [entry.path for entry in api.get_paths_info("ann/model", ["z.txt", "a", "nothing"])] == ["z.txt", "a"]
        info = api.model_info("ann/model", files_metadata=True)
        assert info.siblings is not None
        assert {one.rfilename: one.size for one in info.siblings}["model.safetensors"] == 7
        assert len(api.list_repo_commits("ann/model")) == 2


def test_files_and_folders_are_deleted_and_a_missing_one_is_an_error(hub: HubServer, ann: HfApi) -> None:
    hub.put("ann/model", {"a/1": b"1", "a/2": b"2", "b": b"3", "c": b"4"})
    operations = [CommitOperationDelete("a/"), CommitOperationDelete("b")]
    ann.create_commit("ann/model", operations, commit_message="tidy")
    assert set(hub.repo("ann/model").files()) == {".gitattributes", "c"}
    with pytest.raises(EntryNotFoundError):
        ann.delete_file("b", "ann/model")


def test_a_card_without_valid_front_matter_is_refused(hub: HubServer, ann: HfApi) -> None:
    hub.put("ann/model", {})
    ann.upload_file(repo_id="ann/model", path_or_fileobj=b"---\nlicense: mit\n---\n# Card", path_in_repo="README.md")
    with pytest.raises(ValueError, match="Invalid metadata"):
        ann.upload_file(repo_id="ann/model", path_or_fileobj=b"---\na: [\n---\n# Card", path_in_repo="README.md")


# ----------------------------------------------------------------- revisions


def test_a_branch_a_tag_and_a_commit_keep_the_bytes_they_had(hub: HubServer, ann: HfApi) -> None:
    first = hub.put("ann/model", {"grid.json": b"first"})
    ann.create_tag("ann/model", tag="v1")
    ann.create_branch("ann/model", branch="wip")
    second = ann.upload_file(repo_id="ann/model", path_or_fileobj=b"2nd", path_in_repo="grid.json", revision="wip").oid
    ann.create_branch("ann/model", branch="old", revision=first)
    expected = {"main": b"first", "v1": b"first", "old": b"first", first: b"first", "wip": b"2nd", second: b"2nd"}
    assert {revision: fetched("ann/model", "grid.json", revision=revision) for revision in expected} == expected
    refs = ann.list_repo_refs("ann/model")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "wip": second, "old": first}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    assert ann.model_info("ann/model", revision="wip").sha == second
    assert len(first) == len(second) == 40


def test_what_exists_already_is_a_conflict_unless_that_is_fine(hub: HubServer, ann: HfApi) -> None:
    hub.put("ann/model", {})
    for options in ({"exist_ok": True}, {}):
        calls = (
            lambda o=options: ann.create_repo("ann/model", **o),
            lambda o=options: ann.create_branch("ann/model", branch="main", **o),
        )
        for call in calls:
            if options:
                call()
            else:
                with pytest.raises(HfHubHTTPError, match="409"):
                    call()


def test_a_branch_is_made_by_create_branch_and_never_by_an_upload(hub: HubServer, ann: HfApi, tmp_path: Path) -> None:
    hub.put("ann/model", {})
    made = folder_of(tmp_path / "out", {"config.json": b"{}"})
    with pytest.raises(RevisionNotFoundError):
        ann.upload_folder(repo_id="ann/model", folder_path=made, revision="new")
    ann.create_branch("ann/model", branch="new")
    ann.upload_folder(repo_id="ann/model", folder_path=made, revision="new")
    assert "config.json" in hub.repo("ann/model").files("new")
    assert "config.json" not in hub.repo("ann/model").files("main")


def test_anybody_opens_a_pull_request_and_main_stays_as_it_was(hub: HubServer, ann: HfApi, tmp_path: Path) -> None:
    main = hub.put("ann/model", {"config.json": b"{}"})
    made = folder_of(tmp_path / "out", {"config.json": b"[]", "model.safetensors": b"weights"})
    info = HfApi(token="hf_bob").upload_folder(
        repo_id="ann/model", folder_path=made, commit_message="mine", create_pr=True
    )
    assert (info.pr_num, info.pr_revision, info.pr_url) == (1, "refs/pr/1", f"{hub.url}/ann/model/discussions/1")
    assert fetched("ann/model", "config.json", revision="refs/pr/1") == b"[]"
    assert fetched("ann/model", "config.json") == b"{}"
    assert hub.repo("ann/model").head().oid == main
    refs = ann.list_repo_refs("ann/model", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1"]


def test_a_pull_request_opened_first_takes_its_commits_afterwards(hub: HubServer) -> None:
    main = hub.put("ann/model", {"a": b"1"})
    bob = HfApi(token="hf_bob")
    pull = bob.create_pull_request("ann/model", "Better")
    assert (pull.num, pull.git_reference, pull.author, pull.status) == (1, "refs/pr/1", "bob", "draft")
    bob.upload_file(repo_id="ann/model", path_or_fileobj=b"2", path_in_repo="a", revision="refs/pr/1")
    assert hub.repo("ann/model").files("refs/pr/1")["a"] == b"2"
    assert hub.repo("ann/model").head().oid == main


def test_what_was_made_can_be_unmade_by_who_may_write(hub: HubServer, ann: HfApi) -> None:
    hub.put("ann/model", {"a": b"1"}, revision="wip")
    ann.create_tag("ann/model", tag="v1")
    ann.delete_branch("ann/model", branch="wip")
    ann.delete_tag("ann/model", tag="v1")
    assert not ann.revision_exists("ann/model", "wip")
    assert not ann.revision_exists("ann/model", "v1")
    ann.update_repo_settings("ann/model", private=True)
    assert not HfApi(token="hf_bob").repo_exists("ann/model")
    ann.delete_repo("ann/model")
    assert not ann.repo_exists("ann/model")


def test_a_commit_on_an_outdated_parent_is_refused(hub: HubServer, ann: HfApi) -> None:
    first = hub.put("ann/model", {"a": b"1"})
    hub.put("ann/model", {"a": b"2"})
    with pytest.raises(HfHubHTTPError, match="412"):
        ann.upload_file(repo_id="ann/model", path_or_fileobj=b"3", path_in_repo="a", parent_commit=first)
    assert hub.repo("ann/model").files()["a"] == b"2"


# ----------------------------------------------------------------- who may what


def test_a_private_repository_is_there_only_for_those_who_may_read_it(
    hub: HubServer, ann: HfApi, tmp_path: Path
) -> None:
    ann.create_repo("lab/secret", private=True)
    ann.upload_file(repo_id="lab/secret", path_or_fileobj=b"1", path_in_repo="a")
    assert fetched("lab/secret", "a", token="hf_ann") == b"1"
    assert ann.model_info("lab/secret").private is True
    for token in (False, "hf_bob"):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("lab/secret", "a", token=token, cache_dir=tmp_path / "empty")
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info("lab/secret")
    hub.repo("lab/secret").readers.add("bob")
    assert fetched("lab/secret", "a", token="hf_bob") == b"1"


def test_refusals_are_the_clients_own_exceptions(hub: HubServer, ann: HfApi) -> None:
    hub.put("ann/model", {"a": b"1"})
    hub.put("ann/gated", {"a": b"1"})
    hub.repo("ann/gated").gated = True
    bob = HfApi(token="hf_bob")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("ann/nothing", "a")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ann/model", "a", revision="nothing")
    with pytest.raises(EntryNotFoundError) as absent:
        hf_hub_download("ann/model", "nothing")
    assert not isinstance(absent.value, LocalEntryNotFoundError)
    with pytest.raises(GatedRepoError):
        hf_hub_download("ann/gated", "a", token="hf_bob")
    assert fetched("ann/gated", "a", token="hf_ann") == b"1"
    for wrong in (
        lambda: HfApi(token="hf_wrong").model_info("ann/model"),
        lambda: HfApi(token="hf_wrong").create_repo("ann/more"),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            wrong()
        assert refused.value.response.status_code == 401
    for forbidden in (
        lambda: bob.create_repo("ann/more"),
        lambda: bob.create_branch("ann/model", branch="wip"),
        lambda: bob.upload_file(repo_id="ann/model", path_or_fileobj=b"2", path_in_repo="a"),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            forbidden()
        assert refused.value.response.status_code == 403
        assert refused.value.request_id
    assert [org["name"] for org in ann.whoami()["orgs"]] == ["lab"]


def test_nobody_in_particular_may_be_answered_401_as_the_real_hub_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with HubServer(hidden_status=401) as hub:
        client_here(monkeypatch, hub, tmp_path)
        with pytest.raises(RepositoryNotFoundError, match="401"):
            HfApi().model_info("ann/nothing")


def test_a_token_that_only_reads_does_not_write(hub: HubServer) -> None:
    hub.add_token("hf_look", "ann", read_only=True)
    hub.put("ann/model", {"a": b"1"}, private=True)
    assert fetched("ann/model", "a", token="hf_look") == b"1"
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token="hf_look").upload_file(repo_id="ann/model", path_or_fileobj=b"2", path_in_repo="a")


# ----------------------------------------------------------------- faults


@retrying
def test_a_cut_download_goes_on_where_it_stopped(hub: HubServer, no_waiting: list[float]) -> None:
    data = some_bytes(12 * MB)
    hub.put("ann/model", {"model.safetensors": data})
    hub.fault("GET /cdn/", after_bytes=11 * MB)
    assert fetched("ann/model", "model.safetensors") == data
    first, second = hub.seen("GET /cdn/")
    # the client writes in blocks of 10 MiB; what came after the last whole one is asked for again
    assert ("range" in first.headers, second.headers["range"]) == (False, f"bytes={10 * MB}-")
    assert (first.status, second.status) == (200, 206)
    assert no_waiting == [1]


def test_a_range_is_answered_as_http_says(hub: HubServer) -> None:
    hub.put("ann/model", {"a": b"0123456789"})
    url = f"{hub.url}/ann/model/resolve/main/a"
    for asked, expected, told in (
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ):
        with urlopen(UrlRequest(url, headers={"Range": asked}), timeout=5) as answer:
            assert (answer.status, answer.read(), answer.headers["Content-Range"]) == (206, expected, told)
    with pytest.raises(Exception, match="416"):
        urlopen(UrlRequest(url, headers={"Range": "bytes=10-"}), timeout=5)


def test_a_truncated_body_is_noticed_by_its_size(hub: HubServer, tmp_path: Path) -> None:
    hub.put("ann/model", {"model.safetensors": b"weights"})
    hub.fault("GET /cdn/", truncate=3)
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download("ann/model", "model.safetensors")
    assert fetched("ann/model", "model.safetensors") == b"weights"


def test_an_altered_body_of_the_same_size_is_not_noticed_by_the_client(hub: HubServer) -> None:
    hub.put("ann/model", {"model.safetensors": b"weights"})
    hub.fault("GET /cdn/", alter=True)
    path = Path(hf_hub_download("ann/model", "model.safetensors"))
    assert path.read_bytes() == b"weifhts"
    # the blob's name is the hash that its bytes ought to have, so that a caller can tell
    assert path.resolve().name == hashlib.sha256(b"weights").hexdigest()


@retrying
def test_statuses_come_as_often_as_asked_and_name_when_to_retry(
    hub: HubServer, ann: HfApi, no_waiting: list[float]
) -> None:
    hub.put("ann/model", {})
    busy = hub.fault("POST .*/preupload/", status=429, times=2, headers={"Retry-After": "3"})
    ann.upload_file(repo_id="ann/model", path_or_fileobj=b"1", path_in_repo="a")
    assert [request.status for request in hub.seen("/preupload/")] == [429, 429, 200]
    assert (busy.hits, no_waiting) == (2, [4, 4])
    broken = hub.fault("/commit/", times=None)
    for _ in range(3):
        with pytest.raises(HfHubHTTPError, match="500"):
            ann.upload_file(repo_id="ann/model", path_or_fileobj=b"2", path_in_repo="a")
    broken.stop()
    ann.upload_file(repo_id="ann/model", path_or_fileobj=b"2", path_in_repo="a")


def test_a_fault_waits_for_its_turn(hub: HubServer, ann: HfApi) -> None:
    hub.put("ann/model", {})
    hub.fault("GET /api/models/ann/model", status=503, skip=1)
    assert ann.model_info("ann/model").id == "ann/model"
    with pytest.raises(HfHubHTTPError, match="503"):
        ann.model_info("ann/model")
    assert ann.model_info("ann/model").id == "ann/model"


def test_a_lost_answer_leaves_the_commit_and_a_dropped_request_does_not(hub: HubServer, ann: HfApi) -> None:
    hub.put("ann/model", {})
    for fault in ({"after_bytes": 0}, {"drop": True}, {"reset": True}):
        hub.fault("/commit/", **fault)
        with pytest.raises(Exception, match=r"peer closed|disconnected|reset|broken|aborted"):
            ann.upload_file(repo_id="ann/model", path_or_fileobj=str(fault).encode(), path_in_repo="a")
    assert len(hub.repo("ann/model").commits()) == 3
    assert hub.repo("ann/model").files()["a"] == str({"after_bytes": 0}).encode()


def test_a_slow_answer_does_not_keep_the_server_from_closing() -> None:
    with HubServer() as server:
        server.fault("GET /", delay=60)
        with pytest.raises(TimeoutError):
            urlopen(f"{server.url}/api/agent-harnesses", timeout=0.2)
        assert [request.status for request in server.requests] == [0]
        began = time.monotonic()
    assert time.monotonic() - began < 5


def test_an_upload_that_breaks_off_leaves_nothing(hub: HubServer) -> None:
    hub.put("ann/model", {})
    with socket.create_connection(("127.0.0.1", int(hub.url.rsplit(":", 1)[1]))) as client:
        client.sendall(b"POST /api/models/ann/model/commit/main HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    assert [request.status for request in hub.seen("/commit/")] == [0]
    assert len(hub.repo("ann/model").commits()) == 2


def test_many_clients_at_once_get_the_faults_once(hub: HubServer) -> None:
    hub.put("ann/model", {"a": b"1"})
    hub.fault("/resolve/", status=503, times=5)
    statuses: list[int] = []

    def ask() -> None:
        try:
            with urlopen(f"{hub.url}/ann/model/resolve/main/a", timeout=10) as answer:
                statuses.append(answer.status)
        except OSError as error:
            statuses.append(error.code)  # type: ignore[attr-defined]

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 15 + [503] * 5
    assert len(hub.requests) == 20


# ----------------------------------------------------------------- processes of their own


def test_offline_a_process_reads_its_cache_without_one_request(hub: HubServer, tmp_path: Path) -> None:
    hub.put("ann/model", {"a": b"1", "model.safetensors": b"weights"}, private=True)
    code = (
        "import sys; from huggingface_hub import snapshot_download; from pathlib import Path\n"
        "folder = Path(snapshot_download('ann/model')); print(*sorted(p.name for p in folder.iterdir()))"
    )
    online = run_client(code, client_env(hub, tmp_path / "home", "hf_ann"))
    assert (online.stdout, online.returncode) == (".gitattributes a model.safetensors\n", 0), online.stderr
    before = len(hub.requests)
    offline = run_client(code, client_env(hub, tmp_path / "home", HF_HUB_OFFLINE="1"))
    assert (offline.stdout, offline.returncode) == (online.stdout, 0), offline.stderr
    assert len(hub.requests) == before
    missing = run_client(code, client_env(hub, tmp_path / "empty", HF_HUB_OFFLINE="1"))
    assert "LocalEntryNotFoundError" in missing.stderr
    assert len(hub.requests) == before


def test_a_process_of_its_own_knows_no_token_and_no_server_but_those_given(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_the_developers_own")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    hub.put("ann/model", {"a": b"1"})
    code = "import sys; from huggingface_hub import HfApi; print(HfApi().model_info(sys.argv[1]).sha)"
    done = run_client(code, client_env(hub, tmp_path), "ann/model")
    assert done.stdout.strip() == hub.repo("ann/model").head().oid, done.stderr
    assert "authorization" not in hub.requests[-1].headers


def test_this_process_is_a_client_for_one_test_only(hub: HubServer, tmp_path: Path) -> None:
    hub.put("ann/model", {"a": b"1"})
    folder = Path(snapshot_download("ann/model"))
    assert tmp_path in folder.parents
    assert hub.url == hub_constants.ENDPOINT
    with pytest.MonkeyPatch.context() as patch, HubServer() as other:
        client_here(patch, other, tmp_path, "hf_x")
        assert (HfApi().endpoint, os.environ["HF_TOKEN"]) == (other.url, "hf_x")
    assert HfApi().endpoint == hub.url
    assert "HF_TOKEN" not in os.environ


def test_timm_loads_from_it_what_timm_saved(hub: HubServer, tmp_path: Path) -> None:
    code = """
import sys, timm, torch
from huggingface_hub import HfApi
from timm.models import save_for_hf
made = timm.create_model("test_vit", num_classes=3)
save_for_hf(made, sys.argv[1], safe_serialization=True)
HfApi().create_repo("ann/student", private=True)
HfApi().upload_folder(repo_id="ann/student", folder_path=sys.argv[1])
loaded = timm.create_model("hf-hub:ann/student", pretrained=True)
same = [torch.equal(value, loaded.state_dict()[name]) for name, value in made.state_dict().items()]
print(loaded.num_classes, all(same), len(same) > 10)
"""
    done = run_client(code, client_env(hub, tmp_path / "home", "hf_ann"), tmp_path / "student")
    assert (done.stdout, done.returncode) == ("3 True True\n", 0), done.stderr
    assert set(hub.repo("ann/student").files()) == {".gitattributes", "config.json", "model.safetensors"}
