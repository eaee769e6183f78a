#!/bin/sh
# MLflow with basic auth; databases, artifact root and keys come from the environment. Its auth application takes the database's
# address from a file only; the file is private and lives in /tmp.
# Checking a password takes a tenth of a second of CPU by design, for every request: one that was right is not checked again for a minute.
set -eu
umask 077
export MLFLOW_AUTH_CONFIG_PATH="$(mktemp -d)/basic_auth.ini"
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = $MLFLOW_AUTH_STORE_URI
auth_cache_ttl_seconds = 60
admin_username = admin
INI
exec mlflow server --host 0.0.0.0 --port 5000 --workers 2 --app-name basic-auth \
    --allowed-hosts 'mlflow:*,localhost:*,127.0.0.1:*'
