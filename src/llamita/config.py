"""All settings, as frozen dataclasses with validation. The command line is made from them."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from llamita.errors import ConfigError


def check(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_at_most(where: str, value: float | None, limit: float) -> None:
    """Raise ConfigError for a number that is larger than any use of the flag.

    What follows may multiply it, allocate by it, or hand it to C.
    """
    too_large = value is not None and value > limit
    check(not too_large, f"{where}: expected at most {_shown(limit)}, found {_shown(value or 0)}")


def check_seed(where: str, seed: int) -> None:
    """Raise ConfigError for a seed that PyTorch's generators cannot take."""
    check(0 <= seed < 1 << 63, f"{where}: expected 0 to 2^63 - 1, found {str(seed)[:60]}")


def check_utf8(where: str, text: str) -> None:
    """Raise ConfigError for a name or a text that a file of JSON cannot hold."""
    readable = text.encode("utf-8", "backslashreplace").decode()
    check(text == readable, f"{where}: expected valid UTF-8, found {readable[:200]}; give a file another name")


def _shown(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"[:60]


@dataclasses.dataclass(frozen=True)
class Option:
    """How a field appears on the command line, and whether a resumed run may change it.

    `steps: Annotated[int, Option("N", group="model")] = 1`; the string below the field is its help.
    """

    metavar: str = ""  # what the help shows for the value; the default depends on the type
    group: str = "options"  # heading in the help
    short: str = ""  # the letter of a short form
    name: str = ""  # the flag without its dashes; the default is the field's name
    positional: bool = False
    repeated: bool = False  # given once for each value of a tuple
    resume: Literal["", "may change", "may grow"] = ""  # see fields_by_resume
    run_specific: bool = False  # differs between any two runs; comparisons leave it out


_options: dict[type[Any], dict[str, Option]] = {}  # what options_of found: evaluating annotations is slow


def options_of(config: type[Any]) -> Mapping[str, Option]:
    """The Option of each annotated field.

    A subclass may annotate a field anew, for example to make it positional; what its bases say
    about resuming still holds.
    """
    if config in _options:
        return _options[config]
    found: dict[str, Option] = {}
    for base in reversed(config.__mro__):
        for name, hint in typing.get_type_hints(base, include_extras=True).items():
            for option in getattr(hint, "__metadata__", ()):
                inherited = found.get(name, option)
                found[name] = dataclasses.replace(
                    option,
                    resume=option.resume or inherited.resume,
                    run_specific=option.run_specific or inherited.run_specific,
                )
    _options[config] = found
    return found


def fields_by_resume(config: type[Any], rule: Literal["may change", "may grow"]) -> tuple[str, ...]:
    """The fields with a resume rule.

    "may change": a resumed run may differ from run.json; "may grow": the value may be larger. All
    other fields must match.
    """
    return tuple(name for name, option in options_of(config).items() if option.resume == rule)


Architecture = Literal["llama", "qwen2", "qwen3", "smollm3"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a network, complete and validated.

    The field names are those of Hugging Face's LlamaConfig. Models that are trained from scratch
    are plain Llamas; the other architectures are imported, and differ from a Llama in one property
    each: qwen2 in attention_bias, qwen3 in use_qk_norm, smollm3 in no_rope_layers.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 0
    pad_token_id: int | None = None
    architecture: Architecture = "llama"
    attention_bias: bool = False
    """Biases of q, k and v. (Hugging Face's attention_bias adds one to o; Qwen2 has none there.)"""
    use_qk_norm: bool = False
    """RMS norms of each head of q and k, before RoPE."""
    no_rope_layers: tuple[int, ...] = ()
    """Indices of the layers without RoPE."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            value = getattr(self, name)
            check(
                isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31,
                f"model config: {name}: expected a positive whole number, found {value!r}",
            )
        check(self.head_dim % 2 == 0, f"model config: head_dim: RoPE needs an even number, found {self.head_dim}")
        check(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"model config: num_key_value_heads: expected a divisor of num_attention_heads "
            f"({self.num_attention_heads}), found {self.num_key_value_heads}",
        )
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            check(
                isinstance(value, (int, float)) and math.isfinite(value) and value > 0,
                f"model config: {name}: expected a positive number, found {value!r}",
            )
        self._check_architecture()

    def _check_architecture(self) -> None:
        known = typing.get_args(Architecture)
        check(
            self.architecture in known,
            f"model config: architecture: expected one of {', '.join(known)}, found {self.architecture!r}",
        )
        for name, owner in (("attention_bias", "qwen2"), ("use_qk_norm", "qwen3")):
            expected = self.architecture == owner
            check(
                getattr(self, name) is expected,
                f"model config: {name}: expected {expected} for {self.architecture}, found {getattr(self, name)!r}",
            )
        layers = self.no_rope_layers
        check(
            layers == () or self.architecture == "smollm3",
            f"model config: no_rope_layers: expected none for {self.architecture}, found {len(layers)}",
        )
        check(
            list(layers) == sorted(set(layers)) and all(0 <= each < self.num_hidden_layers for each in layers),
            f"model config: no_rope_layers: expected increasing indices below {self.num_hidden_layers}, found "
            f"{str(layers)[:60]}",
        )

    @property
    def num_parameters(self) -> int:
        """Number of weights; tied embeddings are counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        if self.attention_bias:
            attention += self.head_dim * (self.num_attention_heads + 2 * self.num_key_value_heads)
        if self.use_qk_norm:
            attention += 2 * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a text."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A preset: the part of a ModelConfig that does not depend on tokenizer and data."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int


# llama2.c's shapes (its README and doc/stories260K.md), and small ones for CPUs, named by their
# number of weights with a vocabulary of 4,096: deep and thin, with grouped queries and tied
# embeddings (MobileLLM, arXiv 2402.14905).
PRESETS: dict[str, Shape] = {
    "0.5M": Shape(5, 64, 2, 1, 192, 512),
    "1.5M": Shape(5, 128, 4, 2, 352, 512),
    "3M": Shape(6, 192, 6, 3, 512, 512),
    "7M": Shape(8, 256, 8, 4, 704, 512),
    "stories260K": Shape(5, 64, 8, 4, 172, 512),
    "stories15M": Shape(6, 288, 6, 6, 768, 256),
    "stories42M": Shape(8, 512, 8, 8, 1376, 1024),
    "stories110M": Shape(12, 768, 12, 12, 2048, 1024),
}

PresetName = Literal["0.5M", "1.5M", "3M", "7M", "stories260K", "stories15M", "stories42M", "stories110M"]


MAX_STORIES = 10_000_000


# Options of prepare that apply to text, not to tokens that others made.
OF_TEXT = ("unit", "separator", "split_on", "text_key", "keep_line_ends", "encoding", "skip_unknown", "exclude",
           "near_duplicates", "drop_lines", "mask_personal_data")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Turn text into a token store: documents, a tokenizer, token shards for training and
    validation."""

    sources: tuple[str, ...]
    """Files or folders of .txt, .md, .jsonl, .json, .csv, .tsv, .parquet, .pdf, .docx, .pptx, .xlsx,
    .html, .htm, .xhtml, .epub, .odt, .rtf, .ipynb, .srt, .eml or .zip, also packed with gzip
    (.txt.gz); or the single word stories (generated stories) or tinystories (downloaded). Write
    ./stories for a folder of that name."""
    out: Path
    """Token store to create, a folder."""
    vocab_size: int | None = None
    """Train a tokenizer with this many tokens, including special tokens and bytes. Default: 512 to
    8,192, depending on the amount of text."""
    unit: Annotated[Literal["auto", "character", "word"], Option("UNIT")] = "auto"
    """Whether the tokens of Chinese text are characters or words of several characters. Default:
    words, if they make the text much shorter."""
    tokenizer: Path | None = None
    """Use this tokenizer instead: a tokenizer.json, a SentencePiece .model, llama2.c's
    tokenizer.bin, or a folder."""
    val_fraction: Annotated[float | None, Option("SHARE", group="validation")] = None
    """Share of the documents to hold out for validation, chosen by a hash of their text. Default:
    0.05."""
    val: Annotated[tuple[str, ...], Option("PATH", group="validation", repeated=True)] = ()
    """File or folder to hold out instead of a share; may be given several times. Its documents are
    dropped from the training text."""
    separator: Annotated[str, Option(group="documents")] = "<|endoftext|>"
    """What ends a document in text files, and in the text of a PDF or the like; a file without it is
    one document."""
    split_on: Annotated[Literal["separator", "lines", "blank-lines", "file"], Option("RULE", group="documents")] = (
        "separator"
    )
    """Where documents of these files end: separator, lines (each line is one), blank-lines or file."""
    text_key: Annotated[str, Option("NAME", group="documents")] = "text"
    """Key (.jsonl, .json) or column (.csv, .tsv, .parquet) that holds the text."""
    keep_line_ends: Annotated[bool, Option(group="documents")] = False
    """Keep CRLF and CR. Default: every line ends with LF."""
    encoding: Annotated[str | None, Option("NAME", group="documents")] = None
    """Encoding of all files, such as gb18030, big5, shift-jis, euc-kr or windows-1252; utf-8 refuses
    others. Default: UTF-8, or what each file is recognized as."""
    skip_unknown: Annotated[bool, Option(group="documents")] = False
    """Skip files of other types in folders, and name them, instead of refusing the first."""
    exclude: Annotated[tuple[str, ...], Option("PATH", group="documents", repeated=True)] = ()
    """Leave this file or folder of a SOURCE out; may be given several times."""
    near_duplicates: Annotated[Literal["keep", "report", "drop"], Option("ACTION", group="documents")] = "keep"
    """What to do with documents that are almost the same as another: keep them, count them (report),
    or drop them. Of a group with a held-out document, a held-out one is kept."""
    drop_lines: Annotated[Path | None, Option("FILE", group="documents")] = None
    """Remove the lines of this file from all documents; `llamita inspect DATA --lines FILE` writes
    those that repeat."""
    mask_personal_data: Annotated[bool, Option(group="documents")] = False
    """Replace mail addresses, telephone numbers, ID numbers and bank accounts by [EMAIL], [PHONE],
    [ID] and [ACCOUNT]."""
    num_workers: Annotated[int | None, Option(group="advanced")] = None
    """Encoding threads, or processes if only the tokenizers library can encode. Default: one per
    core, fewer for little text."""
    seed: int = 0
    """Random seed for the choice of held-out documents, and for generated stories."""
    num_stories: Annotated[int, Option(group="advanced")] = 20_000
    """How many stories to generate (source `stories` only)."""
    datatrove: Annotated[bool, Option(group="advanced")] = False
    """SOURCE (and --val) are folders that datatrove's DocumentTokenizer wrote with this --tokenizer
    and its eos_token, or lists of their files (.txt); the store links to the files. Without --val,
    the last documents are held out."""
    overwrite: bool = False
    """Replace the token store at --out."""

    def __post_init__(self) -> None:
        check_utf8("prepare: out", str(self.out))  # train records it
        check(len(self.sources) > 0, "prepare: no SOURCE given: expected files, folders, stories or tinystories")
        check(
            self.vocab_size is None or self.tokenizer is None,
            "prepare: --vocab-size and --tokenizer exclude each other; drop --vocab-size",
        )
        check(
            self.vocab_size is None or 259 <= self.vocab_size <= 1 << 20,
            f"prepare: --vocab-size: expected 259 (special tokens and bytes) to 1,048,576, found {self.vocab_size}",
        )
        check(
            not self.datatrove or self.tokenizer is not None,
            "prepare: --datatrove needs the --tokenizer that the tokens were made with (a tokenizer.json)",
        )
        for name in OF_TEXT if self.datatrove else ():
            check(
                getattr(self, name) == getattr(PrepareConfig, name),
                f"prepare: {flag(name)}: --datatrove links to tokens as they are; leave it out",
            )
        check(
            self.val_fraction is None or not self.val,
            "prepare: --val-fraction and --val exclude each other",
        )
        check(
            self.val_fraction is None or 0 < self.val_fraction <= 0.5,
            f"prepare: --val-fraction: expected more than 0, at most 0.5, found {self.val_fraction}",
        )
        check(
            self.separator.strip() != "",
            "prepare: --separator: expected some text, found none; for blank lines: --split-on blank-lines",
        )
        check(self.text_key != "", "prepare: --text-key: expected a name, found an empty one")
        check(
            self.num_workers is None or 1 <= self.num_workers <= 1024,
            f"prepare: --num-workers: expected 1 to 1,024, found {self.num_workers}",
        )
        check_seed("prepare: --seed", self.seed)
        check(
            1 <= self.num_stories <= MAX_STORIES,
            f"prepare: --num-stories: expected 1 to {MAX_STORIES:,}, found {self.num_stories}",
        )
        check(
            len(self.sources) == 1 or not {"stories", "tinystories"}.intersection(self.sources),
            "prepare: stories and tinystories cannot be mixed with other sources; write ./stories for a folder",
        )


DEFAULT_MINUTES = 10.0  # of train, plan and new
FRACTIONS = ("warmup_fraction", "decay_fraction", "final_lr_fraction", "averaged_fraction")  # from 0 to 1
MAX_VALUES: dict[str, float] = {  # of the flags of runs
    "minutes": 1e6, "steps": 10**9, "epochs": 1e6, "context": 2**20, "micro_batch_size": 2**16,
    "grad_accum_steps": 2**16, "learning_rate": 1e3, "embedding_lr": 1e3, "weight_decay": 1e3, "grad_clip": 1e9,
    "eval_interval": 10**9, "save_minutes": 1e6, "log_interval": 10**9, "early_stopping_patience": 10**9,
    "threads": 1024, "temperature": 1e3, "layers": 1024, "hidden": 2**17, "heads": 2**16,
    "kv_heads": 2**16, "ffn": 2**19, "rope_theta": 1e12, "rank": 2**14, "alpha": 1e6, "beta": 1e6,
    "preview": 10**6, "max_forgetting": 1e4, "generations": 100,
}  # fmt: skip

QuantizedType = Literal["q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_k_m", "q4_1", "q4_0"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every training run. `command`: the name of the command in messages."""

    command: ClassVar[str] = "train"

    out: Annotated[Path, Option(resume="may change", run_specific=True)]
    """Run directory: checkpoints, metrics.jsonl, report."""
    minutes: Annotated[float | None, Option("M", resume="may grow")] = None
    """Stop after this many minutes, final evaluation included; the learning-rate schedule fits
    them."""
    steps: Annotated[int | None, Option(resume="may grow")] = None
    """Stop after this many optimizer steps."""
    epochs: Annotated[float | None, Option(resume="may grow")] = None
    """Stop when each training token was seen this many times."""
    resume: Annotated[bool, Option(resume="may change", run_specific=True)] = False
    """Continue the run in --out from its latest checkpoint, with its options; a larger --minutes,
    --steps or --epochs trains longer."""
    context: Annotated[int | None, Option("TOKENS", group="model")] = None
    """Context length: tokens that the model sees at once."""
    dropout: Annotated[float, Option("P", group="optimization")] = 0.0
    """Dropout probability."""
    micro_batch_size: Annotated[int | None, Option(group="optimization", resume="may change")] = None
    """Sequences of --context tokens in one forward pass of one process. Default: planned with
    --minutes, else as many as make 2,048 tokens (65,536 on CUDA, 8,192 on Apple GPUs)."""
    grad_accum_steps: Annotated[int, Option(group="optimization", resume="may change")] = 1
    """Forward passes whose gradients are summed for one step."""
    optimizer: Annotated[Literal["adamw", "muon"], Option(group="optimization")] = "muon"
    """muon orthogonalizes the steps of the layers' matrices, adamw trains the rest; adamw trains
    everything."""
    learning_rate: Annotated[float | None, Option("LR", group="optimization")] = None
    """Peak learning rate of the layers' matrices. Default: 0.02 with muon, with adamw by the width
    of the model; less for steps below 2,048 tokens."""
    embedding_lr: Annotated[float | None, Option("LR", group="optimization")] = None
    """Peak AdamW learning rate of embeddings, classifier and norms. Default: by the width of the
    model."""
    schedule: Annotated[Literal["wsd", "linear", "cosine"], Option(group="optimization")] = "wsd"
    """Learning rate after the warm-up: wsd stays at the peak, then falls linearly; linear and
    cosine fall from the start."""
    warmup_fraction: Annotated[float, Option("SHARE", group="optimization")] = 0.02
    """Share of the run in which the learning rate rises."""
    decay_fraction: Annotated[float, Option("SHARE", group="optimization")] = 0.65
    """Share of the run in which wsd lowers the learning rate."""
    final_lr_fraction: Annotated[float | None, Option("SHARE", group="optimization")] = None
    """Learning rate at the end, as a share of the peak. Default: 0; where weights are averaged 0.3."""
    averaged_fraction: Annotated[float | None, Option("SHARE", group="optimization")] = None
    """Share of the run, at its end, whose weights are averaged; the average is the result. Default: 0;
    in pretraining without --qat 0.3 for text that is read more than four times."""
    weight_decay: Annotated[float | None, Option(group="optimization")] = None
    """Weight decay of matrices; embeddings and norms have none. Default: 0.1, more if a text is
    read many times."""
    beta1: Annotated[float, Option("B", group="optimization")] = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: Annotated[float | None, Option("B", group="optimization")] = None
    """AdamW's decay of the mean squared gradient. Default: a half-life of 500,000 tokens, at most
    0.999 (arXiv 2507.07101)."""
    grad_clip: Annotated[float, Option("NORM", group="optimization")] = 1.0
    """Largest norm of a step's gradient; 0 disables clipping."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Option(group="hardware")] = "auto"
    """Type of matrix products: auto is bfloat16 on CUDA if the device supports it, and on a CPU if
    train measures that it is faster; else float32. On CUDA the products of float32 are rounded to
    TF32 (10 bits) where the device supports it."""
    qat: Annotated[QuantizedType | None, Option(group="optimization")] = None
    """Quantization-aware training: the last fifth of the run computes with weights rounded to this
    type, for `llamita export --type`, which then costs nearly nothing."""
    eval_interval: Annotated[int | None, Option("STEPS", group="evaluation")] = None
    """Steps between evaluations on all held-out text. Default: 5 % of the time goes to at most 10
    evaluations."""
    teacher: Annotated[Path | None, Option(group="distillation")] = None
    """Larger checkpoint with the same tokenizer; learn from its distribution, not only from the
    targets."""
    teacher_weight: Annotated[float | None, Option("SHARE", group="distillation")] = None
    """The teacher's share of the loss. Default: 0.5."""
    temperature: Annotated[float | None, Option(group="distillation")] = None
    """Temperature at which the two distributions are compared. Default: 1."""
    early_stopping_patience: Annotated[int, Option(group="evaluation")] = 3
    """Stop after this many evaluations in a row that are worse than the best one; 0 never stops
    early."""
    save_minutes: Annotated[float, Option("M", group="output", resume="may change")] = 2.0
    """Minutes between checkpoints; each evaluation saves one too."""
    log_interval: Annotated[int, Option("STEPS", group="output")] = 10
    """Steps that one line of metrics.jsonl averages."""
    prompt: Annotated[str, Option(group="evaluation", resume="may change")] = ""
    """Beginning of the sample text at each evaluation. Default: empty."""
    track: Annotated[
        tuple[TrackerName, ...], Option("TRACKER", group="output", resume="may change", run_specific=True)
    ] = ()
    """Also send metrics to tensorboard (RUN/tensorboard), wandb or trackio (project llamita)."""
    name: Annotated[str | None, Option(group="model card", resume="may change")] = None
    """Name of the model."""
    license: Annotated[str | None, Option(group="model card", resume="may change")] = None
    """License of the model, by its SPDX name such as apache-2.0."""
    description: Annotated[str | None, Option(group="model card", resume="may change")] = None
    """What the model is for, in a sentence."""
    language: Annotated[tuple[str, ...], Option(group="model card", resume="may change")] = ()
    """Languages of the model, such as en zh."""
    seed: int = 0
    """Random seed."""
    device: Annotated[str, Option("DEVICE", group="hardware", resume="may change")] = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    fsdp: Annotated[bool, Option(group="hardware", resume="may change")] = False
    """Under torchrun, shard weights, gradients and optimizer state across processes (FSDP2) instead
    of replicating them (DDP), for models that do not fit one GPU."""
    threads: Annotated[int | None, Option(group="hardware", resume="may change")] = None
    """CPU threads. Default: one per core."""
    activation_checkpointing: Annotated[bool, Option(group="hardware", resume="may change")] = False
    """Recompute activations in the backward pass: less memory, about a third slower."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # of names and texts: they go into files of JSON
            check_utf8(f"{self.command}: {field.name.replace('_', '-')}", str(getattr(self, field.name)))
        limits = [name for name in ("minutes", "steps", "epochs") if getattr(self, name) is not None]
        given = " and ".join(flag(name) for name in limits)
        check(len(limits) <= 1, f"{self.command}: {given} exclude each other; give one of them")
        for name, limit in MAX_VALUES.items():
            if hasattr(self, name):
                check_at_most(f"{self.command}: {flag(name)}", getattr(self, name), limit)
        self._check_positive(
            "minutes", "steps", "epochs", "context", "micro_batch_size", "grad_accum_steps",
            "learning_rate", "embedding_lr", "eval_interval", "save_minutes", "log_interval", "threads",
        )  # fmt: skip
        for name in (*FRACTIONS, "dropout", "beta1", "beta2"):
            value = getattr(self, name)
            check(
                value is None or 0.0 <= value < 1.0 or (value == 1.0 and name in FRACTIONS),
                f"{self.command}: {flag(name)}: expected a share between 0 and 1, found {value}",
            )
        check(
            self.warmup_fraction + (self.decay_fraction if self.schedule == "wsd" else 0.0) <= 1.0,
            f"{self.command}: --warmup-fraction {self.warmup_fraction} and --decay-fraction {self.decay_fraction}: "
            "expected a sum of at most 1; lower one",
        )
        for name in ("weight_decay", "grad_clip", "early_stopping_patience"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"{self.command}: {flag(name)}: expected 0 or more, found {value}")
        check_seed(f"{self.command}: --seed", self.seed)
        self._check_positive("temperature")
        self._check_settings("teacher", "teacher_weight", "temperature")
        check(
            self.teacher_weight is None or 0 < self.teacher_weight <= 1,
            f"{self.command}: --teacher-weight: expected a share above 0, at most 1, found {self.teacher_weight}",
        )

    def _check_settings(self, of: str, *names: str) -> None:
        """Raise ConfigError for settings of a flag that is not given."""
        for name in names:
            chosen = getattr(self, name) not in (None, False)
            check(
                bool(getattr(self, of)) or not chosen,
                f"{self.command}: {flag(name)} is a setting of {flag(of)}; give both",
            )

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            check(
                value is None or value > 0,
                f"{self.command}: {flag(name)}: expected a positive number, found {value}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Turn a token store into a checkpoint. Each field is a flag of `llamita train`."""

    data: Annotated[Path | tuple[str, ...], Option(resume="may change")]
    """A token store from `llamita prepare`; or several with the same tokenizer, "PATH" or
    "PATH:WEIGHT" each. In one epoch, documents of weight 2 are seen twice, of weight 0.5 half of
    them. All held-out documents are evaluated together, regardless of weight."""
    minutes: Annotated[float | None, Option("M")] = None
    """Stop after this many minutes, final evaluation included; the learning-rate schedule fits
    them. Default without --steps and --epochs: 10."""
    preset: Annotated[PresetName | None, Option(group="model")] = None
    """Shape of the model; --layers and the like override parts of it. Default: with --minutes,
    planned for this machine (see `llamita plan`), else 3M on CPUs and stories15M on GPUs."""
    layers: Annotated[int | None, Option(group="model")] = None
    """Number of transformer layers."""
    hidden: Annotated[int | None, Option(group="model")] = None
    """Width of the model."""
    heads: Annotated[int | None, Option(group="model")] = None
    """Query heads in a layer."""
    kv_heads: Annotated[int | None, Option(group="model")] = None
    """Key and value heads in a layer. Default: the preset's, or as many as --heads."""
    ffn: Annotated[int | None, Option(group="model")] = None
    """Width of the feed-forward layers. Default: 8/3 of --hidden, rounded up to a multiple of
    32."""
    tie_embeddings: Annotated[bool, Option(group="model")] = True
    """Train a separate classifier instead of sharing the embedding matrix."""
    rope_theta: Annotated[float, Option(group="model")] = 10000.0
    """Base of the rotary position embeddings."""
    token_noise: Annotated[float | None, Option("SHARE", group="optimization")] = None
    """Share of the input tokens that are replaced by others of the same row, at random, so that text
    that is read many times is not learned by heart. Default: by the number of times, 0 up to four."""
    generations: Annotated[int | None, Option(group="distillation")] = None
    """Models that are trained one after the other in the time of the run; each learns from the best one
    before it. Little text is learned better so. Default: with --minutes, 2 where each gets 3 epochs, 3
    where each gets 7; else 1."""
    from_: Annotated[Path | None, Option("RUN", group="going on", name="from", resume="may change")] = None
    """Go on with the model of this finished run, or of a checkpoint, on new documents: STORE needs the
    same tokenizer. Shape, step and optimizer are the run's; the peak learning rates are a quarter of
    its own. Default length: one epoch."""
    replay: Annotated[float | None, Option("SHARE", group="going on")] = None
    """Share of the training tokens that are old: documents of the stores that RUN was trained on.
    Default: 0.75."""
    replay_data: Annotated[tuple[str, ...], Option("STORE[:WEIGHT]", group="going on", resume="may change")] = ()
    """Token stores with old text, instead of those that RUN was trained on."""
    max_forgetting: Annotated[float | None, Option("PERCENT", group="going on")] = None
    """How many percent the held-out loss of the old text may rise. At the end the weights move
    towards those of RUN as far as that takes. Default: 0.5; with --replay 0 no limit."""
    compile: Annotated[Literal["auto", "on", "off"], Option(group="hardware", resume="may change")] = "auto"
    """torch.compile the network, half a minute at the start. auto: with --minutes, if a short
    measurement shows that it saves time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("layers", "hidden", "heads", "kv_heads", "ffn", "rope_theta")
        check(not (self.fsdp and self.compile == "on"), "train: --compile on and --fsdp exclude each other; drop one")
        self._check_replay()
        self._check_generations()
        check(
            self.token_noise is None or 0 <= self.token_noise < 1,
            f"train: --token-noise: expected a share from 0 to below 1, found {self.token_noise}",
        )
        parts = ("layers", "hidden", "heads")
        missing = [flag(name) for name in parts if getattr(self, name) is None]
        check(
            self.preset is not None or len(missing) in (0, len(parts)),
            f"train: a shape of your own also needs {', '.join(missing)} (or --preset as its basis)",
        )
        if self.from_ is None and self.hidden and self.heads:
            check(
                self.hidden % (2 * self.heads) == 0,
                f"train: --hidden {self.hidden} and --heads {self.heads}: expected heads of the same even size; "
                f"found {self.hidden / self.heads:g}",
            )

    def _check_generations(self) -> None:
        self._check_positive("generations")
        if (self.generations or 1) == 1:
            return
        for name in ("teacher", "from_", "fsdp"):
            check(
                not getattr(self, name),
                f"train: --generations and {flag(name)} exclude each other; drop one",
            )
        check(
            self.steps is None or self.steps >= (self.generations or 1),
            f"train: --generations {self.generations}: expected a step for each, found --steps {self.steps}",
        )

    def _check_replay(self) -> None:
        for name in ("replay", "replay_data", "max_forgetting"):
            check(
                self.from_ is not None or getattr(self, name) in (None, ()),
                f"train: {flag(name)} is a setting of --from; give both",
            )
        check(
            self.replay is None or 0 <= self.replay < 1,
            f"train: --replay: expected a share of 0 or more, below 1, found {self.replay}",
        )
        check(
            self.max_forgetting is None or self.max_forgetting >= 0,
            f"train: --max-forgetting: expected 0 percent or more, found {self.max_forgetting}",
        )
        check(
            self.from_ is None or self.preset is None,
            f"train: --preset: the shape is that of --from {self.from_}; leave it out",
        )


LayerName = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Teach a checkpoint with examples or texts. Each field is a flag of `llamita finetune`."""

    command: ClassVar[str] = "finetune"

    checkpoint: Annotated[Path, Option(resume="may change")]
    """Checkpoint to start from, trained here or imported; or a run directory, for its best
    checkpoint."""
    data: Annotated[Path, Option(resume="may change")]
    """Conversations (.jsonl, .json, .csv, .tsv, .parquet: messages, prompt and completion, question
    and answer, …), or plain text (.txt, .md, .pdf and other documents, or a token store of the
    checkpoint's tokenizer): a file or a folder. Files may be packed with gzip (.jsonl.gz)."""
    epochs: float | None = None
    """Stop when each target was seen this many times. Default without --minutes and --steps: 3."""
    context: Annotated[int | None, Option("TOKENS", group="data")] = None
    """Longest conversation; longer ones are cut at the end of a turn. Default: 1,024; 4,096 on
    CUDA."""
    dropout: float = 0.0
    """Dropout probability: of the inputs of the updates with --lora, else of the whole network."""
    optimizer: Annotated[Literal["adamw", "muon"], Option(group="optimization")] = "adamw"
    """adamw trains everything; muon orthogonalizes the steps of the layers' matrices."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW. Default: 1e-4 at width 576, more for narrower models; ten times
    that with --lora."""
    schedule: Literal["wsd", "linear", "cosine"] = "linear"
    warmup_fraction: float = 0.05
    weight_decay: float | None = 0.0
    """Weight decay of matrices; embeddings and norms have none."""
    log_interval: int = 5
    prompt: Annotated[str, Option("QUESTION", group="evaluation")] = ""
    """Question to ask at each evaluation. Default: the first held-out ones."""
    val: Annotated[Path | None, Option(group="data", resume="may change")] = None
    """Held-out data, instead of a share of DATA."""
    val_fraction: Annotated[float | None, Option("SHARE", group="data")] = None
    """Share of DATA to hold out, chosen by a hash of its content. Default: 0.1, at most 64
    conversations."""
    columns: Annotated[tuple[str, str] | None, Option("QUESTION ANSWER", group="data")] = None
    """Keys of questions and answers, if they are not of a known form."""
    system: Annotated[str | None, Option(group="data")] = None
    """System prompt for conversations that have none."""
    encoding: Annotated[str | None, Option("NAME", group="data")] = None
    """Encoding of all files of DATA and --val; utf-8 refuses others. Default: UTF-8, or what each
    file is recognized as."""
    half_width: Annotated[bool, Option(group="data")] = False
    """Turn full-width letters, digits and signs (Ａ１％) into half-width ones; the marks of Chinese
    sentences (，？！) stay. Default: no character is changed."""
    skip_bad_rows: Annotated[int, Option("N", group="data")] = 0
    """Leave out up to this many rows that cannot be used, and name each."""
    chat_template: Annotated[str | None, Option("NAME|FILE", group="data")] = None
    """chatml, llama2, llama3, zephyr, or a Jinja file. Default: the checkpoint's own; without one,
    ChatML, if the tokenizer has its tokens."""
    lora: bool = False
    """Train low-rank updates (LoRA) of the linear layers; the result is an adapter in PEFT's
    format."""
    rank: Annotated[int | None, Option(group="LoRA")] = None
    """Rank of the updates. Default: 8."""
    alpha: Annotated[float | None, Option(group="LoRA")] = None
    """Scale the updates by alpha / rank. Default: twice the rank."""
    rslora: Annotated[bool, Option(group="LoRA")] = False
    """Scale by alpha / √rank instead (arXiv 2312.03732)."""
    targets: Annotated[tuple[LayerName, ...] | None, Option(group="LoRA")] = None
    """Layers to update. Default: all seven."""
    load_in_4bit: Annotated[bool, Option(group="LoRA")] = False
    """Keep the frozen matrices of the layers in 4 bits (QLoRA: NF4, double quantization). Needs
    bitsandbytes: pip install 'llamita[qlora]'."""
    preference: Literal["dpo", "ipo"] | None = None
    """Preference tuning: DATA holds pairs of a better and a worse answer (prompt, chosen,
    rejected). dpo: arXiv 2305.18290; ipo: arXiv 2310.12036."""
    beta: Annotated[float | None, Option(group="preference")] = None
    """Strength of the penalty for moving away from the checkpoint. Default: 0.1."""
    label_smoothing: Annotated[float | None, Option("SHARE", group="preference")] = None
    """With dpo: assumed share of pairs whose answers are swapped. Default: 0."""
    general_text: Annotated[Path | None, Option(group="evaluation", resume="may change")] = None
    """General text (.txt, .md, a folder, or a token store) whose bits per byte show what the model
    forgets."""
    preview: Annotated[int, Option(resume="may change")] = 0
    """Show this many examples, with what is learned and what is masked, and exit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("rank", "alpha")
        check(self.val is None or self.val_fraction is None, "finetune: --val and --val-fraction exclude each other")
        check(
            self.val_fraction is None or 0 <= self.val_fraction <= 0.5,
            f"finetune: --val-fraction: expected 0 to 0.5, found {self.val_fraction}",
        )
        check(
            0 <= self.skip_bad_rows <= 1_000_000,
            f"finetune: --skip-bad-rows: expected 0 to 1,000,000, found {self.skip_bad_rows}",
        )
        check(self.preview >= 0, f"finetune: --preview: expected 0 or more, found {self.preview}")
        self._check_settings("lora", "rank", "alpha", "rslora", "targets", "load_in_4bit")
        check(
            not (self.load_in_4bit and self.fsdp),
            "finetune: --load-in-4bit and --fsdp exclude each other; drop one",
        )
        self._check_preference()
        check(
            not self.lora or self.qat is None,
            "finetune: --qat: --lora does not train the weights that are rounded; leave it out",
        )
        check(
            not self.lora or self.embedding_lr is None,
            "finetune: --embedding-lr: --lora does not train embeddings; leave it out",
        )
        check(
            not self.lora or self.optimizer == "adamw",
            "finetune: --optimizer: expected adamw with --lora, found muon",
        )

    def _check_preference(self) -> None:
        self._check_positive("beta")
        self._check_settings("preference", "beta", "label_smoothing")
        smoothing = self.label_smoothing
        check(
            smoothing is None or (0 <= smoothing < 0.5 and self.preference == "dpo"),
            f"finetune: --label-smoothing: expected 0 to below 0.5, with --preference dpo, found {smoothing} with "
            f"{self.preference}",
        )
        check(
            self.preference is None or self.teacher is None,
            "finetune: --preference and --teacher exclude each other; give one of them",
        )


ModelKind = Literal["pairs", "conversation", "refusal"]
RuleKind = Literal["faq", "heading", "definition", "title_to_text", "text_to_title", "fill_in"]
SynthesizeKind = Literal[ModelKind, RuleKind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Make conversations for fine-tuning of documents: by the model behind an endpoint, or by
    rules."""

    sources: tuple[str, ...]
    """Files or folders, as for `llamita prepare`."""
    out: Path
    """File to write (.jsonl), which `llamita finetune` reads. The answers of the model are kept
    beside it, in PATH.answers: the same command goes on after Ctrl-C, and asks nothing twice."""
    endpoint: Annotated[str | None, Option("URL", group="model")] = None
    """OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."""
    model: Annotated[str | None, Option("NAME", group="model", short="m")] = None
    """Name of the model there."""
    concurrency: Annotated[int, Option(group="model")] = 4
    """Requests at once."""
    timeout: Annotated[float, Option("SECONDS", group="model")] = 120.0
    """Longest time for an answer."""
    retries: Annotated[int, Option(group="model")] = 6
    """How often a request is sent again that failed, with growing waits."""
    body: Annotated[str, Option("JSON", group="model")] = "{}"
    """Fields to set in each request, such as '{"temperature": 0.3, "max_tokens": 2048}'; null
    removes one."""
    price: Annotated[tuple[float, float] | None, Option("X", group="model")] = None
    """Prices of a million tokens read and of a million written, to print the cost."""
    dry_run: Annotated[bool, Option(group="model")] = False
    """Print what would be asked and about how many tokens it takes, and exit."""
    rules: Annotated[bool, Option(group="questions")] = False
    """Use no model: make tasks of headings, definitions, lists of questions, titles and gaps."""
    kinds: Annotated[tuple[SynthesizeKind, ...], Option("KIND", group="questions")] = ()
    """Only these: pairs, conversation or refusal of a model; faq, heading, definition,
    title_to_text, text_to_title or fill_in of rules. Default: all."""
    questions: Annotated[int, Option(group="questions")] = 3
    """Questions of a kind for each passage."""
    turns: Annotated[int, Option(group="questions")] = 3
    """Questions in a conversation."""
    min_support: Annotated[float, Option("SHARE", group="questions")] = 0.6
    """Share of an answer's words, those of its question left out, that the passage must have."""
    passage_bytes: Annotated[int, Option("BYTES", group="questions")] = 2000
    """Longest passage, in UTF-8. By rules: longest answer."""
    max_passages: Annotated[int | None, Option(group="questions")] = None
    """Ask about at most as many passages, chosen by their hashes. Default: all."""
    prompts: Annotated[Path | None, Option("FOLDER", group="questions")] = None
    """Folder with prompts of your own. One that does not exist is made, with the built-in prompts to
    edit, and nothing is asked."""
    language: Annotated[str, Option("NAME", group="questions")] = "auto"
    """Prompts to use: en, zh, or another folder of --prompts; auto: by the text."""
    held_out: Annotated[tuple[Path, ...], Option("PATH", group="held out", repeated=True)] = ()
    """What to keep apart: a token store (its validation documents), texts, or a file of examples
    (their questions). May be given several times."""
    val_fraction: Annotated[float | None, Option("SHARE", group="held out")] = None
    """Share of the documents to leave out: those that `llamita prepare` holds out with the same
    share and seed. Default: 0.05, with --held-out 0."""
    seed: Annotated[int, Option(group="held out")] = 0
    """Random seed of `llamita prepare`."""
    val_out: Annotated[Path | None, Option(group="held out")] = None
    """File to write with the rows of the documents that are left out, for `llamita finetune --val`."""
    separator: Annotated[str, Option(group="documents")] = "<|endoftext|>"
    """What ends a document in text files."""
    split_on: Annotated[Literal["separator", "lines", "blank-lines", "file"], Option("RULE", group="documents")] = (
        "separator"
    )
    """Where documents end: separator, lines, blank-lines or file."""
    text_key: Annotated[str, Option("NAME", group="documents")] = "text"
    """Key (.jsonl, .json) or column (.csv, .tsv, .parquet) that holds the text."""
    encoding: Annotated[str | None, Option("NAME", group="documents")] = None
    """Encoding of all files. Default: UTF-8, or what each file is recognized as."""
    skip_unknown: Annotated[bool, Option(group="documents")] = False
    """Skip files of other types in folders, instead of refusing the first."""

    def __post_init__(self) -> None:
        where = "synthesize: --"
        check(len(self.sources) > 0, "synthesize: no DATA given: expected files or folders")
        for name, low, high in (
            ("concurrency", 1, 256), ("retries", 0, 100), ("questions", 1, 100), ("turns", 2, 20),
            ("passage_bytes", 100, 1_000_000), ("max_passages", 1, 1_000_000_000),
        ):  # fmt: skip
            value = getattr(self, name)
            spelled = f"{where}{name.replace('_', '-')}"
            check_at_most(spelled, value, high)
            check(value is None or value >= low, f"{spelled}: expected {low:,} to {high:,}, found {str(value)[:60]}")
        check(0 < self.timeout <= 86_400, f"{where}timeout: expected more than 0, at most 86,400, found {self.timeout}")
        check(0 <= self.min_support <= 1, f"{where}min-support: expected 0 to 1, found {self.min_support}")
        check(
            self.val_fraction is None or 0 <= self.val_fraction <= 0.5,
            f"{where}val-fraction: expected 0 to 0.5, found {self.val_fraction}",
        )
        check(
            self.price is None or all(0 <= each <= 1e6 for each in self.price),
            f"{where}price: expected two numbers from 0 to 1,000,000, found {self.price}",
        )
        check_seed(f"{where}seed", self.seed)
        check(self.separator.strip() != "", f"{where}separator: expected some text, found none")
        check(self.text_key != "", f"{where}text-key: expected a name, found an empty one")
        check(
            0 < len(self.language) <= 40 and self.language.replace("-", "").replace("_", "").isalnum(),
            f"{where}language: expected a name such as en, found {self.language[:60]!r}",
        )
        self.body_fields()

    def body_fields(self) -> dict[str, Any]:
        """--body. Raises ConfigError."""
        try:
            fields = json.loads(self.body)
        except (ValueError, RecursionError):
            fields = None
        check(isinstance(fields, dict), f"synthesize: --body: expected a JSON object, found {self.body[:60]!r}")
        fixed = [name for name in ("model", "messages", "stream", "n") if name in fields]
        check(not fixed, f"synthesize: --body: {fixed and fixed[0]} cannot be set")
        return fields

    def check_complete(self) -> None:
        """Raise ConfigError unless a model or the rules are chosen, and kinds of one of them."""
        check(
            self.rules or (self.endpoint is not None and self.model is not None),
            "synthesize: expected --endpoint URL and --model NAME, or --rules",
        )
        check(
            not self.rules or (self.endpoint is None and self.model is None),
            "synthesize: --rules use no model; remove --endpoint and --model",
        )
        if self.rules:
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            for name in ("dry_run", "max_passages", "min_support", "turns", "price", "body"):
                is_given = getattr(self, name) != defaults[name]
                check(not is_given, f"synthesize: {flag(name)}: --rules send no requests; remove it")
        for path in (self.out, self.val_out):
            is_named = path is None or path.suffix == ".jsonl"
            check(is_named, f"synthesize: expected a name that ends with .jsonl, found {path}")
        check(self.out != self.val_out, "synthesize: --out and --val-out: expected two names, found the same")
        known = typing.get_args(RuleKind if self.rules else ModelKind)
        wrong = [kind for kind in self.kinds if kind not in known]
        by = "by rules" if self.rules else "by a model"
        check(not wrong, f"synthesize: --kinds: expected {', '.join(known)} {by}, found {wrong and wrong[0]}")


def flag(field: str) -> str:
    """How a field is spelled on the command line."""
    return "--" + field.rstrip("_").replace("_", "-")
