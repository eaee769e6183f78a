"""Few short tags for people who look at MLflow, and one with the rest: keys, digests, who decided what and why, as JSON.

Everything that Talaria writes and reads are names like `talaria.gate.reason`; which of them is a tag of its own is decided here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

PREFIX = "talaria."
RECORD = "talaria.record"
OF_A_VERSION = tuple(f"{PREFIX}{name}" for name in ("training", "step", "data", "eval_loss", "candidate", "gate", "rolled_back"))
"""Tags that a version shows, beside RECORD: what tells versions apart, and what is searched for."""
OF_A_RUN = tuple(
    f"{PREFIX}{name}" for name in ("training", "data.name", "data.revision", "base", "dag_id", "run_id", "training_id")
)


def packed(tags: Mapping[str, str], shown: tuple[str, ...] = OF_A_VERSION) -> dict[str, str]:
    """Return the tags as MLflow keeps them: those in `shown` and other people's as they are, the rest within RECORD."""
    plain = {name: value for name, value in tags.items() if name in shown or not name.startswith(PREFIX)}
    rest = {name.removeprefix(PREFIX): value for name, value in tags.items() if name not in plain and name != RECORD}
    return plain | ({RECORD: json.dumps(dict(sorted(rest.items())), ensure_ascii=False)} if rest else {})


def unpacked(tags: Mapping[str, str]) -> dict[str, str]:
    """Return every tag under its own name. What RECORD says counts more than a tag that an earlier version of Talaria left."""
    try:
        record = json.loads(tags.get(RECORD, "{}"))
    except ValueError:  # somebody has edited it by hand
        record = {}
    rest = {f"{PREFIX}{name}": str(value) for name, value in record.items()} if isinstance(record, dict) else {}
    return {name: value for name, value in tags.items() if name != RECORD} | rest
