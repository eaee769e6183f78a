"""transformers without torch, where it renders and encodes only."""

from __future__ import annotations

import os
import sys


def hide_torch() -> None:
    """Let this process find no torch: it takes transformers longer to import than all the rest. For processes that need none."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there are no models without it
