"""Task files, answers from anything that answers, and verdicts: without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from talaria.common.errors import DataError, UserError
from talaria.config.evaluation_settings import TaskSettings
from talaria.evaluation.tasks.called_tools import as_text
from talaria.evaluation.tasks.contamination import contaminated
from talaria.evaluation.tasks.scoring import score_task
from talaria.evaluation.tasks.task_file import load_items

CALL = {"name": "add", "arguments": {"a": 3, "b": [True, 1.0]}}
TAGGED = '<tool_call>\n{"name": "add", "arguments": {"b": [true, 1], "a": 3}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture
def task(tmp_path: Path):
    """Make a task of lines."""

    def make(*lines: dict, **settings: object) -> TaskSettings:
        path = tmp_path / "task.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return TaskSettings.model_validate({"name": "t", "file": path, **settings})

    return make


@pytest.mark.parametrize(
    ("judge", "expected", "right", "wrong"),
    [
        ("exact", ["7", "seven"], " seven\n", "Seven"),
        ("contains", "blue", "the blue one", "Blue"),
        ("regex", r"^\d+ km$", "12 km", "12 kms"),
        ("number", 1234.5, "So it is 3 + 4, or $1,234.50.", "1,234.5 less 2"),
        ("number", "-3", "x = \u22123", "3"),
        ("json_schema", SCHEMA, '```json\n{"n": 3}\n```', '{"n": "3"}'),
        ("json_schema", SCHEMA, '{"n": 3}', 'Here: {"n": 3}'),
        ("tool_call", CALL, TAGGED, TAGGED.replace("true", "1")),
        ("tool_call", CALL, json.dumps(CALL), f"{TAGGED}\n{TAGGED}"),
        ("tool_call", [], "I need no tool.", TAGGED),
        ("tool_call", CALL, TAGGED, '<tool_call>{"name": "add", '),
        ("similarity", "the quick brown fox", "The quick brown fix", "nothing alike"),
    ],
)
def test_each_rule_tells_right_from_wrong(task, judge, expected, right, wrong):
    lines = [{"prompt": "right", "expected": expected}, {"prompt": "wrong", "expected": expected}]
    result = score_task(task(*lines, judge=judge), lambda messages, tools: right if messages[0]["content"] == "right" else wrong)
    assert [row.right for row in result.rows] == [True, False]
    assert result.failed == 0


def test_a_servers_tool_calls_are_judged_as_a_models(task):
    message = {"content": None, "tool_calls": [{"function": {"name": "add", "arguments": json.dumps(CALL["arguments"])}}]}
    tools = [{"name": "add", "parameters": {}}]
    asked = []

    def answer(messages, tools):
        asked.append(tools)
        return as_text(message)

    line = {"messages": [{"role": "user", "content": "3 and 1"}], "tools": tools, "expected": CALL, "judge": "tool_call"}
    assert score_task(task(line), answer).score == 1.0
    assert json.loads(asked[0])[0]["function"]["name"] == "add"


def test_a_choice_is_the_most_likely_one_and_needs_likelihoods(task):
    lines = [{"prompt": "p", "choices": ["yes", "no"], "expected": wanted} for wanted in ("yes", "no")]
    chosen = task(*lines, judge="choice")
    with pytest.raises(UserError, match="task t: judge choice needs likelihoods"):
        score_task(chosen, lambda messages, tools: "yes")
    result = score_task(chosen, lambda messages, tools: "", lambda messages, tools, choices: [-1.0, -2.0])
    assert [row.verdict.why for row in result.rows] == ["", "prefers 'yes'"]


def test_scores_are_means_with_slices_and_a_failed_row_counts_as_wrong(task):
    def answer(messages, tools):
        if messages[0]["content"] == "down":
            raise ConnectionError("nobody there")
        return "1"

    lines = [{"prompt": prompt, "expected": "1", "tags": [prompt, "all"]} for prompt in ("up", "down")]
    result = score_task(task(*lines), answer, at_a_time=2)
    assert (result.score, result.failed) == (0.5, 1)
    assert result.by_tag == {"all": 0.5, "down": 0.0, "up": 1.0}
    assert result.rows[1].verdict.why == "no answer: ConnectionError: nobody there"


def test_a_function_of_ones_own_judges_where_the_deployment_allows_it(task, tmp_path, monkeypatch):
    code = "def short(item, answer):\n    return item['limit'] / len(answer)\n"
    (tmp_path / "my_judge.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = task({"prompt": "p", "limit": 2}, {"prompt": "q", "limit": 9}, judge="function", function="my_judge:short")
    with pytest.raises(UserError, match="TALARIA_ALLOW_CUSTOM_CODE=1"):
        score_task(chosen, lambda messages, tools: "four")
    monkeypatch.setenv("TALARIA_ALLOW_CUSTOM_CODE", "1")
    result = score_task(chosen, lambda messages, tools: "four")
    assert [row.verdict.score for row in result.rows] == [0.5, 0.0]
    assert "returned 2.25" in result.rows[1].verdict.why
    assert result.failed == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[]", "line 2: a prompt is a JSON object"),
        ('{"prompt": "p", "expected": "x", "jugde": "exact"}', "line 2: has the unknown field 'jugde'"),
        ('{"prompt": "p"}', "line 2: judge exact needs expected"),
        ('{"expected": "x"}', "line 2: gives either prompt or messages"),
        ('{"prompt": "p", "expected": "(", "judge": "regex"}', "is no regular expression"),
        ('{"prompt": "p", "expected": {"type": "objekt"}, "judge": "json_schema"}', "is no JSON schema"),
        ('{"prompt": "p", "expected": "x", "choices": ["a", "b"], "judge": "choice"}', "'x' is none of the choices"),
        ('{"prompt": "p", "expected": "many", "judge": "number"}', "expected is a number, not 'many'"),
        ('{"prompt": "p", "expected": "x", "judge": "rate"}', "task t: judge rate needs judge_model"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "expected": "x"}', "messages ends with an answer"),
        ("{", "line 2: Expecting property name"),
        (r'{"prompt": "a \ud800", "expected": "x"}', r"line 2: \ud800 is half of a character and no text"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, says):
    path = tmp_path / "task.jsonl"
    path.write_text('{"prompt": "p", "expected": "x"}\n' + line + "\n")
    with pytest.raises(DataError) as told:
        load_items(TaskSettings(name="t", file=path))
    assert says in str(told.value)
    assert str(path) in str(told.value)


def test_items_are_named_by_what_they_ask_and_how_it_is_judged(task):
    line = {"prompt": "p", "expected": "x"}
    first, same = load_items(task(line, line))
    other = load_items(task(line, ignore_case=True))[0]
    assert first.id == same.id != other.id


def test_prompts_that_were_trained_on_are_found(task):
    long = " ".join(f"word{n}" for n in range(20))
    items = load_items(task(*({"prompt": text, "expected": "x"} for text in ("3 + 4 = ?", "3 - 4 = ?", long, "Something else"))))
    seen = contaminated(items, ["3 + 4 =", f"Before that, {long.upper()}!", "else"])
    assert [item.messages[0]["content"] for item in seen] == ["3 + 4 = ?", long]


def test_scoring_loads_no_torch(tmp_path):
    code = "import sys, talaria.evaluation.tasks.scoring; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
