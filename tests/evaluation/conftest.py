"""A small trained store, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny_pipeline


@pytest.fixture(scope="session")
def folders(shared_store: Path) -> dict[str, Path]:
    return {name: output.path for name, output in tiny_pipeline.trained(shared_store).items()}
