"""What a run of the DAG can be given: a typed form made from the settings, checked when the run is triggered.

Airflow checks each parameter against its JSON schema before a run exists, in the form, over REST and on its command line.
Two formats of our own in those schemas (formats.py) ask Talaria itself, so that the refusal is the sentence of the
command line, and a configuration file that was added a moment ago counts. Without them the plain schemas still hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param
from talaria.common.errors import ConfigError
from talaria.config import json_schema
from talaria.config.folder import config_names
from talaria.config.load import documentation

from talaria_airflow.parameters.formats import CONFIGURATION, NUMBER, OF_THE_DAG, SETTINGS, as_typed, refuse_what_cannot_be_set

OF_A_SWEEP = "sweep."
FIRST = (
    "download.path",
    "download.repo",
    "base.repo",
    "base.path",
    "name",
    "train.epochs",
    "train.lr",
    "train.num_processes",
    "promote.approval",
)
"""Fields at the top of the form; the other settings follow in sections."""


def run_parameters(config: str, *, fixed: bool, sweeps: bool = False) -> dict[str, Param]:
    """Return the parameters of a DAG whose form starts with the configuration `config`; `fixed`: it has no other.

    `sweeps`: it runs the trials of a sweep, so that a run can say which.
    """
    unread = OF_THE_DAG if sweeps else (*OF_THE_DAG, OF_A_SWEEP)
    fields = {name: schema for name, schema in json_schema.setting_schemas().items() if not name.startswith(unread)}
    params = {} if fixed else {"config": _configuration(config)}
    defaults = {name: default for name, default, _ in documentation()}
    params |= {name: _field(name, fields[name], defaults[name]) for name in FIRST}
    if not sweeps:  # a trial is never trained twice
        params["force"] = Param(False, type="boolean", description="Make every stage again, and run even if nothing has changed.")
    params["set"] = Param(
        {},
        format=SETTINGS,
        type="object",
        properties={
            name: {key: value for key, value in schema.items() if key != "description"} for name, schema in fields.items()
        },
        additionalProperties=False,
        description='Settings to override by name, for example {"train.max_steps": 100}; the fields of this form say the same.',
    )
    return params | {name: _field(name, schema, defaults[name]) for name, schema in fields.items() if name not in FIRST}


def overrides(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run was given, by form fields and by `set`. Raises ConfigError where the two disagree."""
    given = dict(params["set"])
    refuse_what_cannot_be_set(given)
    for name, schema in json_schema.setting_schemas().items():
        if (value := params.get(name)) is None:
            continue
        value = as_typed(value) if json_schema.is_number(schema) else value
        if given.setdefault(name, value) != value:
            raise ConfigError(f"{name} is given twice: {value!r} as a field and {given[name]!r} in `set`; leave one out.")
    return given


def _configuration(config: str) -> Param:
    return Param(
        config,
        format=CONFIGURATION,
        type="string",
        minLength=1,
        examples=config_names(),
        description="Name of a file in the configuration folder, without .yaml.",
    )


def _field(name: str, schema: Mapping[str, Any], default: Any) -> Param:
    """A field that is empty as long as the configuration decides. `default`: what a configuration without the setting has."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    options: dict[str, Any] = {**schema, "type": [*dict.fromkeys((*kinds, "null"))]}
    if "enum" in schema:
        options["enum"] = [*schema["enum"], None]
    if json_schema.is_number(schema):  # Airflow's own field for numbers makes 15 of 1e-5, nothing of -1, and the minimum of 0
        known = [] if default is None else [default]  # with examples, text or number is one line of text
        options |= {"type": ["string", *options["type"]], "format": f"{NUMBER}{name}", "examples": known}
    if "boolean" in kinds:  # a switch that nobody touched looks like one that is off
        options["description"] = f"{options['description']} Untouched: as the configuration says."
    if name not in FIRST:
        options["section"] = name.partition(".")[0]
    return Param(None, title=name, **options)
