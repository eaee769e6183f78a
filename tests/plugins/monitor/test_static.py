"""The page's modules find each other, which a browser tells only where there is one."""

from __future__ import annotations

import re

from talaria_airflow.monitor.app import STATIC


def test_every_module_that_is_imported_is_there() -> None:
    imported = [
        (module.name, name)
        for module in STATIC.glob("*.js")
        for name in re.findall(r'from "\./([^"]+)"', module.read_text(encoding="utf-8"))
    ]
    assert imported
    assert [(module, name) for module, name in imported if not (STATIC / name).is_file()] == []
