"""Every finished answer under a JSON Schema is valid by the jsonschema package, and every schema
that could not be enforced is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.compat
jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

from llamita.engine import Grammar, Model  # noqa: E402
from llamita.errors import EngineError  # noqa: E402

NUM_SCHEMAS = 200
ASSETS = Path(__file__).parents[2] / "src" / "llamita" / "assets"
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "hostname", "uri")
PATTERNS = ("^[a-z]{2,5}$", "^(red|green)-[0-9]+$", "[A-C]", "^\\d{3}$", "^.{1,4}$", "^[一-龥]{1,3}$")


def random_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    """A schema of the kinds that people write for answers of models."""
    kinds = ["string", "number", "integer", "boolean", "null", "enum", "const"]
    kinds += ["object"] * 4 + ["array"] * 3 + ["anyOf", "oneOf", "allOf", "types"] if depth else []
    kind = rng.choice(kinds)
    if kind == "string":
        more = rng.choice([{}, {"minLength": rng.randrange(3)}, {"maxLength": rng.randrange(1, 9)},
                           {"pattern": rng.choice(PATTERNS)}, {"format": rng.choice(FORMATS)},
                           {"minLength": 2, "maxLength": 6}])  # fmt: skip
        return {"type": "string", **more}
    if kind in ("number", "integer"):
        low = rng.randrange(-50, 50)
        more = rng.choice([{}, {"minimum": low}, {"maximum": low}, {"minimum": low, "maximum": low + 7},
                           {"exclusiveMinimum": low, "exclusiveMaximum": low + 9}, {"multipleOf": 5}])  # fmt: skip
        return {"type": kind, **more}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", 1, 2.5, None, True, "是", 'a"b'], rng.randrange(1, 5))}
    if kind == "const":
        return {"const": rng.choice(["x", 7, None, {"a": [1]}])}
    if kind == "object":
        names = rng.sample(["name", "age", "tags", "address", "是否", "a b", "$id_"], rng.randrange(1, 5))
        schema = {
            "type": "object",
            "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": rng.sample(names, rng.randrange(len(names) + 1)),
            "additionalProperties": rng.choice([False, False, True, {"type": "integer"}]),
        }
        return {**schema, **rng.choice([{}, {}, {"title": "T", "description": "d"}, {"minProperties": 1}])}
    if kind == "array":
        more = rng.choice([{}, {"minItems": 1}, {"maxItems": 3}, {"minItems": 2, "maxItems": 4}, {"uniqueItems": True}])
        tuple_form = {"prefixItems": [random_schema(rng, depth - 1)], "items": rng.choice([False, {"type": "null"}])}
        return {"type": "array", **rng.choice([{"items": random_schema(rng, depth - 1)}] * 3 + [tuple_form]), **more}
    if kind == "types":
        return {"type": rng.sample(["string", "integer", "null", "boolean"], 2)}
    if kind == "allOf":
        return {"allOf": [{"type": "object", "properties": {"a": random_schema(rng, 0)}, "required": ["a"]},
                          {"properties": {"b": random_schema(rng, 0)}}]}  # fmt: skip
    return {kind: [random_schema(rng, depth - 1) for _ in range(2)]}


def test_finished_answers_are_valid(engine_build: Path) -> None:
    refused, finished = [], 0
    with Model(ASSETS / "stories.gguf") as model:
        for seed in range(NUM_SCHEMAS):
            schema = random_schema(random.Random(seed), 2)
            if seed % 5 == 0:  # through a reference, to itself too
                schema = {"$defs": {"x": schema}, "type": "object", "required": ["v"], "additionalProperties": False,
                          "properties": {"v": {"$ref": "#/$defs/x"}, "next": {"$ref": "#"}}}  # fmt: skip
            validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
            try:
                grammar = Grammar.json_schema(schema)
            except EngineError as error:
                refused.append(str(error))
                continue
            for number in range(3):
                generation = model.generate(
                    "Answer: ", temperature=(0.0, 0.8, 1.3)[number], seed=seed, max_new_tokens=150, grammar=grammar
                )
                text = "".join(generation)
                if generation.stop in ("grammar's end", "end token"):
                    finished += 1
                    errors = [error.message for error in validator.iter_errors(json.loads(text))]
                    assert not errors, (schema, text, errors)
    assert len(refused) < NUM_SCHEMAS / 4, refused
    assert finished > NUM_SCHEMAS
