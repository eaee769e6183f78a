"""The stage table names functions of higher folders as strings; each of them is there and takes what a stage takes."""

from __future__ import annotations

import inspect

import pytest
from talaria.stages.table import STAGES, Stage, resolve


@pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))
def test_every_name_in_the_table_is_a_function(stage: Stage) -> None:
    given = list(inspect.signature(resolve(stage.function)).parameters.values())
    assert [parameter.name for parameter in given[:3]] == ["config", "inputs", "out_dir"]
    assert all(parameter.kind is parameter.VAR_KEYWORD or parameter.default is not parameter.empty for parameter in given[3:])
    if stage.fingerprint:
        assert list(inspect.signature(resolve(stage.fingerprint)).parameters) == ["config"]
    assert set(stage.inputs) <= set(STAGES)
