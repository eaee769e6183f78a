"""What the gate decides on: the numbers of a candidate, its base model and the champion, and what people said of it before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talaria.common.redact import scrub
from talaria.config.evaluation_settings import HELDOUT_LOSS, Promote
from talaria.registry.promotion.gate import Decision, Losses, decide
from talaria.registry.promotion.noise_rule import Rival, decide_beyond_noise, metrics_needed
from talaria.registry.version_items import BASE_ITEMS, ITEMS, read_items
from talaria.registry.versions import BASE_LOSS, LOSS, REJECTED, ROLLED_BACK, as_number, get_version, tags_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def ask_gate(
    client: MlflowClient, candidate: ModelVersion, champion: int | None, rules: Promote, by: str | None, uri: str
) -> tuple[Losses, Decision]:
    """The gate's numbers and its decision, after what people said about this version before."""
    present = get_version(client, candidate.name, champion) if champion else None
    if rules.rule == "plain":
        losses, unmeasured = _losses(client, candidate, present, by, uri)
        return losses, _overruled(decide(losses, rules.margin, champion, unmeasured), candidate, by)
    losses, decision = _compare_items(client, candidate, present, rules, by, uri)
    return losses, _overruled(decision, candidate, by)


def gate_rules(settings: Promote | None, margin: float | None) -> Promote:
    """The section promote with another margin, as if it had been written so."""
    rules = settings or Promote()
    return rules if margin is None else Promote.model_validate(rules.model_dump() | {"margin": margin})


def _compare_items(
    client: MlflowClient, candidate: ModelVersion, champion: ModelVersion | None, rules: Promote, by: str | None, uri: str
) -> tuple[Losses, Decision]:
    """The rule `noise`: results per item of the candidate, its base model and the champion."""
    own, base = as_number(tags_of(candidate).get(LOSS)), as_number(tags_of(candidate).get(BASE_LOSS))
    ours = read_items(client, candidate, ITEMS)
    why = "the candidate was evaluated without it" if base is None else "its results per item are not there"
    rivals = [Rival("the base model", read_items(client, candidate, BASE_ITEMS), why)]
    loss = None
    if champion is not None and ours is not None:
        from talaria.registry.promotion.champion_loss import champion_items

        names = metrics_needed(rules, ours)
        theirs, why_not = champion_items(client, champion, candidate, ours, names, uri, measure=by is None)
        rivals.append(Rival(f"the champion (version {champion.version})", theirs, why_not, guarded=True))
        measured = theirs.find(HELDOUT_LOSS)
        loss = measured.mean if measured else None
    return Losses(own, base, loss), decide_beyond_noise(rules, ours, own, rivals)


def _losses(
    client: MlflowClient, candidate: ModelVersion, champion: ModelVersion | None, by: str | None, uri: str
) -> tuple[Losses, str | None]:
    """The three numbers, and why the champion's is missing where it is."""
    own, base = as_number(tags_of(candidate).get(LOSS)), as_number(tags_of(candidate).get(BASE_LOSS))
    if champion is None or own is None:
        return Losses(own, base), None
    from talaria.registry.promotion.champion_loss import champion_loss

    loss, why = champion_loss(client, champion, candidate, uri, measure=by is None)
    return Losses(own, base, loss), why


def _overruled(decision: Decision, candidate: ModelVersion, by: str | None) -> Decision:
    """A person's word over the gate's, and a rollback's over a better loss: nobody has said that its reason is gone."""
    if by is not None:
        return Decision(True, f"Promoted by {scrub(by)}. The gate says: {decision.reason}")
    if ROLLED_BACK in tags_of(candidate):
        why, who = (tags_of(candidate).get(f"{ROLLED_BACK}_{name}", "?") for name in ("reason", "by"))
        return Decision(False, f"It was rolled back by {who}: {why}. Only a person can promote it again.")
    if f"{REJECTED}_by" in tags_of(candidate):
        return Decision(False, f"It was rejected by {tags_of(candidate)[f'{REJECTED}_by']}. Only a person can promote it.")
    return decision
