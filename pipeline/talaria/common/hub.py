"""The Hugging Face hub: resolve a revision to a commit, download a snapshot of chosen files, and explain failures.

The library's cache keeps finished files, so that a second run needs no network. A token comes from HF_TOKEN only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from talaria.common.errors import Unavailable, UserError

Kind = Literal["model", "dataset"]


def commit_of(repo: str, revision: str, kind: Kind = "model") -> str:
    """Return the commit that a branch, tag or commit resolves to now; offline, to which it resolved at the last download."""
    from huggingface_hub import HfApi

    with explained(repo, revision, kind):
        return HfApi(token=token()).resolve_revision(repo, repo_type=kind, revision=revision).resolved


def snapshot(repo: str, revision: str, patterns: Sequence[str], kind: Kind = "model") -> tuple[Path, str]:
    """Download the top-level files of `repo` that match `patterns` into the library's cache; return their folder and commit."""
    from huggingface_hub import snapshot_download

    commit = commit_of(repo, revision, kind)
    with explained(repo, revision, kind):
        folder = snapshot_download(
            repo, repo_type=kind, revision=commit, allow_patterns=list(patterns), ignore_patterns=["*/*"], token=token()
        )
    return Path(folder), commit


def file_sizes(repo: str, revision: str, kind: Kind = "model") -> dict[str, int]:
    """Return the path and bytes of every file of a repository. Raises Unavailable offline, where only single files are known."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    commit = commit_of(repo, revision, kind)
    with explained(repo, revision, kind):
        entries = list(HfApi(token=token()).list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind))
    return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def token() -> str | Literal[False]:
    return os.environ.get("HF_TOKEN") or False


@contextmanager
def explained(repo: str, revision: str, kind: Kind) -> Iterator[None]:
    """Turn the library's errors into one sentence that says what to do."""
    import httpx2
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    try:
        yield
    except errors.HFValidationError:
        raise UserError(f"{repo!r} is not a name on the hub; it should look like owner/name.") from None
    except errors.GatedRepoError:
        raise UserError(f"{repo}: gated; accept its terms at {page} and set HF_TOKEN to a token of that account.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repo}: no such {kind} at {constants.ENDPOINT}, or it is private: check the name, or set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo}: has no revision {revision!r}; see {page}/tree/main for its branches and commits.") from None
    except (
        errors.RevisionResolutionError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.HfHubHTTPError,
        httpx2.TransportError,
    ) as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise Unavailable(
            f"{repo}@{revision}: {offline} and the files are not all in {constants.HF_HUB_CACHE}; "
            "go online, set HF_ENDPOINT to a mirror, or set source to local and give a folder."
        ) from error
