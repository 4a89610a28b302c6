"""The Hugging Face Hub: files come in checked and at one commit, folders go out in one commit.

Transport, cache, tokens and the usual environment (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE) are
huggingface_hub's; what is ours is that nothing damaged is used and that every failure is one line.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ngd_timm.core.errors import InputError
from ngd_timm.core.files import sha256_file

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

__all__ = [
    "PREFIX",
    "HubId",
    "Published",
    "Snapshot",
    "fetch",
    "hub_id",
    "pin",
    "request_errors",
    "staged",
    "target",
    "upload",
    "upload_staged",
]

logger = logging.getLogger("ngd_timm.core")

ResultT = TypeVar("ResultT")

PREFIX = "hf-hub:"
_ID = re.compile(r"^([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_FILES = (".safetensors", ".yaml", ".yml", ".json", ".npz")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_TRANSIENT = (429, 500, 502, 503, 504)
_TRIES = 3
_PATIENCE, _LONGEST_WAIT = 20.0, 60.0  # seconds


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub and the revision wanted of it (None: the main branch).

    Example:
        >>> str(HubId("user/grid", "v1"))
        'hf-hub:user/grid@v1'
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @property
    def pinned(self) -> bool:
        """Whether it names a commit, and so the same bytes for ever."""
        return self.revision is not None and _COMMIT.match(self.revision) is not None


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit, in the local cache and checked.

    Attributes:
        id: The repository at the commit.
        folder: Where the files lie.
        names: Those of the files asked for that the repository has.
    """

    id: HubId
    folder: Path
    names: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """What an upload made.

    Attributes:
        repo: Repository.
        commit: The commit's id.
        url: Its page, that of the pull request where one was opened.
    """

    repo: str
    commit: str
    url: str


def hub_id(source: str | Path, revision: str | None = None) -> HubId | None:
    """The repository that a text names, or None where it names a file, a folder or nothing of the kind.

    `hf-hub:user/repo[@revision]` always is one; a bare `user/repo[@revision]` is one unless a path of that name, or a
    folder `user`, is here: who mistypes a path should hear of the path.

    Raises:
        InputError: The prefix before something that is no repository, or two revisions.

    Example:
        >>> hub_id("user/grid@v1"), hub_id("grids/mine.safetensors"), hub_id("gameemo-v2")
        (HubId(repo='user/grid', revision='v1'), None, None)
    """
    text = str(source)
    explicit = text.startswith(PREFIX)
    found = _ID.match(text.removeprefix(PREFIX))
    if explicit and found is None:
        raise InputError(f"'{text}' is no repository on the Hub; write hf-hub:user/repo or hf-hub:user/repo@revision")
    is_path = found is None
    if found is not None and not explicit:
        is_path = text.endswith(_FILES) or Path(text).exists() or Path(text).parent.is_dir()
    if found is None or is_path:
        if revision is not None:
            raise InputError(f"revision={revision} is for a repository on the Hub, and '{text}' is a path")
        return None
    repo, own = found.groups()
    if own and revision and own != revision:
        raise InputError(f"'{text}' names the revision {own}, revision={revision} another; give one of the two")
    return HubId(repo, own or revision)


def pin(source: str, filename: str) -> str:
    """A source as a recipe keeps it: a repository at its present commit, anything else unchanged.

    Args:
        source: A Hub id, a path or a name.
        filename: A file that the repository must hold.

    Raises:
        InputError: As `fetch`.

    Example:
        >>> pin("gameemo-v2", "grid.safetensors")
        'gameemo-v2'
    """
    repository = hub_id(source)
    return source if repository is None else str(fetch(repository, [filename]).id)


