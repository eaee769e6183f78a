"""Measure the champion on the items of another version: its held-out conversations, prompts and tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.common.files import MANIFEST, file_digest, read_object
from talaria.common.locks import in_use
from talaria.config.evaluation_settings import HELDOUT_LOSS, Evaluate
from talaria.evaluation.items import Items
from talaria.registry.version_items import ITEMS, MEASURED, keep_items, read_items
from talaria.registry.versions import HELDOUT, LOSS, TOKENS, as_number, files_of, location_of, set_tags, tags_of

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
    heldout = tags_of(candidate).get(HELDOUT)
    if heldout is None:
        return None, "the candidate does not say which conversations were held out"
    known = tags_of(champion)
    if known.get(HELDOUT) == heldout:
        return as_number(known.get(LOSS)), None
    kept = f"{_MEASURED}{heldout[:32]}"
    if kept in known:
        return as_number(known[kept]), None
    if not measure:
        return None, "it was not measured on them"
    loss: list[float] = []
    why = _on_its_files(client, champion, candidate, uri, lambda own, tokens: loss.append(_measure_loss(own, tokens)))
    if why is not None:
        return None, why
    set_tags(client, champion.name, champion.version, {kept: repr(loss[0])})
    return loss[0], None


def champion_items(
    client: MlflowClient,
    champion: ModelVersion,
    candidate: ModelVersion,
    wanted: Items,
    names: Sequence[str],
    uri: str,
    *,
    measure: bool = True,
) -> tuple[Items, str | None]:
    """Return the champion's results on the candidate's items (`wanted`), and why one of the metrics `names` is missing.

    Kept results count where they cover the candidate's items; for what they do not cover the champion is run (`measure`), and
    its results are kept for the next time.
    """
    later = f"{MEASURED}{tags_of(candidate).get(HELDOUT, 'none')[:32]}"
    found = Items()
    for tag in (ITEMS, later):
        table = read_items(client, champion, tag) or Items()
        found.metrics |= {name: one for name, one in table.metrics.items() if table.covers(wanted, name)}
    if all(found.covers(wanted, name) for name in names):
        return found, None
    if not measure:
        return found, "it was not measured on them"
    answers = any(not name.startswith(HELDOUT_LOSS) for name in names)

    def measure_all(own: Path, tokens: Path) -> None:
        made = _answer(client, candidate, own, tokens) if answers else _measure(own, tokens)
        found.metrics.update(made.metrics)

    why = _on_its_files(client, champion, candidate, uri, measure_all)
    if why is None:
        keep_items(client, champion, later, found, f"on-{later.removeprefix(MEASURED)}-version-{champion.version}.parquet")
    return found, why


def champion_beside(
    client: MlflowClient, champion: ModelVersion, candidate: ModelVersion, evaluate: Evaluate, uri: str
) -> dict[str, Any]:
    """Return what a person sees of the champion beside a candidate: `metrics` (name -> mean on the candidate's items) and
    `answers` (row -> text) to its held-out prompts. What is not known is measured; what cannot be is left out."""
    from talaria.evaluation.stage import heldout_answers

    metrics: dict[str, float | None] = {}
    if (ours := read_items(client, candidate, ITEMS)) is not None:
        theirs, _ = champion_items(client, champion, candidate, ours, list(ours.metrics), uri)
        metrics = {
            name: theirs.metrics[name].on(ours.metrics[name].items).mean for name in theirs.metrics if name in ours.metrics
        }
    answers: dict[int, str] = {}
    _on_its_files(client, champion, candidate, uri, lambda own, tokens: answers.update(heldout_answers(evaluate, own, tokens)))
    return {"metrics": metrics, "answers": answers}


def _on_its_files(
    client: MlflowClient, champion: ModelVersion, candidate: ModelVersion, uri: str, act: Callable[[Path, Path], object]
) -> str | None:
    """Call `act` with the champion's folder and the candidate's tokens; return why that is not possible, or None."""
    tokens = Path(tags_of(candidate).get(TOKENS, ""))
    if not tokens.is_dir():
        return f"the tokens that the candidate was trained on ({tokens}) are not on this machine"
    with in_use(tokens / MANIFEST), files_of(client, champion, uri) as own:
        if own is None:
            return f"its files ({location_of(client, champion)}) are not on this machine"
        if file_digest(own / _TOKENIZER) != file_digest(tokens / "tokenizer" / _TOKENIZER):
            return "it has another tokenizer, so that losses per token do not compare; promote by hand"
        act(own, tokens)
    return None


def _measure_loss(model: Path, tokens: Path) -> float:
    loss = _measure(model, tokens).metrics[HELDOUT_LOSS].mean
    assert loss is not None  # the candidate was measured on them
    return loss


def _answer(client: MlflowClient, candidate: ModelVersion, model: Path, tokens: Path) -> Items:
    """Measure a model on everything that the candidate was: conversations, prompts and tasks, by the settings of that time."""
    from talaria.evaluation.stage import REPORT, measure_items
    from talaria.evaluation.tasks.checks import FILES, with_files_in

    with tempfile.TemporaryDirectory(prefix="talaria-") as scratch:
        assert candidate.run_id  # it has results per item, which are files of its run
        folder = Path(client.download_artifacts(candidate.run_id, str(Path(tags_of(candidate)[ITEMS]).parent), scratch))
        settings = Evaluate.model_validate(read_object(folder / REPORT)["settings"])
        return measure_items(with_files_in(settings, folder / FILES), model, tokens)


def _measure(model: Path, tokens: Path) -> Items:
    from talaria.evaluation.exam import heldout_items
    from talaria.evaluation.heldout_loss import best_device, heldout_loss, open_model
    from talaria.tokenization.dataset import VALIDATION, open_tokens

    split = open_tokens(tokens)[VALIDATION]
    assert split is not None  # the candidate was measured on it
    found = Items()
    found.add(HELDOUT_LOSS, heldout_items(split, heldout_loss(open_model(model, best_device()), split, _MAX_TOKENS)))
    return found
