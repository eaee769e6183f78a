"""Every setting of Talaria: one frozen model a stage (in the files NAME_settings.py), and the only place where a default lives.

A field's description is its documentation: `docs/configuration.md` and the trigger form are made from it.
`NotInKey` marks a setting that changes how fast or where a stage runs but not what it produces, so it takes no
part in the store's key (see store/store.py). Files and overrides are read in load.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from talaria.config.data_settings import Base, Convert, Download, Source, Tokenize
from talaria.config.evaluation_settings import EXACT_MATCH, HELDOUT_LOSS, Evaluate, Promote
from talaria.config.names import check_model, model_name
from talaria.config.operation_settings import Alerts, Registry, Schedule, Serving, Watch
from talaria.config.section import Section
from talaria.config.sweep_settings import Sweep
from talaria.config.train_settings import Train

_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Also a folder's name, and the end of a metric's."""


class Config(Section):
    name: Annotated[str, AfterValidator(check_model)] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and, by default, of the model."
    )
    download: Download = Download()
    convert: Convert = Convert()
    sources: dict[str, Source] = Field(
        {}, description="Several sources instead of download and convert: name -> settings; see docs/data.md."
    )
    base: Base = Base()
    tokenize: Tokenize = Tokenize()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    registry: Registry = Registry()
    promote: Promote = Promote()
    sweep: Sweep = Sweep()
    serving: Serving = Serving()
    watch: Watch = Watch()
    schedule: Schedule = Schedule()
    alerts: Alerts = Alerts()

    @model_validator(mode="after")
    def _budget_needs_a_price(self) -> Config:
        if self.schedule.monthly_budget is not None and self.registry.gpu_hour_price is None:
            raise ValueError("schedule.monthly_budget needs registry.gpu_hour_price")
        return self

    @model_validator(mode="after")
    def _watching_needs_the_hub(self) -> Config:
        if self.schedule.on_new_revision and self.download.source != "hub":
            raise ValueError("schedule.on_new_revision needs download.source: hub")
        return self

    @model_validator(mode="after")
    def _sources_say_it_alone(self) -> Config:
        if not self.sources:
            return self
        if odd := next((name for name in self.sources if not _SOURCE_NAME.fullmatch(name)), None):
            raise ValueError(f"sources: a name has letters, digits, - and _ (at most 64), not {odd!r}")
        for section, given in (("download", self.download != Download()), ("convert", self.convert != Convert())):
            if given:
                raise ValueError(f"{section} has no place beside sources: give each source its own, as sources.NAME.{section}")
        if self.tokenize.validation_fraction:
            raise ValueError("tokenize.validation_fraction has no place beside sources: set sources.NAME.held_out")
        if self.schedule.on_new_revision:
            raise ValueError("schedule.on_new_revision watches one data set: with sources, set schedule.cron")
        if any(source.convert.shards > 1 for source in self.sources.values()):
            raise ValueError("sources: convert.shards has no place in a source: a mixture is converted in one process")
        if all(source.held_out == 1 for source in self.sources.values()):
            raise ValueError("sources: each is held out whole, and nothing is left to train on")
        return self

    @property
    def downloads(self) -> list[Download]:
        """Where the data comes from, source by source."""
        return [source.download for source in self.sources.values()] or [self.download]

    @property
    def data_origin(self) -> str:
        """What people call the data; of many sources the first ones, for MLflow's names are short."""
        names = list(dict.fromkeys(download.origin for download in self.downloads))
        shown = names[:4]
        return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    @property
    def holds_out(self) -> bool:
        """Whether conversations are held out, so that losses can be measured on them."""
        return bool(self.tokenize.validation_fraction) or any(source.held_out for source in self.sources.values())

    def key_fields_of(self, section: str) -> Any:
        """The settings of a section that decide what a stage makes; of download and convert in order of the sources."""
        if not self.sources or section not in ("download", "convert"):
            return getattr(self, section).key_fields()
        if section == "download":
            return [[name, source.download.key_fields()] for name, source in self.sources.items()]
        return [
            [name, source.model_dump(mode="json", exclude={"download", "convert"}) | {"convert": source.convert.key_fields()}]
            for name, source in self.sources.items()
        ]

    @model_validator(mode="after")
    def _the_gates_tasks_exist(self) -> Config:
        names = self.evaluate.tested
        for metric in self.promote.metrics:
            if metric.name.startswith("task/") and metric.name.split("/")[1] not in names:
                raise ValueError(f"promote.metrics names {metric.name}, and evaluate.tasks has {', '.join(names) or 'no task'}")
            head, _, part = metric.name.partition("/")
            held_out = [name for name, source in self.sources.items() if source.held_out]
            if head == HELDOUT_LOSS and part and self.sources and part not in held_out:
                raise ValueError(
                    f"promote.metrics names {metric.name}, and the sources that hold something out are "
                    f"{', '.join(held_out) or 'none'}"
                )
            if head == EXACT_MATCH and not self.evaluate.prompts:
                raise ValueError(f"promote.metrics names {metric.name}, and evaluate.prompts is 0, so that no prompt is answered")
        return self

    @property
    def registered_name(self) -> str:
        """Name of the registered model, as MLflow takes it."""
        return model_name(self.registry.model or self.name)

    @property
    def renamed(self) -> str | None:
        """A sentence for people where the registered model is not called as they wrote it, else None."""
        written = self.registry.model or self.name
        if written == self.registered_name:
            return None
        return f"The registered model of {written!r} is called {self.registered_name!r}: MLflow takes no dots in a model's name."

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted name, as it is logged to MLflow; of sources, what differs from the defaults."""
        sources = {name: source.model_dump(mode="json", exclude_defaults=True) for name, source in self.sources.items()}
        return dict(_flatten(self.model_dump(mode="json") | {"sources": sources}))


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