def fetch(
    repository: HubId,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Snapshot:
    """Bring files of one commit into the local cache, and check their bytes against the hashes that the Hub gave.

    A file that was damaged on its way or in the cache is fetched once more. Nothing is executed or unpickled.

    Args:
        repository: What, and which revision of it.
        needed: Files without which the repository is refused; the first one fixes the commit.
        optional: Files that it may lack.
        cache_dir: Instead of the usual cache.
        token: Instead of the one that is logged in; False for none.
        local_files_only: Take what the cache has, without the network.

    Raises:
        InputError: One line that names the repository and what went wrong.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache

    def get(name: str, revision: str | None, force: bool = False) -> Path:
        def action() -> Path:
            path = hf_hub_download(
                repository.repo,
                name,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force,
                library_name="ngd_timm",
            )
            return Path(path)

        return _tried(action, repository)

    def checked(name: str, revision: str | None) -> Path:
        file = get(name, revision)
        if _intact(file):
            return file
        if not local_files_only:
            logger.warning(f"{repository}: {name} does not match its hash; fetching it again")
            file = get(name, revision, force=True)
            if _intact(file):
                return file
        # left in the cache it would be served to whoever asks for it next, timm for one
        file.resolve().unlink(missing_ok=True)
        raise InputError(f"{repository}: {name} does not match its hash and was thrown away; fetch it again")

    folder, names, revision = Path(), list[str](), repository.revision
    for name in (*needed, *optional):
        if name in optional:
            known = try_to_load_from_cache(repository.repo, name, cache_dir=cache_dir, revision=revision)
            if known is _CACHED_NO_EXIST:
                continue
        try:
            file = checked(name, revision)
        except _NotCached as error:
            if name not in optional:
                raise InputError(f"{repository}: {name} {error}") from None
        except _NotThere:
            if name not in optional:
                raise InputError(f"{repository} holds no {name}; {_what_it_holds(repository, token)}") from None
        else:
            if not names:
                folder = file.parents[len(Path(name).parts) - 1]
                revision = folder.name
            names.append(name)
    return Snapshot(HubId(repository.repo, revision), folder, tuple(names))


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> Published:
    """Make the repository and the branch if they are missing, and put a folder there in one commit.

    Args:
        folder: Its files go to the repository's root; others there stay.
        repo_id: `user/repo`.
        private: For a repository that is made now; None: as the account's default.
        revision: A branch; None: main.
        commit_message: Title of the commit.
        create_pr: Open a pull request instead of committing to the branch.
        token: Instead of the one that is logged in.

    Raises:
        InputError: One line that names the repository and what went wrong; no commit is there then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repository = target(repo_id)
    if create_pr and revision is not None:
        raise InputError(f"{repository}: a pull request is against the main branch; leave out revision={revision}")
    api = HfApi(token=token, library_name="ngd_timm")
    _tried(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repository)
    if revision is not None:
        _tried(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), repository)
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())

    def commit() -> CommitInfo:
        # operations remember what they have uploaded, so each try gets its own
        added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        message = commit_message or "Upload with ngd_timm"
        return api.create_commit(repo_id, added, commit_message=message, revision=revision, create_pr=create_pr)

    info = _tried(commit, repository)
    return Published(repo_id, info.oid, info.pr_url or info.commit_url)


def upload_staged(stage: Callable[[Path], None], repo_id: str, **options: Any) -> Published:
    """Put into a repository what `stage` writes into an empty folder; the options are `upload`'s."""
    with staged(stage) as folder:
        return upload(folder, repo_id, **options)


