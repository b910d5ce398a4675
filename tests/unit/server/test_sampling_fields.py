"""The fields of llama.cpp's samplers, as its clients and Ollama's send them: the text is the engine's with the same
parameters."""

from __future__ import annotations

from typing import Any

import pytest

from llamita.engine import Model
from llamita.server.parameters import MAX_DRY_WINDOW
from llamita.server.serving import API_SAMPLING

Client = Any  # conftest.Client: the tests are not a package
PROMPT = "Once upon a time"
DRY = {"dry_multiplier": 5.0, "dry_allowed_length": 1}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"typical_p": 0.3}, {"typical_p": 0.3}),
    ({"typical_p": 0}, {}),
    ({"xtc_probability": 1, "xtc_threshold": 0.05}, {"xtc_probability": 1.0, "xtc_threshold": 0.05}),
    ({"mirostat": 2, "mirostat_tau": 2.5, "mirostat_eta": 0.3}, {"mirostat_tau": 2.5, "mirostat_eta": 0.3}),
    ({"mirostat": 2}, {"mirostat_tau": 5.0}),
    ({"mirostat": 0, "mirostat_tau": 2.5}, {}),
    ({**DRY, "dry_base": 3}, {**DRY, "dry_base": 3.0}),
    ({**DRY, "dry_penalty_last_n": 30}, {**DRY, "dry_window": 30}),
    ({**DRY, "dry_penalty_last_n": -1}, {**DRY, "dry_window": MAX_DRY_WINDOW}),
    ({**DRY, "dry_penalty_last_n": 0}, {}),
    ({**DRY, "dry_sequence_breakers": ["\n", ":", '"', "*"]}, DRY),
]


@pytest.mark.parametrize(("fields", "parameters"), CASES, ids=str)
def test_fields_reach_the_engine(client: Client, stories: Model, fields: Any, parameters: Any) -> None:
    expected = "".join(stories.generate(PROMPT, API_SAMPLING, seed=7, max_new_tokens=40, **parameters))
    answer = client.ok("/v1/completions", {"prompt": PROMPT, "max_tokens": 40, "seed": 7, **fields})
    assert answer["choices"][0]["text"] == expected
    options = {"num_predict": 40, "seed": 7, **fields}
    answer = client.ok("/api/generate", {"prompt": PROMPT, "stream": False, "options": options})
    assert answer["response"] == expected
    plain = "".join(stories.generate(PROMPT, API_SAMPLING, seed=7, max_new_tokens=40))
    assert (expected == plain) is (parameters == {})
