"""The gate before `champion`: a candidate passes, is refused, or is rejected by a person.

A version becomes champion when it is better than the base model and the present champion on the same items, beyond noise
(noise_rule.py) or by its mean held-out loss (gate.py). Whatever is decided is written on the version: numbers, rule, reason.
An alias moves in one call to MLflow; everything before and after it can be done twice without harm, so a retry ends where the
first attempt would have.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError
from talaria.common.redact import scrub
from talaria.config.evaluation_settings import Evaluate, Promote
from talaria.registry.promotion.gate import Decision, Losses
from talaria.registry.promotion.gate_numbers import ask_gate, gate_rules
from talaria.registry.versions import (
    BASE_LOSS,
    CANDIDATE,
    CHALLENGER,
    CHAMPION,
    GATE,
    LOSS,
    PREVIOUS,
    REJECTED,
    ROLLED_BACK,
    add_entry,
    as_number,
    drop_tags,
    find_model,
    get_version,
    now,
    search_versions,
    set_tags,
    tags_of,
)
from talaria.tracking.mlflow_client import connect, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

APPROVED_BY = f"{GATE}.approved_by"


def promote(
    model: str,
    version: int | None = None,
    *,
    settings: Promote | None = None,
    margin: float | None = None,
    uri: str,
    by: str | None = None,
    approved_by: str | None = None,
) -> dict[str, Any]:
    """Let a version (None: the newest candidate) through the gate, or name the reason why not.

    `settings`: the section promote of a configuration (absent: the defaults); `margin`: instead of its own.

    `by`: a person who promotes whatever the gate says; it is still asked, and its answer kept.
    `approved_by`: a person who was asked before, and agreed to what the gate says.
    """
    client = connect(uri)
    with plain_errors(uri):
        aliases = find_model(client, model)
        candidate = get_version(client, model, version) if version else _newest_candidate(client, model)
        number, champion = int(candidate.version), aliases.get(CHAMPION)
        if champion == number:
            return _told(client, candidate, champion)
        rules = gate_rules(settings, margin)
        losses, decision = ask_gate(client, candidate, champion, rules, by, uri)
        _write_decision(client, candidate, decision, losses, rules, champion, by)
        set_tags(client, model, number, {APPROVED_BY: scrub(approved_by) if approved_by else None})
        if decision.promoted:
            _set_champion(client, model, number, champion)
            if aliases.get(CHALLENGER) == number:
                client.delete_registered_model_alias(model, CHALLENGER)
        elif number > aliases.get(CHALLENGER, 0):
            client.set_registered_model_alias(model, CHALLENGER, str(number))
    return {
        "model": model,
        "version": number,
        "promoted": decision.promoted,
        "reason": f"Version {number} {'is the champion' if decision.promoted else 'is not promoted'}. {decision.reason}",
        "losses": asdict(losses),
        "champion": number if decision.promoted else champion,
        "previous": champion,
    }


def preview(
    model: str,
    version: int | None = None,
    *,
    settings: Promote | None = None,
    margin: float | None = None,
    evaluate: Evaluate | None = None,
    uri: str,
) -> dict[str, Any]:
    """Return what `promote` would decide, and move nothing. Measures the champion where its loss is not known.

    `promoted`: whether the alias would move now; `rejected`: whether a person has said no to this version; `beside`: with
    `evaluate`, the settings of the candidate's evaluation, what a person who is asked sees of the champion.
    """
    client = connect(uri)
    with plain_errors(uri):
        candidate = get_version(client, model, version) if version else _newest_candidate(client, model)
        number, champion = int(candidate.version), find_model(client, model).get(CHAMPION)
        if champion == number:
            return {"model": model, "version": number, "promoted": False, "champion": champion, "rejected": False} | {
                "reason": f"Version {number} is the champion already.",
                "losses": {
                    name: as_number(tags_of(candidate).get(tag)) for name, tag in (("candidate", LOSS), ("base", BASE_LOSS))
                },
            }
        losses, decision = ask_gate(client, candidate, champion, gate_rules(settings, margin), None, uri)
        beside = None
        if evaluate is not None and champion is not None and decision.promoted:
            from talaria.registry.promotion.champion_loss import champion_beside

            beside = champion_beside(client, get_version(client, model, champion), candidate, evaluate, uri)
    return {
        "model": model,
        "version": number,
        "promoted": decision.promoted,
        "reason": decision.reason,
        "losses": asdict(losses),
        "champion": champion,
        "rejected": f"{REJECTED}_by" in tags_of(candidate),
        **({"beside": beside} if beside else {}),
    }


def reject(model: str, version: int, *, by: str, uri: str) -> dict[str, Any]:
    """Write on a version that a person said no to it. From then on only a person can promote it."""
    client = connect(uri)
    with plain_errors(uri):
        candidate, champion = get_version(client, model, version), find_model(client, model).get(CHAMPION)
        reason = f"Version {version} is not promoted. It was rejected by {scrub(by)}."
        if tags_of(candidate).get(f"{REJECTED}_by") is None:
            set_tags(client, model, version, {GATE: "rejected", f"{REJECTED}_by": scrub(by), f"{REJECTED}_at": now()})
            add_entry(client, model, version, now(), f"Rejected by {scrub(by)}")
    return {"model": model, "version": version, "promoted": False, "reason": reason, "champion": champion, "previous": champion}


def _write_decision(
    client: MlflowClient,
    candidate: ModelVersion,
    decision: Decision,
    losses: Losses,
    rules: Promote,
    champion: int | None,
    by: str | None,
) -> None:
    model, number = candidate.name, str(candidate.version)
    tags = {
        GATE: "promoted" if decision.promoted else "refused",
        f"{GATE}.reason": decision.reason,
        f"{GATE}.rule": rules.rule,
        f"{GATE}.margin": rules.margin,
        f"{GATE}.loss": losses.candidate,
        f"{GATE}.base_loss": losses.base,
        f"{GATE}.champion_loss": losses.champion,
        f"{GATE}.champion": champion,
        f"{GATE}.at": now(),
        f"{GATE}.by": scrub(by) if by else None,
        PREVIOUS: champion if decision.promoted else None,
    }
    set_tags(client, model, number, tags)
    add_entry(client, model, number, now(), decision.reason)
    if decision.promoted:
        drop_tags(client, model, number, (ROLLED_BACK, REJECTED))  # a person's promotion ends what an earlier word forbade


def _set_champion(client: MlflowClient, model: str, number: int, previous: int | None) -> None:
    client.set_registered_model_alias(model, CHAMPION, str(number))
    if previous is not None:
        set_tags(client, model, previous, {"talaria.succeeded_by": number})


def _told(client: MlflowClient, version: ModelVersion, number: int) -> dict[str, Any]:
    """What was decided when this version became the champion it is."""
    tags = tags_of(version)
    previous = int(tags[PREVIOUS]) if PREVIOUS in tags else None
    _set_champion(client, version.name, number, previous)  # an attempt that was killed may have left this undone
    losses = {name: as_number(tags.get(f"{GATE}.{tag}")) for name, tag in _LOSS_TAGS.items()}
    reason = f"Version {number} is the champion already. {tags.get(f'{GATE}.reason', '')}".rstrip()
    return {
        "model": version.name,
        "version": number,
        "promoted": True,
        "reason": reason,
        "losses": losses,
        "champion": number,
        "previous": previous,
    }


_LOSS_TAGS = {"candidate": "loss", "base": "base_loss", "champion": "champion_loss"}


def _newest_candidate(client: MlflowClient, model: str) -> ModelVersion:
    found = search_versions(client, model, f"tags.`{CANDIDATE}` = 'true'")
    if not found:
        raise DataError(f"{model}: has no version that Talaria registered; name the version to promote.")
    return found[0]
