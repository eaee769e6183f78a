"""Do what the tasks of the DAGs do: call the same functions as the command line, with Airflow's context around them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context, get_current_context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSkipException
from talaria.common.errors import ConfigError, UserError
from talaria.config import load as settings
from talaria.config.folder import config_file, config_names
from talaria.config.schema import Config
from talaria.stages.table import planned_keys
from talaria.store.store import Output, Store
from talaria.workflow import convert_parts, tokenize_parts

from talaria_airflow.listeners.run_notes import NOTE, told_of_pools
from talaria_airflow.notifiers.alert import Alert
from talaria_airflow.operators.approval import ANSWER_DAYS, REJECT
from talaria_airflow.operators.stage import given, given_output, name_user, store_root
from talaria_airflow.operators.xcom import storable
from talaria_airflow.parameters import form

log = logging.getLogger(__name__)
Json = Mapping[str, Any]
BUDGET_DAYS = 30


def store() -> Store:
    return Store(store_root())


def configure(context: Context, name: str | None) -> dict[str, Any]:
    """Return the validated configuration of this run, as JSON, for every later task.

    `name`: the DAG's only configuration; None: the run's parameter `config` names it.
    Raises ConfigError, the command line's sentence, for a setting that does not validate, UserError for what is certain to fail,
    and AirflowSkipException when a scheduled run has nothing to do or no money left.
    """
    run, params = context["dag_run"], context["params"]
    if unknown := sorted(set(run.conf or {}) - set(context["dag"].params)):
        raise ConfigError(f"unknown parameter {unknown[0]}; a run takes config, force, set and the settings by their names.")
    given = {**_triggering_revision(context), **form.overrides(params)}
    config = settings.load(config_file(name or params["config"]), given)
    if run.run_type != "manual" and not params.get("force") and (reason := _reason_to_skip(config)):
        log.info("This run is skipped: %s", reason)
        note(context, f"Skipped: {reason}")
        raise AirflowSkipException(reason)
    _plan(config, told_of_pools(run.note), force=bool(params.get("force")))
    return config.model_dump(mode="json")


def _plan(config: Config, no_pool: str | None, *, force: bool) -> None:
    """Log what the run will reuse, make, take and cost. Raises UserError with everything that is certain to fail.

    `no_pool`: the sentence on a pool without slots.
    """
    from talaria.tracking.mlflow_client import tracking_uri
    from talaria.workflow.forecast.forecast import forecast, refuse
    from talaria.workflow.forecast.lines import lines

    one_machine = "LocalExecutor" in conf.get("core", "executor", fallback="")
    facts = forecast(config, store(), uri=tracking_uri(store().root), trains_here=one_machine, force=force)
    for line in lines(facts):
        log.info("%s", line)
    refuse(facts | {"problems": [no_pool, *facts["problems"]], "passing": False} if no_pool else facts)


def note(context: Context, sentence: str) -> None:
    """Have a sentence as the run's note when the run has ended (listeners/run_notes.py)."""
    context["ti"].xcom_push(key=NOTE, value=sentence)


def _triggering_revision(context: Context) -> dict[str, str]:
    """The commit that a watcher saw, so that the run trains on it even if the branch has moved on since."""
    events = [event for group in context["triggering_asset_events"].values() for event in group]
    commits = [event.extra["payload"]["commit"] for event in events if event.extra.get("from_trigger")]
    return {"download.revision": commits[-1]} if commits else {}


def _reason_to_skip(config: Config) -> str | None:
    """Why a run that nobody asked for should not happen; None where it should."""
    from talaria.registry.promotion.champion import unchanged
    from talaria.tracking.mlflow_client import tracking_uri

    uri = tracking_uri(store().root)
    if config.schedule.skip_unchanged and (reason := unchanged(config.registered_name, planned_keys(config)["train"], uri=uri)):
        return reason
    if (budget := config.schedule.monthly_budget) is None:
        return None
    from talaria.tracking.spending import Spending, spending

    spent = spending(uri, days=BUDGET_DAYS).get(config.registered_name, Spending())
    if spent.cost < budget:
        return None
    return (
        f"The trainings of {config.registered_name} in the last {BUDGET_DAYS} days cost {spent.cost:.2f}, "
        f"and schedule.monthly_budget is {budget:.2f}. A run that somebody triggers is not held back."
    )


