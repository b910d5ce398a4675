"""Name, license, system prompt and sampling defaults travel with a model, through all its formats."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import gguf
import pytest

pytest.importorskip("torch")

import llamita
from llamita.cli import main
from llamita.cli.chat import ChatFlags
from llamita.cli.command import card_defaults, parse
from llamita.cli.run import RunFlags
from llamita.cli.sample import SampleFlags
from llamita.convert.export import export
from llamita.convert.import_model import import_model
from llamita.errors import ConfigError, FormatError
from llamita.formats.gguf_card import card_of_gguf
from llamita.model_card import ModelCard, load_card
from llamita.tokenizer.chat_templates import CHAT_TEMPLATES

FULL = ModelCard(
    name="Apotheke", license="apache-2.0", description="Answers questions about medicines.", language=("de", "en"),
    system='You are "careful".\nYou say so.', temperature=0.7, top_p=0.85, top_k=40, min_p=0.05, repetition_penalty=1.1,
)  # fmt: skip


def test_a_card_survives_every_format(chat_base: Path, tmp_path: Path) -> None:
    folder, model, back = tmp_path / "folder", tmp_path / "model.gguf", tmp_path / "back"
    assert load_card(chat_base) == ModelCard()
    export(chat_base, folder, card=FULL, verify=False)
    assert load_card(folder) == FULL
    export(folder, model, verify=False)
    assert card_of_gguf(model) == FULL
    import_model(model, back, verify=False)
    assert load_card(back) == FULL
    import_model(back, tmp_path / "again", verify=False)
    assert load_card(tmp_path / "again") == FULL
    export(folder, tmp_path / "changed.gguf", card=ModelCard(temperature=0.1), verify=False)
    assert card_of_gguf(tmp_path / "changed.gguf").temperature == 0.1
    assert card_of_gguf(tmp_path / "changed.gguf").system == FULL.system


def test_other_programs_find_the_card(chat_base: Path, tmp_path: Path) -> None:
    folder, model = tmp_path / "folder", tmp_path / "model.gguf"
    export(chat_base, folder, card=FULL, verify=False)
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["temperature"] == 0.7 and settings["repetition_penalty"] == 1.1 and "eos_token_id" in settings
    readme = (folder / "README.md").read_text()
    assert readme.startswith('---\nlicense: "apache-2.0"\nlanguage: ["de", "en"]\n---\n\n# Apotheke\n')
    export(folder, model, verify=False)
    fields = gguf.GGUFReader(model).fields
    keys = gguf.Keys.General
    assert fields[keys.NAME].contents() == "Apotheke" and fields[keys.LICENSE].contents() == "apache-2.0"
    assert fields[keys.LANGUAGES].contents() == ["de", "en"]
    assert fields["general.sampling.temp"].contents() == pytest.approx(0.7)
    assert fields["general.sampling.top_k"].contents() == 40
    (folder / "llamita.json").unlink()
    assert load_card(folder) == ModelCard(license="apache-2.0", language=("de", "en"), **FULL.sampling())


@pytest.mark.parametrize("matter", ["license: mit\nlanguage:\n- de\n- en", 'language: ["de", en]\nlicense: "mit"'])
def test_the_front_matter_of_the_hub(tmp_path: Path, matter: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{matter}\ntags:\n- x\n---\n\n# Somebody's model\nlicense: no\n")
    assert load_card(tmp_path) == ModelCard(license="mit", language=("de", "en"))


def test_run_chat_and_sample_take_the_defaults_and_flags_win(chat_base: Path, tmp_path: Path) -> None:
    folder, model = tmp_path / "folder", tmp_path / "model.gguf"
    export(chat_base, folder, card=FULL, verify=False)
    export(folder, model, verify=False)
    chat = parse(ChatFlags, [str(model)], "chat", card_defaults)
    assert chat.system == FULL.system and chat.sampling.temperature == 0.7 and chat.sampling.top_k == 40
    chat = parse(ChatFlags, [str(model), "-y", "Be brief.", "-t", "0.6"], "chat", card_defaults)
    assert chat.system == "Be brief." and chat.sampling.temperature == 0.6 and chat.sampling.top_p == 0.85
    assert parse(RunFlags, [str(model), "-t", "1"], "run", card_defaults).sampling.temperature == 1.0
    assert parse(RunFlags, [], "run", card_defaults) == RunFlags()
    assert parse(SampleFlags, [str(folder)], "sample", card_defaults).sampling.repetition_penalty == 1.1


def test_the_engine_and_its_program_use_the_system_prompt(chat_base: Path, tmp_path: Path, engine_build: Path) -> None:
    """An answer is that with the prompt as an option, and differs from that with another one."""
    with_prompt, without = tmp_path / "with.gguf", tmp_path / "without.gguf"
    export(chat_base, with_prompt, "f32", card=ModelCard(system="Be a careful\nfox."), verify=False)
    export(chat_base, without, "f32", verify=False)
    with llamita.load(with_prompt) as model, llamita.Chat(model) as chat:
        assert model.system_prompt == "Be a careful\nfox."
        assert [(each.role, each.content) for each in chat.messages] == [("system", b"Be a careful\nfox.")]
    with llamita.load(without) as model, llamita.Chat(model) as chat:
        assert model.system_prompt is None and chat.messages == []

    def read_tokens(model: Path, *more: str) -> str:
        command = [engine_build / "run", model, "-m", "chat", "-n", "1", "-t", "0", "-v", *more]
        done = subprocess.run(command, input=b"Hi\n", capture_output=True, check=True)
        return done.stderr.decode().split(",")[0]

    assert read_tokens(with_prompt) == read_tokens(without, "-y", "Be a careful\nfox.") != read_tokens(without)


@pytest.mark.parametrize("lora", [False, True])
def test_a_trained_system_prompt_travels(chat_base: Path, questions: Path, tmp_path: Path, lora: bool) -> None:
    run, model = tmp_path / "run", tmp_path / "model.gguf"
    words = ["finetune", chat_base, questions, "-o", run, "--steps=1", "--device=cpu", "--threads=1"]
    words += ["--system=Be careful.", "--license=mit", "--name=Apotheke", *(["--lora"] if lora else [])]
    assert main([str(word) for word in words]) == 0
    assert main(["export", str(run), str(model), "--verify=no", "--temperature=0.3", "--modelfile"]) == 0
    assert card_of_gguf(model) == ModelCard(name="Apotheke", license="mit", system="Be careful.", temperature=0.3)
    lines = (tmp_path / "model.Modelfile").read_text()
    assert lines.startswith('FROM ./model.gguf\nTEMPLATE """')
    assert '\nPARAMETER stop "' in lines and '\nSYSTEM """Be careful."""\nPARAMETER temperature 0.3\n' in lines
    assert lines.endswith('LICENSE """mit"""\n')


