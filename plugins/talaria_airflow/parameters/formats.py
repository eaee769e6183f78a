"""Formats for the JSON schemas of a run's parameters, through which Airflow's own check asks Talaria.

Airflow validates parameters by jsonschema, which looks a schema's `format` up in a table that anybody may add to. An exception
that a format raises reaches the user as it is. The plugin registers them in every Airflow process.
"""

from __future__ import annotations

from functools import partial
from typing import Any

CONFIGURATION, SETTINGS, NUMBER = "talaria-configuration", "talaria-settings", "talaria-number:"
"""The third is followed by the name of a setting, whose number people type as text."""
OF_THE_DAG = ("schedule.", "alerts.")
"""Settings that a DAG reads when it is parsed, so that a run cannot change them."""


def register() -> None:
    """Add the formats to those that jsonschema knows in this process."""
    from jsonschema import FormatChecker
    from talaria.config.json_schema import is_number, setting_schemas

    FormatChecker.checkers[CONFIGURATION] = (_is_configuration, ())
    FormatChecker.checkers[SETTINGS] = (_are_settings, ())
    for name, schema in setting_schemas().items():
        if is_number(schema):
            FormatChecker.checkers[f"{NUMBER}{name}"] = (partial(_is_number_for, name), ())


def _is_configuration(value: Any) -> bool:
    """Raise ConfigError for a name that the folder of configurations does not have now.

    A process that does not have the folder (an api-server of its own machine) leaves the question to the first task.
    """
    from talaria.config.folder import config_file, config_folder

    if isinstance(value, str) and config_folder().is_dir():
        config_file(value)
    return True


def _are_settings(value: Any) -> bool:
    """Raise ConfigError for settings that do not exist or cannot take their value."""
    refuse_what_cannot_be_set(value)
    return True


def _is_number_for(name: str, value: Any) -> bool:
    """Raise ConfigError for a number that the setting cannot be."""
    if value is not None:
        refuse_what_cannot_be_set({name: as_typed(value)})
    return True


def as_typed(value: Any) -> Any:
    """Return text as the number that the command line makes of it; anything else as it is."""
    from talaria.config.load import scalar

    return scalar(value) if isinstance(value, str) else value


def refuse_what_cannot_be_set(value: Any) -> None:
    """Raise ConfigError, the sentence of the command line, for overrides that no run can take."""
    from talaria.common.errors import ConfigError
    from talaria.config.json_schema import check_overrides

    check_overrides(value)
    if belongs_to_dag := next((name for name in value if name.startswith(OF_THE_DAG)), None):
        raise ConfigError(f"{belongs_to_dag} is read when the DAG is parsed; change it in the configuration file.")