def parts_to_convert(config: Json, upstream: Json) -> list[int]:
    """Files and ranges of bytes to convert, each two mapped tasks."""
    return convert_parts.parts_to_do(parse(config), store(), outputs(upstream), force=forced())


def find_columns(config: Json, upstream: Json, part: int) -> None:
    convert_parts.find_columns(parse(config), store(), outputs(upstream), part)


def convert_part(config: Json, upstream: Json, part: int) -> None:
    convert_parts.convert_part(parse(config), store(), outputs(upstream), part)


def configure_sweep(context: Context) -> dict[str, Any]:
    """Return the validated configuration of a sweep. Raises ConfigError for a sweep that cannot be run."""
    from talaria.sweep.plan import plan

    config = configure(context, None)
    plan(parse(config))
    return config


def open_sweep(config: Json, upstream: Json) -> None:
    """Make the sweep's run in MLflow."""
    from talaria.sweep.record import SweepRun
    from talaria.tracking.mlflow_client import tracking_uri

    name_user(get_current_context())
    run = SweepRun.open(parse(config), store(), outputs(upstream), tracking_uri(store().root))
    log.info("MLflow run: %s", run.url or run.run_id)


def trials(config: Json, *, references: bool) -> list[dict[str, Any]]:
    """Return the sweep's references, or its other trials, each for a mapped task."""
    from talaria.sweep.plan import plan

    chosen = [trial for trial in plan(parse(config)) if trial.reference is references]
    return [{"number": trial.number, "settings": dict(trial.settings)} for trial in chosen]


def choose(config: Json, upstream: Json, references: Any, others: Any) -> dict[str, Any]:
    """Return the best trial's configuration and training, and record all of them in MLflow."""
    from talaria.sweep.plan import plan
    from talaria.sweep.record import SweepRun
    from talaria.sweep.run import best_of, by_number, told
    from talaria.tracking.mlflow_client import tracking_uri

    outcomes = by_number([*(references or ()), *(others or ())])
    trials = plan(parse(config))
    if missing := len(trials) - len(outcomes):
        raise UserError(f"{missing} of {len(trials)} trials have no result: they were marked as success, or skipped. Clear them.")
    for outcome in outcomes:
        log.info("trial %s, %s: %s", outcome.number, trials[outcome.number - 1].label, told(outcome))
    best = best_of(outcomes)
    run = SweepRun.open(parse(config), store(), outputs(upstream), tracking_uri(store().root))
    run.close(outcomes, best)
    found = store().find("train", best.key)
    if found is None:
        raise UserError(f"{best.folder}: the best trial's training is gone, pruned perhaps. Clear its task to make it again.")
    note(get_current_context(), f"The best is trial {best.number}, {trials[best.number - 1].label}: {told(best)}.")
    chosen = trials[best.number - 1].config.model_dump(mode="json")
    return {"config": chosen, "train": storable(found.as_json()), "best": best.number}


def parts_to_do(config: Json, upstream: Json) -> list[int]:
    """Row ranges to tokenise, each a mapped task."""
    return tokenize_parts.parts_to_do(parse(config), store(), outputs(upstream), force=forced())


def tokenize_part(config: Json, upstream: Json, part: int) -> None:
    tokenize_parts.tokenize_part(parse(config), store(), outputs(upstream), part)


def parse(config: Json) -> Config:
    """The configuration that `configure` validated."""
    return settings.parse(given("configure", config), "configuration")


