"""What `talaria inspect` shows is what the trainer reads."""

from __future__ import annotations

import errno
import io
import os
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from talaria.common.errors import DataError, UserError
from talaria.config.data_settings import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization.inspection import Folder, show, write_html
from talaria.tokenization.stage import tokenize

from tests.support.conversations import HANDWRITTEN, assistant, numbered, user, write_parquet

HOSTILE = [user("<script>alert(1)</script> \x1b[2J & <|im_end|>"), assistant("<b>not bold</b>\x07")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    path = tmp_path_factory.mktemp("inspect")
    rows = [HOSTILE, *HANDWRITTEN.values(), [user("dropped")], *numbered(100)]
    tokenize(write_parquet(path / "messages.parquet", rows), small_tokenizer, path / "tokens", Tokenize(validation_fraction=0.1))
    return path / "tokens"


def printed(folder: Path, row: int, split: str = "train", **options: object) -> str:
    file = io.StringIO()
    show(folder, row, split, Console(file=file, width=200, **options))
    return file.getvalue()


def row_in(folder: Path, split: str) -> int:
    return int(Folder(folder).split(split).rows[-1])


def test_without_colour_supervised_text_stands_in_brackets(folder: Path) -> None:
    row = row_in(folder, "train")
    sample = Folder(folder).sample("train", Folder(folder).find("train", row))
    text = printed(folder, row)
    (answer,) = re.findall(r"⟦([^⟧]*)⟧", text.split("─\n")[1])
    assert answer == "".join(span.text for span in sample.spans if span.supervised)
    assert answer.endswith("<|im_end|>\n")
    assert text.split("─\n")[1].replace("⟦", "").replace("⟧", "").rstrip("\n") == "".join(
        span.text for span in sample.spans
    ).rstrip("\n")


def test_with_colour_supervised_text_is_green_and_control_tokens_are_reversed(folder: Path) -> None:
    text = printed(folder, row_in(folder, "train"), force_terminal=True, color_system="standard")
    assert "\x1b[7;90m<|im_start|>\x1b[0m" in text
    assert "\x1b[7;32m<|im_end|>\x1b[0m" in text
    assert "⟦" not in text


def test_it_shows_the_conversation_itself(folder: Path) -> None:
    conversations = [HOSTILE, *HANDWRITTEN.values()]
    tokens = Folder(folder)
    for row, conversation in enumerate(conversations[1:], 1):
        split = next(name for name, found in tokens.splits.items() if found is not None and row in found.rows)
        sample = tokens.sample(split, tokens.find(split, row))
        normal = tokens.tokenizer.normalizer.normalize_str(chat.render(conversation))
        assert "".join(span.text for span in sample.spans).replace("␍", "\r") == normal


def test_the_data_cannot_steer_the_terminal(folder: Path) -> None:
    split = next(name for name, found in Folder(folder).splits.items() if found is not None and 0 in found.rows)
    text = printed(folder, 0, split)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "␛[2J" in text


def test_a_row_elsewhere_or_nowhere(folder: Path) -> None:
    with pytest.raises(DataError, match=r"is in the validation split; add --split validation"):
        printed(folder, row_in(folder, "validation"))
    with pytest.raises(DataError, match=rf"row {1 + len(HANDWRITTEN)} is not there: it was dropped"):
        printed(folder, 1 + len(HANDWRITTEN))
    with pytest.raises(DataError, match="has no split 'test', only train and validation"):
        printed(folder, 0, "test")


class Text(HTMLParser):
    """The text of a page, and that of its marked parts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.text = self.marked = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        self.marked += data if "mark" in self.open else ""


def test_the_page_is_one_file_with_everything_escaped(folder: Path, tmp_path: Path) -> None:
    rows = Folder(folder).split("train").rows[:12].tolist()
    write_html(folder, tmp_path / "new" / "page.html", rows)
    html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    page = Text()
    page.feed(re.sub(r"<!doctype html>|<meta[^>]*>", "", html))
    assert page.open == []
    assert page.tags <= {
        "html",
        "head",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "table",
        "tr",
        "th",
        "td",
        "pre",
        "mark",
        "b",
    }
    assert "http" not in html.replace("https", "http").split("</style>")[0]
    for row in rows:
        assert f"train, row {row}:" in page.text
    conversations = [HOSTILE, *HANDWRITTEN.values()]
    for row in (row for row in rows if 0 < row < len(conversations)):
        for message in conversations[row]:
            if message["role"] == "assistant" and message["content"].isascii():
                assert message["content"].replace("\r", "␍") in page.marked
    assert "<script" not in html
    assert unescape(html).count("dropped") >= 1


def test_the_page_samples_both_splits_and_the_extremes(folder: Path, tmp_path: Path) -> None:
    write_html(folder, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    train = Folder(folder).split("train")
    assert f"train, row {train.rows[train.lengths.argmax()]}:" in html
    assert "validation, row" in html
    assert html.count("<h2>") == len(set(re.findall(r"<h2>([^:]*):", html))) >= 26


def test_a_page_that_cannot_be_written_is_one_sentence_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"page\.html: cannot write the page: No space left on device. Nothing was written\."):
        write_html(folder, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
