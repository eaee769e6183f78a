"""Names under which rows and answers are counted, each with its meaning."""

from __future__ import annotations

COMPARED, TRUNCATED = "compared", "truncated"
IGNORED = "ignored_fields"
"""Followed by the name of a field of the message that nothing reads."""

TOO_LONG, NO_TARGET, PROMPT_TOO_LONG = "too_long", "no_supervised_tokens", "prompt_too_long"
DROPS = {
    TOO_LONG: "longer than tokenize.max_tokens",
    NO_TARGET: "no answer that counts in the loss",
    PROMPT_TOO_LONG: "truncated to tokenize.max_tokens, no answer left",
}

NOT_RENDERED, INEXACT, TEMPLATE_ERROR = "not_rendered", "inexact_mask", "template_error"
CONTROL_IN_TEXT, UNREADABLE = "control_token_in_text", "unreadable_row"
BAD_ROWS = {
    NOT_RENDERED: "tools, a call, reasoning or a role that the template does not render",
    INEXACT: "no exact loss mask",
    TEMPLATE_ERROR: "the template raised an error",
    CONTROL_IN_TEXT: "holds a control token that this tokenizer cannot keep text",
    UNREADABLE: "tools or tool calls that are no JSON text of a list, a message that says nothing",
}
"""Rows that stop the run, or are dropped with tokenize.on_bad_row: drop."""

CONTROL_TEXT, LINE_BREAK, EMPTY = "control_token_text_rows", "line_break_answers", "empty_answers"
REASONING_LEFT_OUT, ANSWER_CHANGED, MARKED_TWICE = "reasoning_left_out", "answers_changed", "tool_marks_twice"
ANSWER_FIRST, NO_ANSWER_LAST = "answer_first_rows", "no_answer_last_rows"
ODDITIES = {
    CONTROL_TEXT: "rows whose text holds a control token; it stays text",
    LINE_BREAK: "answers that begin with a line break; encoded as generation sees them",
    EMPTY: "answers with no content; the model learns to end at once",
    ANSWER_FIRST: "rows that begin with an answer, after at most a system message; it is learnt without a prompt",
    NO_ANSWER_LAST: "rows that do not end with an answer; their last turns teach nothing",
}
"""What is unusual but kept."""

TEMPLATE_EFFECTS = {
    REASONING_LEFT_OUT: "answers whose reasoning the template leaves out, as Qwen3's does before the last question",
    ANSWER_CHANGED: "answers whose text the template changes by more than white space at its ends",
    MARKED_TWICE: "rows whose text has the <tools> or <tool_response> that the template writes too; they are there twice",
}
"""What a chat template does to answers; shown where it happens."""
