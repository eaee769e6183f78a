"""Convert on 100,000 rows like OpenHermes-2.5's, where TALARIA_TEST_DATA names a folder that has them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from talaria.config.data_settings import Convert
from talaria.data.convert import convert

from tests.data.reference import plain, reference_convert

FOLDER = os.environ.get("TALARIA_TEST_DATA")
pytestmark = [pytest.mark.shared, pytest.mark.skipif(FOLDER is None, reason="TALARIA_TEST_DATA is not set")]
NAME = "openhermes_like_100k"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared") / f"{NAME}.json"
    with (Path(str(FOLDER)) / f"{NAME}.json.zst").open("rb") as packed, path.open("wb") as file:
        zstandard.ZstdDecompressor().copy_stream(packed, file)
    return path


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(str(FOLDER)) / f"{NAME}.manifest.json").read_text())
    return found


def test_every_row_equals_the_reference_scripts(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "ours.parquet", Convert())
    reference_convert(source, tmp_path / "theirs.parquet", tmp_path / "cache")
    ours, theirs = (pq.ParquetFile(tmp_path / name).iter_batches(10_000) for name in ("ours.parquet", "theirs.parquet"))
    rows = 0
    for our, their in zip(ours, theirs, strict=True):
        assert our.schema.names == their.schema.names
        for one, other in zip(our.to_pylist(), their.to_pylist(), strict=True):
            assert plain(one) == plain(other), f"row {rows}"
            rows += 1
    assert rows == 100_000


def test_planted_oddities_are_counted(source: Path, tmp_path: Path, manifest: dict[str, Any]) -> None:
    settings = Convert(drop_duplicates=True, drop_empty_answers=True)
    facts = convert(source, tmp_path / "messages.parquet", settings)
    dropped = {reason: rows for reason, rows in facts["dropped"].items() if rows}
    assert dropped == {"duplicate": manifest["quirks"]["duplicate"], "empty_answer": manifest["quirks"]["empty_gpt"]}
