"""Every form of examples to conversations, and every way to be none with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llamita.data.file_formats import BadRows, Row
from llamita.errors import SourceError
from llamita.finetune.conversations import Conversation, Turn, read_conversations

PAIR = (Turn("user", "Why?"), Turn("assistant", "Because.", True))
SAID = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def only(path: Path, **options: object) -> Conversation:
    (found,) = read_conversations(path, **options)
    return found


@pytest.mark.parametrize(
    "row",
    [
        {"messages": SAID},
        {"messages": [SAID[0] | {"content": [{"type": "text", "text": "Why?"}]}, SAID[1] | {"weight": 1}]},
        {"prompt": "Why?", "completion": " Because.\n"},
        {"prompt": SAID[:1], "completion": SAID[1:]},
        {"question": "Why?", "answer": "Because.", "source": "x"},
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"instruction": "Why?", "output": "Because."},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"messages": None, "prompt": "Why?", "completion": "Because."},
        SAID,
        {"messages": json.dumps(SAID)},
        {"prompt": json.dumps(SAID[:1]), "completion": json.dumps(SAID[1:])},
        {"query": "Why?", "response": "Because."},
        {"prompt": "Why?", "response": "Because."},
        {"input": "Why?", "output": "Because."},
        {"question": "\ufeffWhy?", "answer": "\ufeffBecause.\r\n"},
        {"messages": [SAID[0] | {"content": [{"type": "text", "value": "Why?"}]}, SAID[1]]},
    ],
)
def test_forms(tmp_path: Path, row: object) -> None:
    for path in (write(tmp_path / "a.jsonl", row), tmp_path / "a.json"):
        if path.suffix == ".json":
            path.write_text(json.dumps([row]))
        assert only(path).turns == PAIR


def test_details(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"instruction": "Add.", "input": "1 2", "output": "3"})
    assert only(path).turns[0].text == "Add.\n\n1 2"
    assert only(path, system="Be brief.").turns[0] == Turn("system", "Be brief.")
    many = [*SAID, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So.", "weight": 0}]
    found = only(write(tmp_path / "b.jsonl", {"messages": [*many, {"role": "user", "content": "Hm"}], "system": "S"}))
    assert [turn.is_target for turn in found.turns] == [False, False, True, False, False]
    assert found.unanswered and found.turns[0] == Turn("system", "S") and found.where.endswith("b.jsonl:1")
    spoken = [{"role": "developer", "content": "D"}, *SAID]
    found = only(write(tmp_path / "c.jsonl", {"messages": spoken, "system": "S"}), system="other")
    assert [(turn.role, turn.text) for turn in found.turns[:2]] == [("system", "S"), ("developer", "D")]
    assert only(write(tmp_path / "d.jsonl", {"messages": spoken}), system="S").turns[0] == Turn("system", "S")
    twice = [{"role": "system", "content": "S"}, *SAID]
    assert only(write(tmp_path / "e.jsonl", {"messages": twice, "system": " S "})).turns[0] == Turn("system", "S")
    with pytest.raises(SourceError, match="system: expected one system prompt, found another one"):
        only(write(tmp_path / "f.jsonl", {"messages": twice, "system": "T"}))
    found = only(tmp_path / "b.jsonl")
    assert found.messages(2) == [{"role": "system", "content": "S"}, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Why?", "input": "", "output": "So."},
        {"prompt": "Why?", "completion": "So."},
        {"question": "Why?", "answer": "So."},
    ],
)
def test_history_is_the_turns_before(tmp_path: Path, row: dict[str, object]) -> None:
    history = [["Hi", "Hello."], ["Who?", "A llama."]]
    found = only(write(tmp_path / "a.jsonl", row | {"history": history, "system": "S"}))
    assert [turn.text for turn in found.turns] == ["S", "Hi", "Hello.", "Who?", "A llama.", "Why?", "So."]
    assert [turn.is_target for turn in found.turns] == [False, False, True, False, True, False, True]
    assert found.unused_keys == ()


@pytest.mark.parametrize(
    "more",
    [
        *({key: value} for key in ("tools", "history", "context") for value in (None, "", [], "[]", {})),
        *({"label": value} for value in (None, True, "True")),
        {"id": 3, "source": "x", "category": "y", "score_chosen": 1.5, "prompt_id": "z", "License": "CC0"},
        {"flagged": False},
    ],
)
def test_keys_that_are_harmless(tmp_path: Path, more: dict[str, object]) -> None:
    for row in ({"question": "Why?", "answer": "Because."}, {"messages": SAID}):
        found = only(write(tmp_path / "a.jsonl", row | more))
        assert found.turns == PAIR and found.unused_keys == ()


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def test_tools_and_thoughts_in_every_spelling(tmp_path: Path) -> None:
    tools = [{"name": "f", "description": "d"}]
    text = json.dumps({"name": "f", "arguments": {"x": 1}})
    expected = (PAIR[0], Turn("assistant", "", True, {"tool_calls": [CALL]}), Turn("tool", "2"), PAIR[1])
    answer = {"role": "tool", "content": "2"}
    for call in (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "assistant", "content": [{"type": "tool_call", "value": text}]},
        {"from": "function_call", "value": text},
    ):
        for tool in (answer, {"from": "observation", "value": "2"}):
            row = {"messages": [SAID[0], call, tool, SAID[1]], "tools": json.dumps(tools)}
            found = only(write(tmp_path / "a.jsonl", row))
            assert found.turns == expected and found.tools == tools and found.unused_keys == ()
    named = {"messages": [SAID[0], {"from": "gpt", "value": "", "tool_calls": [CALL | {"id": "7"}]},
                          answer | {"tool_call_id": "7", "name": "f"}, SAID[1]]}  # fmt: skip
    found = only(write(tmp_path / "a.jsonl", named))
    assert found.messages()[2] == {"role": "tool", "content": "2", "tool_call_id": "7", "name": "f"}
    assert found.messages()[1]["tool_calls"] == [{"id": "7", **CALL}] and found.unused_keys == ()
    for said in (
        SAID[1] | {"reasoning_content": " Hm. "},
        SAID[1] | {"content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Because."}]},
    ):
        turn = only(write(tmp_path / "a.jsonl", {"messages": [SAID[0], said]})).turns[1]
        assert turn == Turn("assistant", "Because.", True, {"reasoning_content": "Hm."}) and turn.thought == "Hm."
    beside = {"question": "Why?", "answer": "Because.", "reasoning_content": "Hm."}
    assert only(write(tmp_path / "a.jsonl", beside)).turns[1].thought == "Hm."


def test_roles_that_follow_each_other(tmp_path: Path) -> None:
    rows = [[SAID[0], *SAID], [*SAID, SAID[1]], [{"role": "developer", "content": "D"}, *SAID, SAID[0], SAID[0]]]
    path = write(tmp_path / "a.jsonl", *({"messages": row} for row in rows))
    roles = [" ".join(turn.role for turn in found.turns) for found in read_conversations(path, system=None)]
    assert roles == ["user user assistant", "user assistant assistant", "developer user assistant"]


def test_bad_rows_are_skipped_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"messages": SAID})
    path.write_text("\n".join([good, '{"x": ', good, '{"text": "x"}', "[1]", good]))
    bad = BadRows(3)
    assert [found.where[-2:] for found in read_conversations(path, bad=bad)] == [":1", ":3", ":6"]
    assert [message.split(": ")[0] for message in bad.skipped] == [
        f"cannot read {path}:2", f"cannot use {path}:4", f"cannot read {path}:5",
    ]  # fmt: skip
    with pytest.raises(SourceError, match=r"a\.jsonl:5: .*\(--skip-bad-rows: 2 were skipped before it\)"):
        list(read_conversations(path, bad=BadRows(2)))
    with pytest.raises(SourceError, match=r"a\.jsonl:2: broken JSON"):
        list(read_conversations(path))
    path.write_text("{\n{")
    with pytest.raises(SourceError, match=r"no examples in .*: 2 bad rows were skipped, the first: .*:1"):
        list(read_conversations(path, bad=BadRows(9)))
    (tmp_path / "a.csv").write_text("question,answer\nWhy?,Because.\nWhy?\nWhy?,Because.\n")
    assert len(list(read_conversations(tmp_path / "a.csv", bad=BadRows(1)))) == 2
    (tmp_path / "a.json").write_text(f"[{good}, 3, {good}]")
    assert len(list(read_conversations(tmp_path / "a.json", bad=BadRows(1)))) == 2


def test_line_ends_are_counted(tmp_path: Path) -> None:
    row = {"question": "a\r\nb", "answer": "c\rd\r\ne"}
    found = only(write(tmp_path / "a.jsonl", row))
    assert [turn.text for turn in found.turns] == ["a\nb", "c\nd\ne"] and found.line_ends == 3


def test_unused_keys_are_named(tmp_path: Path) -> None:
    question = {"question": "Why?", "answer": "Because.", "context": "c", "input": "x", "label": 0}
    assert only(write(tmp_path / "a.jsonl", question)).unused_keys == ("context", "input", "label")
    said = [SAID[0] | {"name": "Ann", "id": 1}, SAID[1] | {"prefix": True, "thinking": None, "train": True}]
    found = only(write(tmp_path / "a.jsonl", {"messages": said, "rejected": "No."}))
    assert found.unused_keys == ("rejected", "messages[].name", "messages[].prefix")


def test_tables(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.csv"
    path.write_text('id,frage,antwort\n1,Why?,"Because."\n2,"two\nlines","Yes, ""so""."\n3,x\n')
    rows = read_conversations(path, columns=("frage", "antwort"))
    assert next(rows).turns == PAIR
    assert next(rows).turns[1].text == 'Yes, "so".'
    with pytest.raises(SourceError, match=r"a\.csv:5: expected 3 columns, found 2"):
        next(rows)
    path.write_text("question,answer\nWhy?,Because.\n")
    assert only(path).turns == PAIR
    path.write_text("id;messages\n1;" + '"' + json.dumps(SAID).replace('"', '""') + '"\n')
    assert only(path).turns == PAIR
    packed = tmp_path / "packed" / "a.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(json.dumps(SAID).encode()))
    assert only(packed.parent).turns == PAIR
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": SAID}]), tmp_path / "a.parquet")
    assert only(tmp_path / "a.parquet").turns == PAIR
    assert len(list(read_conversations(tmp_path))) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "expected messages, conversations, .*found 'text'"),
        ([1], "expected a JSON object, found an array"),
        ({"messages": []}, "expected an array of messages, found an empty array"),
        ({"messages": "x"}, "expected an array of messages, found a string"),
        ({"messages": [3]}, r"messages\[0\]: expected an object"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: expected role and content"),
        ({"messages": [*SAID, {"role": "critic", "content": "x"}]}, r"messages\[2\]: role: expected system.*'critic'"),
        (
            {"messages": [SAID[0], {"role": "tool", "content": "x"}, SAID[1]]},
            "message 2: expected a tool's answer",
        ),
        ({"messages": [{"role": "tool", "content": "x"}, *SAID]}, "message 1: expected the user, found the tool"),
        (
            {"messages": [*SAID, {"role": "system", "content": "x"}, *SAID]},
            "message 3: expected the .*the system",
        ),
        ({"messages": [SAID[0], SAID[1] | {"tool_calls": [{}]}]}, "expected a tool call with a name"),
        ({"messages": [SAID[0], SAID[1] | {"tool_calls": "[{"}]}, "tool call: broken JSON text"),
        (
            {"messages": [SAID[0], SAID[1] | {"tool_calls": [{"name": "f", "arguments": "[]"}]}]},
            "arguments: expected",
        ),
        (
            {"messages": [SAID[0] | {"tool_calls": [{"name": "f"}]}, SAID[1]]},
            "expected thoughts and tool calls",
        ),
        ({"messages": "[{"}, "messages: broken JSON text"),
        (
            {"messages": [SAID[0] | {"content": [{"type": "text"}]}, SAID[1]]},
            "expected a text in each part",
        ),
        ({"messages": SAID, "tools": [3]}, "tools: expected an array of objects"),
        ({"messages": SAID, "tools": "{"}, "tools: broken JSON text"),
        ({"messages": SAID, "tools": [{"description": "f"}]}, r"tools\[0\]: expected an object with a name"),
        ({"messages": SAID, "reasoning_content": "Hm."}, "reasoning_content: expected it in the message of the answer"),
        ({"chosen": "a", "rejected": "b"}, "this is a pair for --preference dpo"),
        ({"messages": [SAID[0], SAID[1] | {"weight": 2}]}, "weight: expected 0 or 1"),
        ({"messages": [SAID[0] | {"weight": 1}, SAID[1]]}, "weight: expected 0 or 1"),
        ({"messages": [SAID[0] | {"content": None}, SAID[1]]}, "expected a string, found null"),
        ({"messages": SAID[:1]}, "nothing to train on"),
        ({"messages": [SAID[0], SAID[1] | {"weight": 0}]}, "nothing to train on"),
        ({"messages": SAID[1:]}, "message 1: expected the user, found the assistant"),
        ({"question": "Why?", "answer": "  "}, "message 2: the assistant's text is empty"),
        ({"question": "Why?", "answer": 3}, "answer: expected a string, found a number"),
        ({"question": "Why?", "answer": "\ud800"}, "unpaired UTF-16 surrogate"),
        *(
            (row | {key: value}, f"training with '{key}' is not supported")
            for row in ({"messages": SAID}, {"conversations": SAID}, {"question": "Why?", "answer": "So."})
            for key, value in (
                ("functions", [{"name": "f"}]),
                ("images", ["a.png"]),
                ("videos", ["a.mp4"]),
                ("audios", ["a.wav"]),
                ("chat_template_kwargs", {"enable_thinking": True}),
            )
        ),
        *(
            ({"prompt": "Why?", "completion": "So.", key: value}, f"{key}: expected true, found false")
            for key in ("label", "kto_tag")
            for value in (False, "False", "false ")
        ),
        *(
            ({"messages": [SAID[0], SAID[1] | {key: value}]}, f"{key}: expected true")
            for key in ("train", "training", "loss")
            for value in (False, 0, 0.5, "no")
        ),
        ({"messages": [SAID[0] | {"train": True}, SAID[1]]}, "train: expected false"),
        ({"messages": SAID, "history": [["a", "b"]]}, "history: expected nothing beside a list of messages"),
        ({"prompt": SAID[:1], "completion": SAID[1:], "history": [["a", "b"]]}, "history: expected nothing"),
        ({"instruction": "Why?", "output": "So.", "history": "a"}, "history: expected an array"),
        ({"instruction": "Why?", "output": "So.", "history": ["a"]}, r"history\[0\]: expected .*found a string"),
        ({"instruction": "Why?", "output": "So.", "history": [["a"]]}, r"history\[0\]: expected .*found 1 items"),
        ({"instruction": "Why?", "output": "So.", "history": [["a", 1]]}, r"history\[0\]\[1\]: expected a string"),
    ],
)
def test_rows_that_are_no_conversation(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": SAID}, row)
    with pytest.raises(SourceError, match=rf"a\.jsonl:2: .*{message}|a\.jsonl:2: {message}"):
        list(read_conversations(path))


def test_files_without_examples(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.jsonl", '{"x": ', r"a\.jsonl:1: broken JSON"),
        ("a.json", '{"x": 1}', "expected a JSON array"),
        ("a.json", "[1]", "item 1: expected a JSON object"),
        (
            "a.csv",
            'messages\n"[{""role"": ""user"", ""role"": ""assistant"", ""content"": ""a""}]"\n',
            "found 'role' twice",
        ),
        ("a.csv", "", "it is empty"),
        ("a.csv", "a,a\n1,2\n", "two columns have the same name"),
        (
            "a.jsonl",
            '{"question": "a", "answer": "b", "answer": "c"}',
            r"a\.jsonl:1: .*found 'answer' twice; remove one",
        ),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "found 'content' twice"),
        ("a.json", '[{"question": "a", "question": "b", "answer": "c"}]', "found 'question' twice"),
        ("a.parquet", "x", "not a complete parquet file"),
        ("a.txt", "x", "unknown file type"),
        ("a.jsonl", "\n\n", "the files are empty"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(SourceError, match=message):
            list(read_conversations(tmp_path / name))
    with pytest.raises(SourceError, match="no such file"):
        list(read_conversations(tmp_path / "none.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no examples in folder"):
        list(read_conversations(tmp_path / "empty"))
    with pytest.raises(SourceError, match="it has no 'frage'"):
        list(read_conversations(write(tmp_path / "b.jsonl", {"a": 1}), columns=("frage", "antwort")))
    assert Row("x", {}).values == {}


def test_a_folder_says_what_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.jsonl", "notes.docx", ".hidden"):
        (tmp_path / name).write_text('{"question": "a", "answer": "b"}\n')
    bad = BadRows()
    assert len(list(read_conversations(tmp_path, bad=bad))) == 1
    (line,) = bad.conversions.describe()
    assert line.startswith("not read, because") and line.endswith(f"{tmp_path / 'more'}, {tmp_path / 'notes.docx'}")