def outputs(upstream: Json) -> dict[str, Output]:
    return {name: given_output(store(), name, value) for name, value in upstream.items()}


def forced() -> bool:
    return bool(get_current_context()["params"].get("force"))


def has_to_be_asked(config: Json, compared: Json) -> bool:
    """Whether a person has something to decide: the alias would move, and the configuration wants to be asked."""
    return bool(parse(config).promote.approval and given("compare", compared)["promoted"])


def promote(config: Json, registered: Json, answer: Json | None, context: Context) -> dict[str, Any]:
    """Give the candidate the champion alias if it beats the base model and the champion, and nobody said no.

    `answer`: what the person said, or None where nobody was asked.
    """
    from talaria.registry.promotion.promote import promote as work
    from talaria.registry.promotion.promote import reject
    from talaria.tracking.mlflow_client import tracking_uri

    candidate = given("register", registered)
    model, version, uri = candidate["model"], int(candidate["candidate"]), tracking_uri(store().root)
    who = ((answer or {}).get("responded_by_user") or {}).get("name")
    if answer and REJECT in answer["chosen_options"] and who:
        decided = reject(model, version, by=who, uri=uri)
    elif answer and REJECT in answer["chosen_options"]:
        reason = f"Version {version} is not promoted. Nobody answered within {ANSWER_DAYS} days; a new run asks again."
        decided = {"model": model, "version": version, "promoted": False, "reason": reason}
    else:
        decided = work(model, version, settings=parse(config).promote, uri=uri, approved_by=who)
    log.info("%s version %s: %s", model, version, decided["reason"])
    note(context, decided["reason"])
    return storable(decided)


def rollback(context: Context) -> dict[str, Any]:
    """Give the champion alias back to the previous champion, in the name of the user who triggered the run."""
    from talaria.registry.promotion.rollback import rollback as work
    from talaria.tracking.mlflow_client import tracking_uri

    run, params = context["dag_run"], context["params"]
    who = run.triggering_user_name or "unknown"
    uri = tracking_uri(store().root)
    moved = work(params["model"], reason=params["reason"], who=who, uri=uri, request=run.run_id)
    log.info("%s: champion is version %s again, instead of %s", moved["model"], moved["champion"], moved["from"])
    return moved


def wait_for_swap(config: Json, promoted: Json) -> dict[str, Any]:
    """Wait until the server of serving.url answers with the promoted version. Raises Unavailable where that takes too long."""
    from talaria.serving.client import ServedModel

    settings, decided = parse(config), given("promote", promoted)
    if settings.serving.url is None:
        raise AirflowSkipException("serving.url is not set: no server is waited for.")
    if not decided["promoted"]:
        raise AirflowSkipException("Nothing was promoted.")
    with ServedModel(settings.serving.url, decided["model"]) as served:
        state = served.wait_for(int(decided["version"]), settings.serving.swap_seconds)
    log.info("%s serves version %s.", settings.serving.url, state["version"])
    return storable(state)


def served_configs(context: Context) -> list[str]:
    """The configuration that the run names, or all with serving.url. Raises AirflowSkipException where there are none."""
    if name := context["params"]["config"]:
        return [name]
    names = [name for name in config_names() if settings.load(config_file(name)).serving.url is not None]
    if not names:
        raise AirflowSkipException("No configuration has serving.url: there is nothing to watch.")
    return names


def watch(context: Context, name: str) -> dict[str, Any]:
    """Score the served champion of a configuration; roll it back where it has fallen, and tell the configuration's channels."""
    from talaria.serving.watch import watch as work
    from talaria.tracking.mlflow_client import tracking_uri

    config = settings.load(config_file(name))
    found = work(config, uri=tracking_uri(store().root), request=f"{context['dag_run'].run_id} {name}")
    log.info("%s", found["reason"])
    if found["rolled_back_to"] is not None:
        Alert("", config.alerts.model_dump()).tell(found["reason"])
    return storable(found)
