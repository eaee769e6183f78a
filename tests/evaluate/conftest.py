"""A small trained store, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import small


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: output.path for name, output in small.trained(tmp_path_factory.mktemp("store")).items()}
