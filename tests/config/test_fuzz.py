"""Whatever stands in a configuration, the answer is a configuration that can be written down, or one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from talaria.common.errors import ConfigError
from talaria.common.printable import printable
from talaria.config.load import documentation, load, parse

NAMES = [name for name, _, _ in documentation()]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**20, -(10**20), 2**63, 10**400, math.inf, -math.inf, math.nan, 1e308, -0.0]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["yes", "~", "12:30:45", "2024-02-30", "0x_", "1_000", "a" * 5000, "\ud800", "\x9b2J", "../up", "\0", "inf"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
)
BOUNDED = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def answer(make: Any) -> None:
    """Call `make`; a configuration has to survive being written down, a refusal has to be one printable sentence."""
    try:
        config = make()
    except ConfigError as error:
        refused = str(error)
    else:
        dumped = json.dumps(config.model_dump(mode="json"), allow_nan=False)
        dumped.encode()
        assert parse(json.loads(dumped), "again") == config
        return
    assert printable(refused) == refused
    assert refused.endswith((".", "?"))


@BOUNDED
@given(name=st.sampled_from(NAMES), value=VALUES)
def test_any_value_in_any_setting(name: str, value: Any) -> None:
    answer(lambda: parse({"name": "fuzz"} | nested(name, value), "test"))


@BOUNDED
@given(name=st.sampled_from(NAMES), value=VALUES)
def test_any_override_of_the_form(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "fuzz.yaml").write_text("{}")
    answer(lambda: load(tmp_path / "fuzz.yaml", {name: value}))


@BOUNDED
@given(name=st.sampled_from(NAMES) | st.text(max_size=12), text=st.text(max_size=30))
def test_any_override_of_the_command_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "fuzz.yaml").write_text("{}")
    answer(lambda: load(tmp_path / "fuzz.yaml", [f"{name}={text}"]))


@BOUNDED
@given(
    text=st.text(st.sampled_from("train:lr \n-[]{}&*!%@`\"'#|>?,01.e_~\x85\u2028\ufeff\x1b"), max_size=60)
    | VALUES.map(lambda value: yaml.safe_dump(value, allow_unicode=True))
)
@example("train: {lr: 1e-5}")
def test_any_text_in_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "fuzz.yaml").write_bytes(text.encode(errors="surrogatepass"))
    answer(lambda: load(tmp_path / "fuzz.yaml"))


@pytest.mark.parametrize("value", [math.inf, math.nan, [[]], {"x": {}}], ids=str)
def test_no_setting_takes_what_no_log_or_database_holds(value: Any) -> None:
    for name in NAMES:
        with pytest.raises(ConfigError, match=name):
            parse({"name": "fuzz"} | nested(name, value), "test")


def test_every_whole_number_has_bounds() -> None:
    whole = [name for name, default, _ in documentation() if type(default) is int]
    assert len(whole) > 20
    for name in whole:
        for value in (-(10**20), 10**20):
            with pytest.raises(ConfigError, match=name):
                parse({"name": "fuzz"} | nested(name, value), "test")
