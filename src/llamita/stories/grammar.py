"""Reads a story grammar and compiles its rules to functions that add sentences to a story.

The head of grammar.txt describes the syntax. A syntax error is a bug in the grammar, so it asserts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llamita.stories.story import Character, Row, Story, Text, compile_text

Step = Callable[[Story], None]
Condition = Callable[[Story], bool]


@dataclass
class Node:
    """A line and the lines of the block below it."""

    text: str
    block: list[Node]


class Grammar:
    """Tables, rules, and the names of the rules that are stories."""

    def __init__(self, text: str) -> None:
        self.tables: dict[str, list[tuple[Condition | None, Row]]] = {}
        self.rules: dict[str, Step] = {}
        self.stories: list[str] = []
        for node in _nodes(text):
            kind, name, columns = re.fullmatch(r"(\w*) ?([^:]*):? ?(.*)", node.text).groups()  # type: ignore[union-attr]
            if kind == "table":
                self.tables[name] = list(_rows(columns.split(" / "), node.block))
            elif kind:
                assert kind in ("rule", "story"), f"grammar: expected table, rule or story, found {node.text}"
                self.rules[name] = self._block(node.block)
                self.stories += [name] if kind == "story" else []

    def _block(self, nodes: Sequence[Node]) -> Step:
        steps: list[Step] = []
        for is_text, group in itertools.groupby(nodes, lambda node: node.text.startswith("-")):
            if is_text:
                guarded = [_guarded(node.text[2:]) for node in group]
                steps.append(_say([(holds, compile_text(text)) for holds, text in guarded]))
                continue
            for node in group:
                if branch := re.fullmatch(r"(?:(?:else )?if (.+?)|else): ?(.*)", node.text):
                    condition, inline = branch.groups()
                    if not node.text.startswith("else"):
                        branches: list[tuple[Condition | None, Step]] = []
                        steps.append(_branch(branches))
                    body = self._block([Node(inline, [])] if inline else node.block)
                    branches.append((_condition(condition) if condition else None, body))
                elif node.text:
                    steps.append(self._step(*node.text.partition(" ")[::2]))

        def run(story: Story) -> None:
            for step in steps:
                step(story)

        return run if len(steps) != 1 else steps[0]

    def _step(self, keyword: str, rest: str) -> Step:
        key, _, value = rest.partition(" = ")
        if keyword == "set":
            text = compile_text(value)
            return lambda story: story.scope.update({key: text(story)})
        if keyword == "pick":
            return self._pick(rest)
        if keyword == "cast":
            return _cast(key.split(", "), [compile_text(choice) for choice in value.split(" | ")])
        if keyword == "character":
            return _character(key, [compile_text(cell) for cell in _cells(value)])
        if keyword == "run":
            rule = compile_text(rest)
            return lambda story: self.rules[rule(story)](story)
        assert keyword == "paragraph", f"grammar: expected a step, found {keyword} {rest}"
        return Story.begin_paragraph

    def _pick(self, rest: str) -> Step:
        rest, _, excluded = rest.partition(" except ")
        source, _, target = rest.partition(" as ")
        tables, names = [compile_text(table) for table in source.split(" + ")], target.split(", ")

        def step(story: Story) -> None:
            rows = [row for table in tables for holds, row in self.tables[table(story)] if not holds or holds(story)]
            if excluded:
                rows = [row for row in rows if story.scope[excluded] not in row.values()]
            if target:
                story.scope.update(zip(names, story.sample(rows, len(names)), strict=True))
            else:
                story.scope.update(story.pick(rows))

        return step


def _say(alternatives: list[tuple[Condition | None, Text]]) -> Step:
    unconditional = None if any(holds for holds, _ in alternatives) else [text for _, text in alternatives]

    def step(story: Story) -> None:
        texts = unconditional or [text for holds, text in alternatives if not holds or holds(story)]
        if texts:
            text = story.pick(texts) if len(texts) > 1 else texts[0]
            story.say(text(story))

    return step


def _branch(branches: list[tuple[Condition | None, Step]]) -> Step:
    def step(story: Story) -> None:
        for holds, body in branches:
            if not holds or holds(story):
                return body(story)

    return step


def _cast(names: list[str], keys: list[Text]) -> Step:
    def step(story: Story) -> None:
        chosen = story.sample(keys, len(names)) if len(keys) > 1 else keys
        story.scope.update(zip(names, [story.scope[key(story)] for key in chosen], strict=True))

    return step


def _character(key: str, cells: list[Text]) -> Step:
    def step(story: Story) -> None:
        name, gender, kind, introduction, *friend_of = (cell(story) for cell in cells)
        friend = story.scope[friend_of[0]] if friend_of else None
        assert friend is None or isinstance(friend, Character)
        story.scope[key] = Character(name, gender, kind, introduction, friend)

    return step


def _condition(text: str) -> Condition:
    for word, combine in (" or ", any), (" and ", all):
        if word in text:
            conditions = [_condition(part) for part in text.split(word)]
            return lambda story: combine(holds(story) for holds in conditions)
    if text.startswith("not "):
        positive = _condition(text[4:])
        return lambda story: not positive(story)
    if text.startswith("chance "):
        probability = float(text[7:])
        return lambda story: story.random() < probability
    key, operator, operand = re.fullmatch(r'(\S+)(?: (is|has) "?(.+?)"?)?', text).groups()  # type: ignore[union-attr]
    name, _, column = key.partition(".")

    def holds(story: Story) -> bool:
        value = story.scope.get(name, "")
        if isinstance(value, dict):
            value = value[column]
        if operator == "is":
            return value == operand or value is story.scope.get(operand)
        return operand in value if operator and isinstance(value, str) else bool(value)

    return holds


def _guarded(text: str) -> tuple[Condition | None, str]:
    """Split a line into its condition (`if …: `), if it has one, and the rest."""
    condition, rest = re.fullmatch(r"(?:if (.+?): ?)?(.*)", text).groups()  # type: ignore[union-attr]
    return _condition(condition) if condition else None, rest


def _cells(text: str) -> list[str]:
    return re.split(r" /(?: |$)", text)


def _rows(columns: list[str], nodes: Sequence[Node]) -> Iterator[tuple[Condition | None, Row]]:
    for node in nodes:
        if node.text:
            condition, rest = _guarded(node.text)
            cells = _cells(rest)
            assert len(cells) % len(columns) == 0, f"grammar: expected {columns}, found {node.text}"
            for first in range(0, len(cells), len(columns)):
                yield condition, dict(zip(columns, cells[first:], strict=False))


def _nodes(text: str) -> list[Node]:
    """Parse lines into a tree by indentation, dropping comments and joining continuation lines."""
    root = Node("", [])
    above = [(-1, root)]  # the last line and the lines it is indented below, outermost first
    for line in text.splitlines():
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if stripped.startswith("#"):
            continue
        while stripped and indent <= above[-1][0]:
            above.pop()
        parent_indent, parent = above[-1]
        opens_block = parent_indent <= 0 or re.fullmatch(r"(if .*|else.*):", parent.text)
        if not stripped:
            above[-1 if opens_block else -2][1].block.append(Node("", []))
        elif opens_block:
            above.append((indent, Node(stripped, [])))
            parent.block.append(above[-1][1])
        else:
            parent.text += f" {stripped}"
    return root.block
