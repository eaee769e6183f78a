"""The gate before `champion`, and the way back.

A version becomes champion when it is better than the base model and the present champion on the same items, beyond noise
(noise_rule.py) or by its mean held-out loss (gate.py). Whatever is decided is written on the version: numbers, rule, reason.
An alias moves in one call to MLflow; everything before and after it can be done twice without harm, so a retry ends where the
first attempt would have.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError
from talaria.common.redact import scrub
from talaria.config.evaluation_settings import HELDOUT_LOSS, Evaluate, Promote
from talaria.registry.gate import Decision, Losses, decide
from talaria.registry.noise_rule import Rival, decide_beyond_noise, metrics_needed
from talaria.registry.version_items import BASE_ITEMS, ITEMS, read_items
from talaria.registry.versions import (
    BASE_LOSS,
    CANDIDATE,
    CHALLENGER,
    CHAMPION,
    LOSS,
    PREVIOUS,
    TRAIN_KEY,
    add_entry,
    as_number,
    drop_tags,
    find_model,
    keys_of,
    of_training,
    search_versions,
    set_tags,
    tags_of,
)
from talaria.tracking.mlflow_client import connect, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

GATE = "talaria.gate"
ROLLED_BACK, REJECTED = "talaria.rolled_back", "talaria.rejected"
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
        candidate = _get(client, model, version) if version else _newest_candidate(client, model)
        number, champion = int(candidate.version), aliases.get(CHAMPION)
        if champion == number:
            return _told(client, candidate, champion)
        rules = _rules(settings, margin)
        losses, decision = _ask(client, candidate, champion, rules, by, uri)
        _write_decision(client, candidate, decision, losses, rules, champion, by)
        set_tags(client, model, number, {APPROVED_BY: scrub(approved_by) if approved_by else None})
        if decision.promoted:
            _crown(client, model, number, champion)
            if aliases.get(CHALLENGER) == number:
                client.delete_registered_model_alias(model, CHALLENGER)
        elif number > aliases.get(CHALLENGER, 0):
            client.set_registered_model_alias(model, CHALLENGER, str(number))
    return {
        "model": model,
        "version": number,
        "promoted": decision.promoted,
        "reason": f"Version {number} {'is the champion' if decision.promoted else 'is not promoted'}. {decision.reason}",
        "losses": {"candidate": losses.candidate, "base": losses.base, "champion": losses.champion},
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
        candidate = _get(client, model, version) if version else _newest_candidate(client, model)
        number, champion = int(candidate.version), find_model(client, model).get(CHAMPION)
        if champion == number:
            return {"model": model, "version": number, "promoted": False, "champion": champion, "rejected": False} | {
                "reason": f"Version {number} is the champion already.",
                "losses": {
                    name: as_number(tags_of(candidate).get(tag)) for name, tag in (("candidate", LOSS), ("base", BASE_LOSS))
                },
            }
        losses, decision = _ask(client, candidate, champion, _rules(settings, margin), None, uri)
        beside = None
        if evaluate is not None and champion is not None and decision.promoted:
            from talaria.registry.champion_loss import champion_beside

            beside = champion_beside(client, _get(client, model, champion), candidate, evaluate, uri)
    return {
        "model": model,
        "version": number,
        "promoted": decision.promoted,
        "reason": decision.reason,
        "losses": {"candidate": losses.candidate, "base": losses.base, "champion": losses.champion},
        "champion": champion,
        "rejected": f"{REJECTED}_by" in tags_of(candidate),
        **({"beside": beside} if beside else {}),
    }


def reject(model: str, version: int, *, by: str, uri: str) -> dict[str, Any]:
    """Write on a version that a person said no to it. From then on only a person can promote it."""
    client = connect(uri)
    with plain_errors(uri):
        candidate, champion = _get(client, model, version), find_model(client, model).get(CHAMPION)
        reason = f"Version {version} is not promoted. It was rejected by {scrub(by)}."
        if tags_of(candidate).get(f"{REJECTED}_by") is None:
            set_tags(client, model, version, {GATE: "rejected", f"{REJECTED}_by": scrub(by), f"{REJECTED}_at": _now()})
            add_entry(client, model, version, _now(), f"Rejected by {scrub(by)}")
    return {"model": model, "version": version, "promoted": False, "reason": reason, "champion": champion, "previous": champion}


def rollback(model: str, *, reason: str, who: str, uri: str, request: str | None = None) -> dict[str, Any]:
    """Make the champion before this one champion again, and write on the version that leaves who, when, why.

    `request`: an id under which a repeated call (Airflow's retry) finds that it has been done.
    Raises DataError where there is nothing to go back to.
    """
    client = connect(uri)
    with plain_errors(uri):
        leaving = _find_request(client, model, request) or _champion(client, model)
        number = int(leaving.version)
        if PREVIOUS not in tags_of(leaving):
            raise DataError(f"{model}: version {number} is its first champion, so there is none to go back to.")
        back = int(tags_of(leaving)[PREVIOUS])
        _get(client, model, back)  # it may have been deleted
        if request is None or tags_of(leaving).get(f"{ROLLED_BACK}_request") != request:
            _write_rollback(client, leaving, back, scrub(reason), scrub(who), request)
        if find_model(client, model).get(CHAMPION) == number:
            client.set_registered_model_alias(model, CHAMPION, str(back))
    return {"model": model, "champion": back, "from": number, "reason": reason, "who": who}


def champion(model: str, *, uri: str) -> dict[str, Any] | None:
    """The present champion and the keys of the stages it came from; None where there is none."""
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    with plain_errors(uri):
        try:
            version = client.get_model_version_by_alias(model, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, or no such alias
                return None
            raise
    tags = tags_of(version)
    loss = as_number(tags.get(LOSS))
    return {"version": int(version.version), "train_key": tags.get(TRAIN_KEY), "keys": keys_of(version), "loss": loss}


def unchanged(model: str, train_key: str, *, uri: str) -> str | None:
    """Why a scheduled run that would train `train_key` has nothing to do; None where it has."""
    now = champion(model, uri=uri)
    if now is None:
        return None
    if now["train_key"] == train_key:
        return f"Nothing has changed since champion version {now['version']} of {model}: same data, base model and settings."
    client = connect(uri)
    with plain_errors(uri):
        for version in of_training(client, model, train_key):
            if ROLLED_BACK in (tags := tags_of(version)):
                why = tags.get(f"{ROLLED_BACK}_reason")
                return f"Version {version.version} of {model} is this very training, and was rolled back: {why}."
    return None


def _rules(settings: Promote | None, margin: float | None) -> Promote:
    """The section promote with another margin, as if it had been written so."""
    rules = settings or Promote()
    return rules if margin is None else Promote.model_validate(rules.model_dump() | {"margin": margin})


def _ask(
    client: MlflowClient, candidate: ModelVersion, champion: int | None, rules: Promote, by: str | None, uri: str
) -> tuple[Losses, Decision]:
    """The gate's numbers and its decision, after what people said about this version before."""
    present = _get(client, candidate.name, champion) if champion else None
    if rules.rule == "plain":
        losses, unmeasured = _losses(client, candidate, present, by, uri)
        return losses, _overruled(decide(losses, rules.margin, champion, unmeasured), candidate, by)
    losses, decision = _compare_items(client, candidate, present, rules, by, uri)
    return losses, _overruled(decision, candidate, by)


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
        from talaria.registry.champion_loss import champion_items

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
    from talaria.registry.champion_loss import champion_loss

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
        f"{GATE}.at": _now(),
        f"{GATE}.by": scrub(by) if by else None,
        PREVIOUS: champion if decision.promoted else None,
    }
    set_tags(client, model, number, tags)
    add_entry(client, model, number, _now(), decision.reason)
    if decision.promoted:
        drop_tags(client, model, number, (ROLLED_BACK, REJECTED))  # a person's promotion ends what an earlier word forbade


