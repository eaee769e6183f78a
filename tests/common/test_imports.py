"""Imports without garbage collection and without what a library takes along for other purposes."""

from __future__ import annotations

import gc
import importlib.util
import sys

import pytest
from talaria.common.imports import quick_imports


def test_hidden_packages_are_found_again_afterwards() -> None:
    sys.modules.pop("colorsys", None)
    assert gc.isenabled()
    with quick_imports(["colorsys", "json"]):
        assert not gc.isenabled()
        assert importlib.util.find_spec("colorsys") is None
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
        assert sys.modules["json"]  # somebody uses it already
    assert gc.isenabled()
    assert importlib.import_module("colorsys").rgb_to_hsv
