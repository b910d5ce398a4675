"""What a person can choose, as frozen dataclasses with units and validation; the flags are made from them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from llamita.errors import ConfigError


def check(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a Llama. The field names are Hugging Face's (LlamaConfig), the values are not in doubt:
    whatever the source left out has been filled in, and everything has been checked."""

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

    @property
    def num_parameters(self) -> int:
        """Number of weights; tied embeddings are counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A preset: a ModelConfig without what the tokenizer and the data decide."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int


# The seed's shapes (llama2.c, doc/stories260K.md and README), and small ones for CPUs, named by their weights with a
# vocabulary of 4,096: deep and thin, grouped queries, tied embeddings (MobileLLM, arXiv 2402.14905).
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


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Turn text into a token store: documents, a tokenizer, token shards for training and validation."""

    sources: tuple[str, ...]
    """Files or folders of .txt, .md, .jsonl, .csv or .parquet; or the one word tales (the stories that llamita makes up
    itself) or tinystories (downloaded); a folder of such a name is ./tales."""
    out: Path
    """The token store to make: a folder."""
    vocab_size: int | None = None
    """Learn so many tokens, special ones and bytes included (default: 512 to 8,192 by the amount of text)."""
    tokenizer: Path | None = None
    """Use this tokenizer instead: a tokenizer.json, a SentencePiece .model, llama2.c's tokenizer.bin, or a folder."""
    val_fraction: float | None = None
    """Share of the documents that is held out, chosen by a hash of their text (default: 0.05)."""
    val: tuple[str, ...] = ()
    """Files or folders to hold out, instead of a share; what is in them is dropped from the training documents."""
    separator: str = "<|endoftext|>"
    """What ends a document in a .txt or .md file; a file without it is one document."""
    split_on: Literal["separator", "blank-lines", "file"] = "separator"
    """Where documents of .txt and .md files end."""
    text_key: str = "text"
    """The key (.jsonl) or column (.csv, .parquet) that holds the text."""
    num_workers: int | None = None
    """Threads that encode; processes where only the tokenizers library can (default: one a core, fewer for little
    text)."""
    seed: int = 0
    """Decides which documents are held out, and which tales are made up."""
    num_tales: int = 20_000
    """How many tales (only for the source tales)."""
    datatrove: bool = False
    """SOURCE (and --val) are folders that datatrove's DocumentTokenizer wrote with this --tokenizer and its eos_token:
    the store links to their files. Without --val the last documents are held out."""
    overwrite: bool = False
    """Replace the token store that is at --out."""

    def __post_init__(self) -> None:
        check(len(self.sources) > 0, "prepare: no SOURCE given: expected files, folders, tales or tinystories")
        check(
            self.vocab_size is None or self.tokenizer is None,
            "prepare: --vocab-size and --tokenizer exclude each other: a given tokenizer has its size",
        )
        check(
            self.vocab_size is None or 259 <= self.vocab_size <= 1 << 20,
            f"prepare: --vocab-size: expected 259 (special tokens and bytes) to 1,048,576, found {self.vocab_size}",
        )
        check(
            not self.datatrove or self.tokenizer is not None,
            "prepare: --datatrove needs the --tokenizer that the tokens were made with (a tokenizer.json)",
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
        check(0 <= self.seed < 1 << 63, f"prepare: --seed: expected 0 to 2^63 - 1, found {self.seed}")
        check(
            1 <= self.num_tales <= 10_000_000,
            f"prepare: --num-tales: expected 1 to 10,000,000, found {self.num_tales}",
        )
        check(
            len(self.sources) == 1 or not {"tales", "tinystories"}.intersection(self.sources),
            "prepare: tales and tinystories stand alone; a folder of such a name is written ./tales",
        )


TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run of the training loop can be told, whatever it learns from; `command` names it in messages."""

    command: ClassVar[str] = "train"

    out: Path
    """Run directory: checkpoints, metrics.jsonl, report."""
    minutes: float | None = None
    """Stop after this long, final evaluation included; the schedule is laid for it."""
    steps: int | None = None
    """Stop after so many optimizer steps."""
    epochs: float | None = None
    """Stop when each training token was seen so many times."""
    resume: bool = False
    """Go on with the run in --out from its latest checkpoint; all other flags must be as they were."""
    context: int | None = None
    """Tokens that the model sees at once."""
    dropout: float = 0.0
    micro_batch_size: int | None = None
    """Rows of --context tokens in one pass of one process (default: planned with --minutes, else as many as make 2,048
    tokens; 65,536 on CUDA)."""
    grad_accum_steps: int = 1
    """Passes whose gradients are summed for one step."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """muon orthogonalizes the steps of the layers' matrices; adamw trains everything else, or everything."""
    learning_rate: float | None = None
    """Peak learning rate of the layers' matrices (default: 0.02 with muon, with adamw by the model's width; less for
    steps below 2,048 tokens)."""
    embedding_lr: float | None = None
    """Peak learning rate, AdamW's, of embeddings, classifier and norms (default: by the model's width)."""
    schedule: Literal["wsd", "linear", "cosine"] = "wsd"
    """After the warm-up: wsd stays at the peak, then falls linearly; linear and cosine fall from the start."""
    warmup_fraction: float = 0.02
    """Share of the run in which the learning rate rises."""
    decay_fraction: float = 0.65
    """Share of the run in which wsd lets the learning rate fall."""
    final_lr_fraction: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    weight_decay: float | None = None
    """Decay of matrices; embeddings and norms have none (default: 0.1, more where a text is read many times)."""
    beta1: float = 0.9
    beta2: float | None = None
    """Default: halves the memory of squared gradients every 500,000 tokens, at most 0.999 (arXiv 2507.07101)."""
    grad_clip: float = 1.0
    """Largest norm of a step's gradient; 0 switches clipping off."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of matrix products: auto is bfloat16 on CUDA where it has it; CPUs compute in float32 only."""
    eval_interval: int | None = None
    """Steps between evaluations on all that is held out (default: 5 % of the time for them, at most 10)."""
    teacher: Path | None = None
    """A larger checkpoint with the same tokenizer: learn its distribution too, not the targets alone."""
    teacher_weight: float | None = None
    """The teacher's share of the loss (default: 0.5)."""
    temperature: float | None = None
    """The teacher's and the learner's distributions are compared at this temperature (default: 1)."""
    early_stopping_patience: int = 3
    """Stop when so many evaluations in a row were worse than the best one: the model memorizes; 0: never."""
    save_minutes: float = 2.0
    """Minutes between checkpoints; each evaluation saves one too."""
    log_interval: int = 10
    """Steps that a line of metrics.jsonl is the mean of."""
    prompt: str = ""
    """Beginning of the sample text told at each evaluation (default: an empty page)."""
    track: tuple[TrackerName, ...] = ()
    """Send the numbers of metrics.jsonl to these too: tensorboard (RUN/tensorboard), wandb, trackio (project
    llamita)."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads (default: one a core)."""
    fsdp: bool = False
    """Under torchrun: share out weights, gradients and optimizer among the processes (FSDP2), where one GPU is too
    small for all of them; otherwise each process has everything (DDP)."""
    activation_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass and compute the rest again: less memory, a third slower."""

    def __post_init__(self) -> None:
        limits = [name for name in ("minutes", "steps", "epochs") if getattr(self, name) is not None]
        given = " and ".join(flag(name) for name in limits)
        check(len(limits) <= 1, f"{self.command}: {given} exclude each other; give one of them")
        self._check_positive(
            "minutes", "steps", "epochs", "context", "micro_batch_size", "grad_accum_steps",
            "learning_rate", "embedding_lr", "eval_interval", "save_minutes", "log_interval", "threads",
        )  # fmt: skip
        for name in ("dropout", "warmup_fraction", "decay_fraction", "final_lr_fraction", "beta1", "beta2"):
            value = getattr(self, name)
            check(
                value is None
                or 0.0 <= value < 1.0
                or (value == 1.0 and name in ("warmup_fraction", "decay_fraction", "final_lr_fraction")),
                f"{self.command}: {flag(name)}: expected a share between 0 and 1, found {value}",
            )
        check(
            self.warmup_fraction + (self.decay_fraction if self.schedule == "wsd" else 0.0) <= 1.0,
            f"{self.command}: --warmup-fraction {self.warmup_fraction} and --decay-fraction {self.decay_fraction} "
            "together exceed the whole run; "
            "lower one",
        )
        for name in ("weight_decay", "grad_clip", "early_stopping_patience", "seed"):
            value = getattr(self, name)
            fits = value is None or (math.isfinite(value) and value >= 0)
            check(fits, f"{self.command}: {flag(name)}: expected 0 or more, found {value}")
        self._check_positive("temperature")
        self._check_settings("teacher", "teacher_weight", "temperature")
        check(
            self.teacher_weight is None or 0 < self.teacher_weight <= 1,
            f"{self.command}: --teacher-weight: expected a share above 0, at most 1, found {self.teacher_weight}",
        )

    def _check_settings(self, of: str, *names: str) -> None:
        """Refuse settings of a flag that was not given."""
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
                value is None or (math.isfinite(value) and value > 0),
                f"{self.command}: {flag(name)}: expected a positive number, found {value}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Turn a token store into a checkpoint. Each field is a flag of `llamita train`."""

    data: Path | tuple[str, ...]
    """A token store, as `llamita prepare` writes it; or several of one tokenizer, "PATH" or "PATH:WEIGHT" each: an
    epoch sees the documents of weight 2 twice, of weight 0.5 another half of them each time. Judged by what the stores
    hold out together, weights aside."""
    minutes: float | None = None
    """Stop after this long, final evaluation included; the schedule is laid for it. Default, without --steps and
    --epochs: 10."""
    preset: PresetName | None = None
    """Shape of the model by name; --layers and the like override its parts. Default: with --minutes planned for them on
    this machine (see `llamita plan`), else 3M on CPUs and stories15M on CUDA."""
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn: int | None = None
    """Width of the feed-forward layers (default: 8/3 of --hidden, rounded up to a multiple of 32)."""
    untied: bool = False
    """A classifier of its own instead of the embeddings' transpose."""
    rope_theta: float = 10000.0
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the network (half a minute at the start). auto: with --minutes, if the time it saves, measured as
    the run begins and remembered, is worth it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("layers", "hidden", "heads", "kv_heads", "ffn", "rope_theta")
        check(not (self.fsdp and self.compile == "on"), "train: --compile on and --fsdp exclude each other; drop one")
        parts = ("layers", "hidden", "heads")
        missing = [flag(name) for name in parts if getattr(self, name) is None]
        check(
            self.preset is not None or len(missing) in (0, len(parts)),
            f"train: a shape of your own also needs {', '.join(missing)} (or --preset as its basis)",
        )


LayerName = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Teach a checkpoint with examples or texts. Each field is a flag of `llamita finetune`."""

    command: ClassVar[str] = "finetune"

    checkpoint: Path
    """The checkpoint to begin with, ours or imported, or a run directory, of which the best checkpoint is taken."""
    data: Path
    """Conversations (.jsonl, .json, .csv, .parquet: messages, prompt and completion, question and answer, …), or plain
    texts (.txt, .md, or a token store of the checkpoint's tokenizer): a file or a folder."""
    epochs: float | None = None
    """Stop when each target was seen so many times. Default, without --minutes and --steps: 3."""
    context: int | None = None
    """Longest conversation in tokens; what is longer is cut at a turn's end (default: 1,024; 4,096 on CUDA)."""
    dropout: float = 0.0
    """With --lora of the updates' inputs, otherwise of the whole network."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw trains everything; muon orthogonalizes the steps of the layers' matrices."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW (default: 1e-4 at width 576, more for narrower ones; ten times that with --lora)."""
    schedule: Literal["wsd", "linear", "cosine"] = "linear"
    """After the warm-up: linear and cosine fall from the start; wsd stays at the peak, then falls linearly."""
    warmup_fraction: float = 0.05
    weight_decay: float | None = 0.0
    """Decay of matrices (embeddings and norms have none)."""
    log_interval: int = 5
    """Steps that a line of metrics.jsonl is the mean of."""
    prompt: str = ""
    """A question to ask at each evaluation (default: the first held-out ones)."""
    val: Path | None = None
    """Held-out data, instead of a share of DATA."""
    val_fraction: float | None = None
    """Share of DATA that is held out, chosen by a hash of its content (default: 0.1, at most 64 conversations)."""
    columns: tuple[str, str] | None = None
    """The keys of questions and answers, where they are not of a known form."""
    system: str | None = None
    """A system prompt for conversations that have none."""
    chat_template: str | None = None
    """chatml, llama2, llama3, zephyr, or a file of Jinja (default: the checkpoint's own; ChatML where it has none)."""
    lora: bool = False
    """Train low-rank updates of the linear layers; the result is an adapter, PEFT's files."""
    rank: int | None = None
    """Of the updates (default: 8)."""
    alpha: float | None = None
    """The updates are multiplied by alpha / rank (default: twice the rank)."""
    rslora: bool = False
    """Multiply by alpha / √rank instead (arXiv 2312.03732)."""
    targets: tuple[LayerName, ...] | None = None
    """The layers that get updates (default: all seven)."""
    preference: Literal["dpo", "ipo"] | None = None
    """DATA are pairs of a better and a worse answer (prompt, chosen, rejected): learn to prefer the better ones, by DPO
    (arXiv 2305.18290) or IPO (arXiv 2310.12036)."""
    beta: float | None = None
    """How much it costs to leave what the checkpoint says (default: 0.1)."""
    label_smoothing: float | None = None
    """With dpo: the share of pairs whose answers may be the wrong way round (default: 0)."""
    general_text: Path | None = None
    """Texts (.txt, .md, a folder, or a token store) of another kind: their bits per byte tell what is forgotten."""
    preview: int = 0
    """Show so many examples, what is learned and what is masked, and end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("rank", "alpha")
        check(self.val is None or self.val_fraction is None, "finetune: --val and --val-fraction exclude each other")
        check(
            self.val_fraction is None or 0 <= self.val_fraction <= 0.5,
            f"finetune: --val-fraction: expected 0 to 0.5, found {self.val_fraction}",
        )
        check(
            not self.fsdp,
            "finetune: --fsdp: expected every process to have the whole network, which answers alone; leave it out",
        )
        check(self.preview >= 0, f"finetune: --preview: expected 0 or more, found {self.preview}")
        self._check_settings("lora", "rank", "alpha", "rslora", "targets")
        self._check_preference()
        check(
            not self.lora or self.embedding_lr is None,
            "finetune: --embedding-lr: with --lora embeddings do not learn; leave it out",
        )
        check(
            not self.lora or self.optimizer == "adamw",
            "finetune: --optimizer muon: expected adamw with --lora, whose updates are no matrices of the network's",
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


def flag(field: str) -> str:
    """How a field is spelled on the command line."""
    return "--" + field.replace("_", "-")