def _crown(client: MlflowClient, model: str, number: int, previous: int | None) -> None:
    client.set_registered_model_alias(model, CHAMPION, str(number))
    if previous is not None:
        set_tags(client, model, previous, {"talaria.succeeded_by": number})


def _told(client: MlflowClient, version: ModelVersion, number: int) -> dict[str, Any]:
    """What was decided when this version became the champion it is."""
    tags = tags_of(version)
    previous = int(tags[PREVIOUS]) if PREVIOUS in tags else None
    _crown(client, version.name, number, previous)  # an attempt that was killed may have left this undone
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


def _get(client: MlflowClient, model: str, version: int) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(model, str(version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise DataError(f"{model}: has no version {version}.") from None
        raise


def _write_rollback(client: MlflowClient, leaving: ModelVersion, back: int, reason: str, who: str, request: str | None) -> None:
    model, number = leaving.name, str(leaving.version)
    add_entry(client, model, number, _now(), f"Rolled back to version {back} by {who}: {reason}")
    tags = {"": "true", "_to": back, "_by": who, "_at": _now(), "_reason": reason}
    set_tags(client, model, number, {f"{ROLLED_BACK}{name}": value for name, value in tags.items()})
    set_tags(client, model, number, {f"{ROLLED_BACK}_request": request})  # last: it says that the rest is written


def _newest_candidate(client: MlflowClient, model: str) -> ModelVersion:
    found = search_versions(client, model, f"tags.`{CANDIDATE}` = 'true'")
    if not found:
        raise DataError(f"{model}: has no version that Talaria registered; name the version to promote.")
    return found[0]


def _champion(client: MlflowClient, model: str) -> ModelVersion:
    number = find_model(client, model).get(CHAMPION)
    if number is None:
        raise DataError(f"{model}: has no champion to roll back.")
    return _get(client, model, number)


def _find_request(client: MlflowClient, model: str, request: str | None) -> ModelVersion | None:
    if request is None:
        return None
    rolled_back = search_versions(client, model, f"tags.`{ROLLED_BACK}` = 'true'")
    return next((version for version in rolled_back if tags_of(version).get(f"{ROLLED_BACK}_request") == request), None)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
