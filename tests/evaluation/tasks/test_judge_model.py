"""A judge behind an HTTP address: what it says, what it costs, and what happens where it does not answer."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from talaria.common.errors import UserError
from talaria.config.evaluation_settings import TaskSettings
from talaria.evaluation.tasks import judge_model
from talaria.evaluation.tasks.scoring import score_task


class Judge:
    """An OpenAI-compatible server; `reply(body)` returns (status, content of the answer)."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.reply = lambda body: (200, '```json\n{"reason": "fine", "verdict": "pass"}\n```')
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                status, text = outer.reply(body)
                answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def judge(monkeypatch, tmp_path):
    monkeypatch.setenv("TALARIA_VERDICTS", str(tmp_path / "verdicts"))
    monkeypatch.setattr(judge_model.time, "sleep", lambda seconds: None)
    made = Judge()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def task(tmp_path, judge):
    def make(count: int = 1, kind: str = "rate", **settings: object) -> TaskSettings:
        lines = [{"prompt": f"p{n}", "expected": "good", "judge": kind} for n in range(count)]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        model = {"base_url": judge.url, "model": "j", "at_a_time": 1, **settings}
        return TaskSettings.model_validate({"name": "t", "file": tmp_path / "t.jsonl", "judge": kind, "judge_model": model})

    return make


def answer(messages, tools):
    return "an answer"


def test_a_verdict_is_asked_for_once_and_kept(judge, task, monkeypatch):
    monkeypatch.setenv("TALARIA_JUDGE_KEY", "secret-1")
    for _ in range(2):
        result = score_task(task(2, api_key_env="TALARIA_JUDGE_KEY"), answer)
        assert (result.score, result.rows[0].verdict.why) == (1.0, "fine")
    assert len(judge.asked) == 2
    assert judge.keys == ["Bearer secret-1"] * 2
    assert judge.asked[0]["temperature"] == 0
    assert "<<<ANSWER>>>\nan answer\n<<<END OF ANSWER>>>" in judge.asked[0]["messages"][1]["content"]


def test_no_other_secret_can_be_sent(task):
    with pytest.raises(ValueError, match="TALARIA_JUDGE_"):
        task(api_key_env="AWS_SECRET_ACCESS_KEY")


def test_a_key_that_is_not_set_is_told_before_anything_is_asked(judge, task):
    with pytest.raises(UserError, match="environment variable TALARIA_JUDGE_NONE is not set"):
        score_task(task(api_key_env="TALARIA_JUDGE_NONE"), answer)
    assert judge.asked == []


@pytest.mark.parametrize(("replies", "score"), [(("A", "B"), 1.0), (("A", "A"), 0.5), (("B", "A"), 0.0), (("tie", "B"), 0.75)])
def test_a_pair_is_judged_in_both_orders(judge, task, replies, score):
    left = list(replies)
    judge.reply = lambda body: (200, json.dumps({"verdict": left.pop(0)}))
    assert score_task(task(kind="pairwise"), answer).score == score
    first, second = (body["messages"][1]["content"] for body in judge.asked)
    assert first.index("an answer") < first.index("good")
    assert second.index("good") < second.index("an answer")


@pytest.mark.parametrize(
    ("reply", "asked", "why"),
    [
        ((429, ""), 3, "the judge answered 429"),
        ((500, ""), 3, "the judge answered 500"),
        ((401, ""), 1, "the judge answered 401"),
        ((200, "It is good."), 3, "holds no verdict of pass, fail"),
        ((200, '{"verdict": "excellent"}'), 3, "holds no verdict"),
    ],
)
def test_what_gets_no_verdict_has_failed_and_counts_as_wrong(judge, task, reply, asked, why):
    judge.reply = lambda body: reply
    result = score_task(task(), answer)
    assert (result.score, result.failed, len(judge.asked)) == (0.0, 1, asked)
    assert why in result.rows[0].verdict.why


def test_the_budget_holds_whatever_is_left(judge, task):
    result = score_task(task(5, max_requests=2), answer)
    assert (len(judge.asked), result.failed, result.score) == (2, 3, 0.4)
    assert "2 requests are spent" in result.rows[-1].verdict.why
    assert score_task(task(5, max_requests=3), answer).score == 1.0  # kept verdicts cost nothing


def test_a_judge_that_is_not_there_fails_the_rows(judge, task):
    judge.server.shutdown()
    judge.server.server_close()
    result = score_task(task(retries=1), answer)
    assert result.failed == 1
    assert "ConnectError" in result.rows[0].verdict.why


def test_time_is_bounded(judge, task, monkeypatch):
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr(judge_model.time, "monotonic", lambda: next(clock))
    result = score_task(task(3, total_seconds=50), answer)
    assert [row.verdict.failed for row in result.rows] == [False, True, True]
    assert "50 s are over" in result.rows[1].verdict.why
