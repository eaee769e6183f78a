"""Upload a publication to the Hugging Face hub: one commit, so that weights, settings and card change together.

`HfApi.upload_folder` is not used: where hf_xet is installed it makes several commits, between which the card of one version
stands beside the weights of another. The token comes from HF_TOKEN or the hub's own login, never from a command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from talaria.common.errors import Unavailable, UserError
from talaria.common.files import MANIFEST
from talaria.publishing.publication import MADE_BY, Publication

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_HUBS_OWN = ".gitattributes"


def require_token() -> None:
    """Raise UserError where there is no token to write with."""
    from huggingface_hub import get_token

    if not get_token():
        raise UserError("There is no token of the hub to write with; set HF_TOKEN, or log in by `hf auth login`.")


def upload(repo: str, publication: Publication, *, public: bool, message: str) -> dict[str, Any]:
    """Make the repository hold these files and no others, by one commit; returns its address and commit.

    A new repository is private unless `public`. Raises UserError for one that `talaria publish` did not fill, or whose
    visibility is another, and Unavailable where the hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with _explained(repo, api.endpoint):
        there = _existing(api, repo)
        if there is None:
            api.create_repo(repo, private=not public, exist_ok=True)
        else:
            _refuse_foreign(api, repo, there, public)
        names = {sibling.rfilename for sibling in (there.siblings if there else None) or []} - {_HUBS_OWN}
        new: dict[str, Any] = dict(publication.files)
        new |= {name: text.encode() for name, text in publication.texts.items()}
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in new.items()]
        operations += [CommitOperationDelete(name) for name in sorted(names - new.keys())]
        done = api.create_commit(repo, operations, commit_message=message, parent_commit=there.sha if there else None)
    return {"url": f"{api.endpoint}/{repo}", "commit": done.oid}


def _existing(api: HfApi, repo: str) -> ModelInfo | None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


def _refuse_foreign(api: HfApi, repo: str, there: ModelInfo, public: bool) -> None:
    if public is bool(there.private):
        kind = "private" if there.private else "public"
        cure = "change that on its settings page" if there.private else "add --public"
        raise UserError(f"hub:{repo}: is there already, and {kind}; {cure}, or choose another name.")
    names = {sibling.rfilename for sibling in there.siblings or []} - {_HUBS_OWN}
    if not names:
        return
    made_by = None
    if MANIFEST in names:
        with open(api.hf_hub_download(repo, MANIFEST, revision=there.sha), encoding="utf-8") as file:
            about = json.load(file)
        made_by = about.get("stage") if isinstance(about, dict) else None
    if made_by != MADE_BY:
        raise UserError(f"hub:{repo}: holds files that `talaria publish` did not put there; choose another name.")


@contextmanager
def _explained(repo: str, endpoint: str) -> Iterator[None]:
    """Turn the library's errors into one sentence."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise UserError(f"hub:{repo}: HF_HUB_OFFLINE is set; unset it, or publish to a folder.") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(f"hub:{repo}: the hub refuses the token (HTTP {status}); it has to allow writing there.") from None
        if status in (409, 412):
            raise Unavailable(f"hub:{repo}: has changed meanwhile; publish again.") from None
        if status is not None and status < 500 and status != 429:
            raise UserError(f"hub:{repo}: the hub refuses it: {error.server_message or f'HTTP {status}'}.") from None
        raise Unavailable(f"hub:{repo}: {endpoint} answers HTTP {status}; try again later.") from error
    except httpx2.TransportError as error:
        raise Unavailable(f"hub:{repo}: {endpoint} cannot be reached ({type(error).__name__}); try again later.") from error
    except ValueError as error:
        if "metadata" not in str(error):
            raise
        raise UserError(f"hub:{repo}: the hub refuses the card: {error}") from None
