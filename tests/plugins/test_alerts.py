"""Who hears what: a webhook whose address stays secret, e-mail through Airflow's connection, and words for a late run."""

from __future__ import annotations

import email
import json
import logging
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from talaria_airflow.notifiers import alert
from talaria_airflow.notifiers.alert import Alert, LateAlert, describe


class Channel(ThreadingHTTPServer):
    """A chat channel's webhook; `answer` is the status that it sends."""

    def __init__(self) -> None:
        self.answer, self.told = 200, list[str]()
        super().__init__(("127.0.0.1", 0), Hook)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T0SECRET"


class Hook(BaseHTTPRequestHandler):
    server: Channel

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
        self.send_response(self.server.answer)
        self.send_header("Location", self.server.address.replace("http:", "https:"))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class MailServer(socketserver.ThreadingTCPServer):
    """As much SMTP as one message takes; `mail` holds what was received."""

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        self.mail: list[str] = []
        super().__init__(("127.0.0.1", 0), Smtp)


class Smtp(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.server.mail.append("".join(part.decode() for part in iter(self.rfile.readline, b".\r\n")))
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 good\r\n")


def serve(server: Any) -> Iterator[Any]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def channel() -> Iterator[Channel]:
    yield from serve(Channel())


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    yield from serve(MailServer())


def test_the_variable_and_a_connection_name_the_webhook(
    channel: Channel, airflow_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Alert("nobody listens").notify({})
    monkeypatch.setenv("TALARIA_WEBHOOK", channel.address)
    Alert("{{ 1 + 1 }} of {{ exception }}").notify({"exception": "{{ not a template }}"})
    monkeypatch.setenv("TALARIA_WEBHOOK", "http://127.0.0.1:9/nobody")
    monkeypatch.setenv("AIRFLOW_CONN_SPEECH", json.dumps({"conn_type": "http", "password": channel.address}))
    Alert("own channel", {"webhook": "speech"}).notify({})
    assert channel.told == ["2 of {{ not a template }}", "own channel"]


@pytest.mark.parametrize("answer", [301, 404, 429, 500, None])
def test_the_webhooks_address_is_in_no_log(
    channel: Channel,
    answer: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    channel.answer = answer or 200
    monkeypatch.setenv("TALARIA_WEBHOOK", channel.address if answer else "http://127.0.0.1:9/services/T0SECRET")
    caplog.set_level(logging.DEBUG)
    Alert("a message").notify({})
    written = caplog.text + capsys.readouterr().out
    assert "The webhook did not take the message" in written
    assert (f"it answered {answer}" if answer else "ConnectError") in written
    assert "T0SECRET" not in written


def test_a_connection_that_does_not_exist_ends_no_task(airflow_db: None, caplog: pytest.LogCaptureFixture) -> None:
    Alert("a message", {"webhook": "nowhere", "email": "me@example.org", "smtp": "nowhere"}).notify({})


def test_a_message_is_sent_by_mail_with_its_text_escaped(
    mail_server: MailServer, airflow_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {
        "conn_type": "smtp",
        "host": "127.0.0.1",
        "port": mail_server.server_address[1],
        "extra": {"disable_ssl": True, "disable_tls": True, "from_email": "talaria@example.org"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_OFFICE", json.dumps(connection))
    Alert("train failed: <b>loss</b>", {"email": "a@example.org, b@example.org", "smtp": "office"}).notify({})
    (mail,) = mail_server.mail
    assert "Subject: Talaria: train failed: <b>loss</b>" in mail
    assert "a@example.org" in mail
    assert "b@example.org" in mail
    body = email.message_from_string(mail).get_payload(0).get_payload(decode=True).decode()
    assert body == "<p>train failed: &lt;b&gt;loss&lt;/b&gt;</p>"


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ({"configure": "success", "registry.approve": "awaiting_input"}, "it waits for a person's answer to registry.approve"),
        ({"model.train": "running", "data.report": "queued"}, "it is late, and works on model.train"),
        ({"model.train": "queued"}, "it is late, and waits for a worker or a slot of its pool for model.train"),
        ({"model.train": "up_for_retry"}, "it is late, and will try again model.train"),
        ({"configure": "success"}, "it is late, and none of its tasks runs"),
    ],
)
def test_a_late_run_says_what_it_waits_for(
    states: dict[str, str], words: str, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert describe(states) == words
    monkeypatch.setattr(alert, "task_states", lambda dag_id, run_id: states)
    monkeypatch.setenv("TALARIA_WEBHOOK", channel.address)
    LateAlert(8.0).notify({"dag_run": {"dag_id": "sft_nightly", "dag_run_id": "r1"}})
    assert channel.told == [f"sft_nightly r1 is not done 8 h after it was queued: {words}."]