@pytest.mark.parametrize(
    "before, after, is_known",
    [
        ("message['content'] + '<|im_end|>\\n'", "message['content'] + '<|im_end|>' + '\\n'", True),
        ("{%- for", "{%- if messages[0]['role'] != 'system' %}{{ 'You are kind.' }}{% endif %}{%- for", False),
        ("message['content']", "message['content'].upper()", False),
        ("{%- for", "{{- raise_exception('no') -}}{%- for", False),
    ],
)
def test_a_modelfile_has_a_template_only_if_it_renders_the_same(
    chat_base: Path, tmp_path: Path, before: str, after: str, is_known: bool
) -> None:
    folder, template = shutil.copytree(chat_base, tmp_path / "model"), CHAT_TEMPLATES["chatml"]
    assert before in template
    (folder / "chat_template.jinja").write_text(template.replace(before, after, 1))
    report = export(folder, tmp_path / "m.gguf", modelfile=True, verify=False)
    assert ("TEMPLATE" in (tmp_path / "m.Modelfile").read_text()) == is_known
    assert any("has no TEMPLATE" in note for note in report.notes) == (not is_known)


def test_wrong_values_are_named(chat_base: Path, tmp_path: Path) -> None:
    for content, message in (
        ('{"temperature": "hot"}', "temperature: expected another kind of value, found 'hot'"),
        ('{"top_p": 7}', "top-p: expected a number above 0"),
    ):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(FormatError, match=message):
            load_card(tmp_path)
    with pytest.raises(ConfigError, match="a Modelfile needs a"):
        export(chat_base, tmp_path / "folder", modelfile=True)
    with pytest.raises(ConfigError, match="three quotes"):
        export(chat_base, tmp_path / "m.gguf", card=ModelCard(system='say """'), modelfile=True, verify=False)
