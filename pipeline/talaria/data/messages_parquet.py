"""messages.parquet: its name, its schema, how it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talaria.common.errors import DataError


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises DataError where the file is not a parquet with `messages: list<struct<role, content, ...>>`."""
    try:
        # pre_buffer, the default, keeps all it has read until the end: half a gigabyte for a million conversations
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; make it with `talaria convert`.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file that can be read ({error}).") from error
    names = file.schema_arrow.names
    kind = file.schema_arrow.field("messages").type if "messages" in names else None
    if not _is_conversation(kind):
        found = f"messages: {kind}" if kind is not None else f"the columns {', '.join(names)}"
        raise DataError(
            f"{path}: needs a column messages: list<struct<role, content>>, found {found}; `talaria convert` makes one."
        )
    return file


def _is_conversation(kind: Any) -> bool:
    is_list = kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))
    if not (is_list and pa.types.is_struct(kind.value_type)):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    texts = (pa.string(), pa.large_string(), pa.string_view())
    return fields.get("role") in texts and fields.get("content") in texts


MESSAGES = "messages.parquet"
