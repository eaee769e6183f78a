# Sourced by every finding: `source install.sh PACKAGE...` makes a temporary folder with a virtual environment that holds these packages,
# goes there, defines `py` (its Python) and `install` (more packages), and removes everything at the end. uv does not read pip's settings,
# so they are passed on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
if ! uv=$(command -v uv) && ! python3 -m uv --version >/dev/null 2>&1; then
    "$work/venv/bin/python" -m pip install -q --disable-pip-version-check uv
    uv="$work/venv/bin/uv"
fi
[ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
install() { ${uv:-python3 -m uv} pip install -q --python "$work/venv/bin/python" "$@"; }
install "$@"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true TOKENIZERS_PARALLELISM=false
cd "$work"
py() { "$work/venv/bin/python" -W ignore "$@"; }
