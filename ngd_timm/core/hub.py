"""Files from and to the Hugging Face Hub: pinned to a commit, checked, pushed in one commit.

Transport, retries, cache, tokens and the environment (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE) are the client's.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from ngd_timm.core.errors import InputError, one_line
from ngd_timm.core.files import sha256_file

PREFIX = "hf-hub:"
REQUEST_ERRORS = (HTTPError, OSError, ValueError, RuntimeError)
"""What a request may raise: the Hub's errors, those of the client's HTTP library, and the disk's."""
_ID = re.compile(r"^([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?$")
_FILES = (".safetensors", ".yaml", ".yml", ".json", ".npz")
_OF_ONE_PUSH = ["grid.safetensors", "grid.png", ".eval_results/*"]  # the next may be of a student without them
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_OFFLINE = "not in the local cache, and the network is off; use it once with the network on"
_REASONS: Mapping[str | int, str] = {
    "GatedRepoError": "the repository is gated: request access on its page, then log in (hf auth login)",
    "HFValidationError": "the Hub takes no such name; check it",
    "LocalEntryNotFoundError": _OFFLINE,
    "OfflineModeIsEnabled": _OFFLINE,
    "RepositoryNotFoundError": "no such repository at {endpoint}, or a private one that your token may not see; check "
    "the name, log in (hf auth login), or give a path that exists",
    "RevisionNotFoundError": "no revision '{revision}' there; give a branch, a tag or a commit of it",
    401: "the token is not valid; log in again (hf auth login) or set HF_TOKEN",
    403: "your token may not do this there; use one with the right to write, or push to a name of your own",
}
"""One line by the name of the client's error class, or by HTTP status."""


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub at a branch, tag or commit (None: the main branch)."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit in the local cache: the repository at that commit, their folder and their names."""

    id: HubId
    folder: Path
    names: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """The commit of an upload, and the URL of its page (or of the pull request's)."""

    repo: str
    commit: str
    url: str


def hub_id(source: str | Path, revision: str | None = None) -> HubId | None:
    """The repository that a text names; None for a path, a packaged version, or where a folder `user` exists."""
    text = str(source)
    match = _ID.match(text.removeprefix(PREFIX))
    if not text.startswith(PREFIX) and (text.endswith(_FILES) or Path(text).exists() or Path(text).parent.is_dir()):
        match = None
    elif text.startswith(PREFIX) and match is None:
        raise InputError(f"'{text}' is no repository on the Hub; write hf-hub:user/repo or hf-hub:user/repo@revision")
    if match is None:
        if revision is not None:
            raise InputError(f"revision={revision} is for a repository on the Hub, and '{text}' is a path")
        return None
    repo, own = match.groups()
    if own and revision and own != revision:
        raise InputError(f"'{text}' names the revision {own}, revision={revision} another; give one of the two")
    return HubId(repo, own or revision)


def target(repo_id: str) -> HubId:
    """The repository to push to; `InputError` where it is no `user/repo` or names a revision."""
    match = _ID.match(repo_id)
    if match is None or match[2]:
        raise InputError(f"'{repo_id}' is no name to push to; give user/repo, and a branch by --revision")
    return HubId(match[1])


def pin(source: str, filename: str) -> str:
    """A source as a recipe keeps it: a repository that holds `filename` at its present commit, all else unchanged."""
    repository = hub_id(source)
    return source if repository is None else str(fetch(repository, [filename]).id)


def fetch(repository: HubId, needed: Sequence[str], optional: Sequence[str] = (), **options: Any) -> Snapshot:
    """Download files of one commit (that of the first) into the local cache, checked by sha256 where the Hub has it."""
    files: dict[str, Path] = {}
    revision = repository.revision
    with _one_line(repository):
        for name in (*needed, *optional):
            try:
                path = hf_hub_download(repository.repo, name, revision=revision, library_name="ngd_timm", **options)
            except EntryNotFoundError as error:
                offline = isinstance(error, FileNotFoundError)  # not in the cache, and no network
                if name in optional and (not offline or _known_absent(repository.repo, name, revision, options)):
                    continue
                if offline:
                    raise
                raise InputError(f"{repository} holds no {name}; {_content(repository, options)}") from None
            file = Path(path)
            # the cache's link is named by the sha256 of a large file; what that links to may have another name
            blob = file.readlink().name if file.is_symlink() else ""
            if re.fullmatch(r"[0-9a-f]{64}", blob) and sha256_file(file) != blob:
                file.resolve().unlink()  # timm would read it otherwise
                raise InputError(f"{repository}: {name} does not match its sha256 and was deleted; fetch it again")
            files[name] = file
            if len(files) == 1:
                folder = file.parents[len(Path(name).parts) - 1]
                revision = folder.name
    return Snapshot(HubId(repository.repo, revision), folder, tuple(files))


def _known_absent(repo: str, name: str, revision: str | None, options: Mapping[str, Any]) -> bool:
    """Whether the cache notes that a commit lacks a file, which it does by something that is no path."""
    return not isinstance(try_to_load_from_cache(repo, name, options.get("cache_dir"), revision), str | None)


def _content(repository: HubId, options: Mapping[str, Any]) -> str:
    held = HfApi(token=options.get("token")).list_repo_files(repository.repo, revision=repository.revision)
    if pickles := [name for name in held if name.endswith(_PICKLES)]:
        return f"its pickles ({', '.join(pickles[:3])}) are never loaded: ask its author for safetensors"
    return f"it holds {', '.join(held[:8]) or 'nothing'}: check the name"


def upload(
    stage: Callable[[Path], object],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    space_sdk: str | None = None,
) -> Published:
    """Push what `stage` writes into an empty folder as one commit; a missing repository or branch is created.

    The repository is a model's, with `space_sdk` ("gradio", "static") a Space's.
    """
    kind = None if space_sdk is None else "space"
    repository, api = target(repo_id), HfApi(token=token, library_name="ngd_timm")
    if create_pr and revision is not None:
        raise InputError(f"{repository}: a pull request is against the main branch; leave out revision={revision}")
    with tempfile.TemporaryDirectory(prefix="ngd-push-") as folder:
        stage(Path(folder))
        with _one_line(repository):
            api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind, space_sdk=space_sdk)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=kind)
            info = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload with ngd_timm",
                revision=revision,
                create_pr=create_pr,
                repo_type=kind,
                delete_patterns=None if kind else _OF_ONE_PUSH,
            )
    return Published(repo_id, info.oid, info.pr_url or info.commit_url)


@contextmanager
def _one_line(repository: HubId) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except REQUEST_ERRORS as error:
        raise refusal(error, repository) from None


def refusal(error: BaseException, repository: HubId) -> InputError:
    """What a request of the client raised, as one line about the repository."""
    return InputError(f"{PREFIX}{repository.repo}: {_reason(error, repository)}")


def _reason(error: BaseException, repository: HubId) -> str:
    while isinstance(error, (FileNotFoundError, ValueError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__  # the client wraps what went wrong
    status = int(getattr(getattr(error, "response", None), "status_code", 0))
    names: list[str | int] = [kind.__name__ for kind in type(error).__mro__]
    for key in [*names, status]:
        if key in _REASONS:
            return _REASONS[key].format(endpoint=constants.ENDPOINT, revision=repository.revision)
    if status:
        return f"the Hub returned HTTP {status}; try again later"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; set HF_HOME to a folder with space that you may write to"
    return f"no complete response from {constants.ENDPOINT} ({one_line(error)}); check the network and try again"
