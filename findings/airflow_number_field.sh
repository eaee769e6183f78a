#!/usr/bin/env bash
# Airflow: 1e-5 typed into a number field of the trigger form is sent as 15.
#
# Version:  apache-airflow 3.3.2 (api-server with its own page), driven by playwright 1.55.0 in headless Chromium (needed on the PATH)
# Guess:    a field of a Param of type "number" takes what JSON takes, scientific notation too, or refuses it.
# Seen:     the field drops the characters that it does not know while they are typed: "1e-5" becomes 15, without a message, and the
#           run is triggered with that. 0.00001, typed, arrives as 1e-05.
# Effect:   a learning rate as people write it becomes one that is a million times larger. Talaria's form takes numbers as text and
#           checks them at the trigger.
source "$(dirname "$0")/install.sh" apache-airflow==3.3.2 playwright==1.55.0
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || { echo "no chromium on the PATH"; exit 2; }
export AIRFLOW_HOME="$work/airflow" AIRFLOW__CORE__DAGS_FOLDER="$work/dags" AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS=True AIRFLOW__LOGGING__LOGGING_LEVEL=ERROR
mkdir dags
cat > dags/train.py <<'PY'
from airflow.sdk import DAG, Param

dag = DAG("train", schedule=None, params={"lr": Param(0.001, type="number", exclusiveMinimum=0)})
PY
port=$(py -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
{ "$work/venv/bin/airflow" db migrate && "$work/venv/bin/airflow" dags reserialize; } > log.txt 2>&1 || { tail -5 log.txt; exit 1; }
"$work/venv/bin/airflow" api-server --host 127.0.0.1 --port "$port" --workers 1 > server.txt 2>&1 &
trap 'kill %1; wait 2>/dev/null; rm -rf "$work"' EXIT
py - "http://127.0.0.1:$port" "$browser" 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import json
import sys
import time
import urllib.request
from playwright.sync_api import sync_playwright

address, browser = sys.argv[1:]
for _ in range(240):
    try:
        urllib.request.urlopen(f"{address}/api/v2/version")
        break
    except OSError:
        time.sleep(0.5)


def triggered(page, text):
    """Type into the form's field, send it, and return what the field showed and what the new run was given."""
    page.goto(f"{address}/dags/train")
    page.get_by_test_id("trigger-dag-button").click()
    field = page.locator('input[name="element_lr"]')
    field.fill("")
    field.press_sequentially(text)
    field.blur()
    shown = field.input_value()
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.url.endswith("/dagRuns")) as sent:
        page.get_by_test_id("trigger-dag-submit").press("Enter")
    return shown, json.loads(sent.value.body())["conf"]["lr"]


with sync_playwright() as playwright:
    page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(viewport={"width": 1300, "height": 1400})
    page.set_default_timeout(60_000)
    seen = {text: triggered(page, text) for text in ("1e-5", "0.00001")}
for text, (shown, got) in seen.items():
    print(f"typed {text!r}: the field shows {shown!r}, the run has {got!r}")
assert seen["1e-5"][1] == 15
assert seen["0.00001"][1] == 1e-5
PY
