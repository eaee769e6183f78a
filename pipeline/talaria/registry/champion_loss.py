"""Measure the champion's loss on the held-out conversations of another version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from talaria.common.files import file_digest
from talaria.registry.versions import HELDOUT, LOSS, TOKENS, as_number, files_of, location_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_MEASURED = "talaria.loss_on."
_MAX_TOKENS = 9216
_TOKENIZER = "tokenizer.json"


def champion_loss(
    client: MlflowClient, champion: ModelVersion, candidate: ModelVersion, uri: str, *, measure: bool = True
) -> tuple[float | None, str | None]:
    """Return (loss, None), or (None, the reason why it is unknown).

    Known from the champion's own evaluation where the held-out conversations are the same, or from an earlier measurement,
    which its tags keep; else the champion is run on them (`measure`), which takes a device as large as evaluation does.
    """
    heldout = candidate.tags.get(HELDOUT)
    if heldout is None:
        return None, "the candidate does not say which conversations were held out"
    if champion.tags.get(HELDOUT) == heldout:
        return as_number(champion.tags.get(LOSS)), None
    kept = f"{_MEASURED}{heldout[:32]}"
    if kept in champion.tags:
        return as_number(champion.tags[kept]), None
    if not measure:
        return None, "it was not measured on them"
    tokens = Path(candidate.tags.get(TOKENS, ""))
    if not tokens.is_dir():
        return None, f"the tokens that the candidate was trained on ({tokens}) are not on this machine"
    with files_of(client, champion, uri) as own:
        if own is None:
            return None, f"its files ({location_of(client, champion)}) are not on this machine"
        if file_digest(own / _TOKENIZER) != file_digest(tokens / "tokenizer" / _TOKENIZER):
            return None, "it has another tokenizer, so that losses per token do not compare; promote by hand"
        loss = _measure(own, tokens)
    client.set_model_version_tag(champion.name, str(champion.version), kept, repr(loss))
    return loss, None


def _measure(model: Path, tokens: Path) -> float:
    from talaria.evaluation.heldout_loss import best_device, heldout_loss, open_model
    from talaria.tokenization.dataset import VALIDATION, open_tokens

    split = open_tokens(tokens)[VALIDATION]
    assert split is not None  # the candidate was measured on it
    return heldout_loss(open_model(model, best_device()), split, _MAX_TOKENS).loss