@contextlib.contextmanager
def staged(stage: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary folder that `stage` has filled."""
    with tempfile.TemporaryDirectory(prefix="ngd-push-") as folder:
        stage(Path(folder))
        yield Path(folder)


def target(repo_id: str) -> HubId:
    """The repository to write to, checked by its name alone.

    Raises:
        InputError: No `user/repo`, or a revision in the name.
    """
    found = _ID.match(repo_id)
    if found is None or found[2]:
        raise InputError(f"'{repo_id}' is no name to push to; give user/repo, and a branch by --revision")
    return HubId(found[1])


class _NotThere(InputError):
    """The repository is there, the file is not."""


class _NotCached(InputError):
    """Not in the cache, and nobody was asked."""


def _intact(file: Path) -> bool:
    """Whether a cached file is what its blob is named: sha256 for large files, git's blob id for small ones.

    Where the cache can't link (some Windows set-ups) there is no such name, and nothing to check against.
    """
    blob = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return sha256_file(blob) == blob.name
    if _COMMIT.match(blob.name):
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == blob.name
    return True


def _what_it_holds(repository: HubId, token: str | bool | None) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="ngd_timm")
    held = _tried(lambda: api.list_repo_files(repository.repo, revision=repository.revision), repository)
    pickles = [name for name in held if name.endswith(_PICKLES)]
    if pickles:
        return f"its pickles ({', '.join(pickles[:3])}) are never loaded: ask its author for safetensors"
    return f"it holds {', '.join(held[:8]) or 'nothing'}: check the name"


def _tried(action: Callable[[], ResultT], repository: HubId) -> ResultT:
    """Run a request; a failure that may pass is tried again for a while (the client also does), any other is told."""
    began, attempt = time.monotonic(), 0
    while True:
        attempt += 1
        try:
            return action()
        except request_errors() as error:
            wait = _wait(error, attempt)
            if wait is None or attempt == _TRIES or time.monotonic() - began > _PATIENCE:
                raise _explained(error, repository) from None
            logger.warning(f"{repository}: {_told(error)}; trying again in {wait:.0f} s")
            time.sleep(wait)


def request_errors() -> tuple[type[Exception], ...]:
    """What a request may raise: the Hub's errors, those of the client's HTTP library, and the disk's."""
    # that of requests, httpx or httpx2, by the client's version
    from huggingface_hub.errors import HTTPError

    return (HTTPError, OSError, ValueError, RuntimeError)


def _origin(error: BaseException) -> BaseException:
    """The failure behind one that only says what could not be done for it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, (LocalEntryNotFoundError, ValueError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _wait(error: Exception, attempt: int) -> float | None:
    """Seconds before another try, None where there is no point in one."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    origin = _origin(error)
    status = _status(origin)
    if status is not None:
        if status not in _TRANSIENT:
            return None
        asked = origin.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
        return min(float(asked), _LONGEST_WAIT) if asked.isdigit() else float(2**attempt)
    if isinstance(origin, json.JSONDecodeError):  # a gateway's page instead of an answer
        return float(2**attempt)
    if isinstance(origin, (OfflineModeIsEnabled, HfHubHTTPError, ValueError, FileNotFoundError)):
        return None
    if isinstance(origin, OSError) and origin.errno is not None and not isinstance(origin, ConnectionError):
        return None  # the disk's
    return float(2**attempt)


def _told(error: Exception) -> str:
    origin = _origin(error)
    status = _status(origin)
    if status is not None:
        return f"the Hub answered {status}"
    return " ".join(str(origin).split())[:160] or type(origin).__name__


def _explained(error: Exception, repository: HubId) -> InputError:
    """The one line."""
    from huggingface_hub import constants, errors

    origin, name = _origin(error), f"{PREFIX}{repository.repo}"
    if isinstance(origin, errors.RemoteEntryNotFoundError):
        return _NotThere(f"{name}: no such file")
    if isinstance(origin, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return _NotCached("is not in the local cache, and the network is off; use it once with the network on")
    status = _status(origin)
    if isinstance(origin, errors.GatedRepoError):
        line = "the repository is gated: ask for access on its page, then log in (hf auth login) or set HF_TOKEN"
    elif isinstance(origin, errors.RevisionNotFoundError):
        line = f"no revision '{repository.revision}' there; give a branch, a tag or a commit of it"
    elif isinstance(origin, errors.HFValidationError):
        line = f"not a name that the Hub takes ({_told(error)})"
    elif isinstance(origin, errors.RepositoryNotFoundError):
        line = (
            f"no such repository at {constants.ENDPOINT}, or a private one that your token may not see; check the "
            "name, log in (hf auth login), or give a path that exists"
        )
    elif status == 401:
        line = "the token is not valid; log in again (hf auth login) or set HF_TOKEN"
    elif status == 403:
        line = "your token may not do this there; use one with the right to write, or push to a name of your own"
    elif status is not None:
        line = f"the Hub answered {status}, again and again; try again later" if status in _TRANSIENT else _told(error)
    elif isinstance(origin, OSError) and origin.errno == errno.ENOSPC:
        line = "no space left on the disk; free some, or set HF_HOME to a larger one. Nothing incomplete is used"
    elif isinstance(origin, OSError) and origin.errno is not None and not isinstance(origin, ConnectionError):
        line = f"{origin.strerror}: {origin.filename}" if origin.filename else str(origin.strerror)
    else:
        line = f"no whole answer from {constants.ENDPOINT} ({_told(error)}); check the network and try again"
    return InputError(f"{name}: {line}")
