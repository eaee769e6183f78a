"""The registry's fixtures: a small trained store and a real MLflow server."""

from tests.registry.conftest import _no_address, folders, outputs, server, settings, sqlite_uri, store, uri

__all__ = ["_no_address", "folders", "outputs", "server", "settings", "sqlite_uri", "store", "uri"]
