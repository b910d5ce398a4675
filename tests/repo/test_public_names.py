"""Holds the public door: which names `llamita` has, that importing it is light, and that running needs no torch."""

from __future__ import annotations

import subprocess
import sys

import llamita

PUBLIC = [
    "Chat",
    "LlamitaError",
    "Model",
    "ModelConfig",
    "RuntimeOptions",
    "Sampler",
    "SamplingParams",
    "Session",
    "__version__",
    "export",
    "import_model",
    "load",
    "prepare",
    "train",
]


def test_public_names() -> None:
    assert sorted(llamita.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(llamita, name) is not None


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    heavy = in_fresh_python(
        "import sys, llamita\nprint(sorted(set(sys.modules) & {'torch', 'numpy', 'gguf', 'rich', 'tokenizers'}))"
    )
    assert heavy == "[]"


def test_running_needs_no_torch() -> None:
    """With torch and every other training package made unimportable, the packaged model still tells a story."""
    story = in_fresh_python(
        "import sys\n"
        "class Absent:\n"
        "    NAMES = {'torch', 'safetensors', 'tokenizers', 'sentencepiece', 'tiktoken', 'pyarrow'}\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in self.NAMES:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import llamita\n"
        "print(''.join(llamita.load().generate('Once upon a time', max_new_tokens=8, temperature=0)))\n"
        "from llamita.cli import main\n"
        "assert main(['run', '-i', 'One day', '-n', '4', '-t', '0']) == 0\n"
    )
    assert story
