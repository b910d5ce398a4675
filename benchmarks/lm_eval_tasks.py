r"""Writes two offline tasks for lm-evaluation-harness: bits per byte, and story endings.

    python benchmarks/lm_eval_tasks.py --model runs/mine --out tasks my_data
    lm_eval --model hf --model_args pretrained=runs/mine/latest,add_bos_token=False \
        --include_path tasks --tasks val_bits,endings

DATA is a token store, whose validation split is used, or text as `llamita prepare` reads it. In
`endings` the last sentence of a text is removed; the model chooses between it and the last
sentences of three other texts (chance: 25 %). Of the model only the tokenizer is used, for the
token that begins a text.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamita.checkpoint import resolve_checkpoint
from llamita.data.documents import read_documents
from llamita.data.token_store import TokenStore
from llamita.errors import LlamitaError, SourceError
from llamita.tokenizer import Tokenizer, load_tokenizer

CHOICES = 4
MIN_SENTENCES = 3  # minimum of a text with an ending
MIN_ENDING_BYTES = 12  # minimum of an ending
SENTENCE_END = re.compile(r"""(?:[.!?…]+["'”’)]*(?=\s)|[。！？]+[”’」』]*)""")

ROLLING = """\
task: val_bits
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
  - metric: byte_perplexity
metadata:
  version: 1.0
"""

ENDINGS = """\
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_bytes
metadata:
  version: 1.0
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="DATA", help="a token store, or text files and folders")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint or run directory")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tasks; existing files are replaced")
    parser.add_argument("--documents", type=int, default=500, help="number of documents, evenly spread (default: 500)")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed for the wrong endings and the order (default: 0)"
    )
    arguments = parser.parse_args(argv)
    try:
        tokenizer = load_tokenizer(resolve_checkpoint(arguments.model))
        texts = spread(read_texts(arguments.data), arguments.documents)
    except LlamitaError as error:
        print(f"lm_eval_tasks: {error}", file=sys.stderr)
        return 2
    begin = "" if tokenizer.bos_id is None else tokenizer.pieces()[tokenizer.bos_id]
    endings = ask_endings(texts, begin, random.Random(arguments.seed))
    write_task(arguments.out, "val_bits", ROLLING, [{"text": text} for text in texts])
    print(f"val_bits: {len(texts):,} texts, {sum(len(text.encode()) for text in texts):,} bytes")
    if endings:
        write_task(arguments.out, "endings", ENDINGS, endings)
    print(
        f"endings: {len(endings):,} of them have at least {MIN_SENTENCES} sentences" + ("" if endings else ": no task")
    )
    return 0


def read_texts(data: Sequence[str]) -> list[str]:
    """The validation documents of a token store, or all documents of text files; stripped, without
    empty ones."""
    if len(data) == 1 and (Path(data[0]) / "store.json").is_file():
        texts = decode_store(TokenStore(Path(data[0])), load_tokenizer(Path(data[0])))
    else:
        texts = [document.text.strip() for document in read_documents(data)]
    texts = [text for text in texts if text]
    if not texts:
        raise SourceError(f"no text in {' '.join(data)}")
    return texts


def decode_store(store: TokenStore, tokenizer: Tokenizer) -> list[str]:
    documents = store.split("val")
    ids = (documents.document(number)[:-1].tolist() for number in range(documents.num_documents))
    return [tokenizer.decode(each).decode("utf-8", "replace") for each in ids]


def spread(texts: list[str], count: int) -> list[str]:
    """`count` of the texts (or all), evenly spread over them."""
    count = min(count, len(texts))
    return [texts[len(texts) * place // count] for place in range(count)]


def split_ending(text: str) -> tuple[str, str] | None:
    """The beginning of a text, and its last sentence with the space before it; None if the text is
    too short."""
    ends = [match.end() for match in SENTENCE_END.finditer(text) if match.end() < len(text)]
    if len(ends) < MIN_SENTENCES - 1 or len(text[ends[-1] :].strip().encode()) < MIN_ENDING_BYTES:
        return None
    return text[: ends[-1]], text[ends[-1] :]


def ask_endings(texts: Sequence[str], begin: str, chosen: random.Random) -> list[dict[str, Any]]:
    """One question per text with an ending: BOS and the beginning, four endings, the index of the
    right one."""
    pairs = [pair for pair in map(split_ending, texts) if pair is not None]
    if len({ending.strip() for _, ending in pairs}) < CHOICES:
        return []
    questions = []
    for beginning, ending in pairs:
        space = ending[: len(ending) - len(ending.lstrip())]
        wrong: list[str] = []
        while len(wrong) < CHOICES - 1:
            other = space + chosen.choice(pairs)[1].strip()
            if other != ending and other not in wrong:
                wrong.append(other)
        answer = chosen.randrange(CHOICES)
        choices = [*wrong[:answer], ending, *wrong[answer:]]
        questions.append({"context": begin + beginning, "choices": choices, "answer": answer})
    return questions


def write_task(folder: Path, name: str, task: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes name.jsonl, and name.yaml, which contains the absolute path of the former."""
    folder.mkdir(parents=True, exist_ok=True)
    data = (folder / f"{name}.jsonl").resolve()
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(task.format(path=json.dumps(str(data))), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
