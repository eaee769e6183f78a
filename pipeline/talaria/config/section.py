"""What every group of settings has in common: strictness, and which of its settings take part in the store's key."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from talaria.common.printable import printable


class _NotInKey:
    """Marker for settings that leave a stage's output unchanged."""


class _InKeyUnlessDefault:
    """Marker for settings that came later: a configuration that leaves them alone keeps the key it had, and so its outputs."""


NotInKey = _NotInKey()
InKeyUnlessDefault = _InKeyUnlessDefault()


LARGEST_INT = 2**53 - 1
"""Up to here JSON, the trigger form's JavaScript and Arrow hold a whole number exactly."""
YEAR_SECONDS = 366 * 86400


Int = Annotated[int, Field(le=LARGEST_INT)]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, str_max_length=4096, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Raise ValueError for true and false where Python would count them as 1 and 0."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError(f"should not be true or false, got {str(value).lower()}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_text_is_no_path(cls, value: Any, info: ValidationInfo) -> Any:
        """Raise ValueError for an empty path, which Python takes for the working folder."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if value == "" and Path in (kind, *get_args(kind)):
            raise ValueError("should be a path, got ''")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_shown_and_opened(cls, value: Any) -> Any:
        """Raise ValueError for text that no log can show, and for a path that no file system can hold; ~ is the home folder."""
        if isinstance(value, str | Path) and printable(str(value)) != str(value):
            raise ValueError("should be text without control characters")
        if isinstance(value, Path) and (len(str(value)) > 4095 or any(len(part.encode()) > 255 for part in value.parts)):
            raise ValueError("should be a path that a file system can hold: at most 255 bytes a name, 4,095 in all")
        if isinstance(value, Path):
            with contextlib.suppress(RuntimeError):  # a user whom this machine does not know
                return value.expanduser()
        return value

    def key_fields(self) -> dict[str, Any]:
        """The settings that decide the output, as JSON values."""
        left_out = {
            name
            for name, field in type(self).model_fields.items()
            if NotInKey in field.metadata
            or (InKeyUnlessDefault in field.metadata and getattr(self, name) == field.get_default(call_default_factory=True))
        }
        shown = self.model_dump(mode="json", exclude=left_out)
        return {name: _key_value(getattr(self, name), value) for name, value in shown.items()}


def _key_value(value: Any, shown: Any) -> Any:
    """A setting in the key: groups of settings within one leave out what they mark, too."""
    if isinstance(value, Section):
        return value.key_fields()
    if isinstance(value, list):
        return [_key_value(*pair) for pair in zip(value, shown, strict=True)]
    return shown
