"""Ollama's API: its requests, its answers, and the objects that describe models."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import secrets
import time
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamita.engine import Grammar, Model, encode_prompt
from llamita.errors import EngineError
from llamita.sampling import MAX_TOKENS, MAX_TOP_K, SamplingParams
from llamita.server.answers import Answer, Piece, json_bytes
from llamita.server.embeddings import embedding_inputs, numbers
from llamita.server.errors import ApiError
from llamita.server.host import Host
from llamita.server.parameters import (
    NamedGrammar,
    TextParams,
    chat_logprobs,
    flag_field,
    number_field,
    object_field,
    prompts_of,
    sampling_fields,
    stop_strings,
    text_field,
    whole_field,
)
from llamita.server.sending import json_response
from llamita.server.serving import Serving
from llamita.server.worker import Group

API_VERSION: Final = "0.12.11"  # of Ollama, whose API this is; clients refuse servers that are too old
LATEST: Final = ":latest"
_NEVER: Final = "9999-12-31T23:59:59Z"
_NANOSECONDS: Final = 1_000_000_000
# Samplers that this server does not have, and the values that switch them off.
_OTHER_SAMPLERS: Final = {"mirostat": 0, "tfs_z": 1, "typical_p": 1}
_REFUSED_ROUTES: Final = ("pull", "push", "create", "copy", "delete", "blobs/{digest:path}")


class OllamaRoutes:
    """The routes under /api."""

    def __init__(self, host: Host) -> None:
        self._host = host
        get, post, every = ["GET"], ["POST"], ["GET", "POST", "PUT", "DELETE"]
        self.routes = [
            Route("/api/version", self._version, methods=get),
            Route("/api/tags", self._tags, methods=get),
            Route("/api/ps", self._running, methods=get),
            Route("/api/show", self._show, methods=post),
            Route("/api/chat", self._chat, methods=post),
            Route("/api/generate", self._generate, methods=post),
            Route("/api/embed", self._embed, methods=post),
            Route("/api/embeddings", self._embed_one, methods=post),
            *(Route(f"/api/{name}", self._refuse, methods=every) for name in _REFUSED_ROUTES),
        ]

    # ---- texts

    async def _chat(self, request: Request) -> Response:
        start = time.perf_counter()
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        if body.get("messages") in (None, []):
            return _loaded(body, serving, {"message": {"role": "assistant", "content": ""}})
        params = ollama_params(body, serving.sampling, serving.worker.context_tokens, "messages")
        ids, end_ids = await serving.encode_chat(body)
        grammar = await serving.start_grammar(request, format_of(body), end_ids)
        group = serving.submit(params, [ids], grammar)
        named = _name(body, serving), serving.model
        return self._host.respond(OllamaAnswer(*named, group, params, end_ids, start, is_chat=True))

    async def _generate(self, request: Request) -> Response:
        start = time.perf_counter()
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        if body.get("prompt") in (None, ""):
            return _loaded(body, serving, {"response": ""})
        params = ollama_params(body, serving.sampling, serving.worker.context_tokens, "prompt")
        is_raw = flag_field(body, "raw")
        before = _context(body, serving.model.info.vocab_size)
        ids, end_ids = await self._prompt(body, serving, is_raw)
        if before and ids[0] == serving.model.info.bos_id:
            ids = ids[1:]
        grammar = await serving.start_grammar(request, format_of(body), end_ids)
        group = serving.submit(params, [before + ids], grammar)
        named = _name(body, serving), serving.model
        answer = OllamaAnswer(*named, group, params, end_ids, start, is_chat=False, with_context=not is_raw)
        return self._host.respond(answer)

    async def _prompt(self, body: dict[str, Any], serving: Serving, is_raw: bool) -> tuple[list[int], frozenset[int]]:
        """The ids of a prompt, and the ids that end its answer besides the file's. Raises
        ApiError."""
        model, prompt = serving.model, text_field(body, "prompt")
        system = "" if body.get("system") is None else text_field(body, "system")
        if not is_raw and model.chat_template is not None:
            messages = [{"role": "system", "content": system}] if system else []
            return await serving.encode_chat({"messages": [*messages, {"role": "user", "content": prompt}]})
        if system:
            why = "raw is true" if is_raw else "the model has no chat template"
            raise ApiError(400, f"system: expected none, because {why}: put it into the prompt", param="system")
        raw = prompt.encode("utf-8", "replace")
        try:
            if not is_raw:
                return await serving.encode(lambda: encode_prompt(model, raw), len(raw)), frozenset()
            ids = await serving.encode(lambda: model.encode(raw, special=True), len(raw))
        except EngineError as error:
            raise ApiError(400, str(error), param="prompt") from None
        starts = model.info.add_bos and ids[:1] != [model.info.bos_id]
        return [model.info.bos_id, *ids] if starts else ids, frozenset()

    async def _embed(self, request: Request) -> Response:
        start = time.perf_counter()
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        truncate = flag_field(body, "truncate", True)
        head = {"model": _name(body, serving)}
        if body.get("input") in ("", []):
            return json_response({**head, "embeddings": []})
        limits = serving.model, serving.worker.context_tokens
        inputs = await serving.encode(lambda: embedding_inputs(body, *limits, truncate=truncate))
        num_tokens, submitted = sum(map(len, inputs)), time.perf_counter()

        async def work() -> bytes:
            vectors = await serving.embedder.embed(inputs, numbers)
            end = {
                **head,
                "total_duration": _nanoseconds(time.perf_counter() - start),
                "load_duration": _nanoseconds(submitted - start),
                "prompt_eval_count": num_tokens,
            }
            return b'{"embeddings":[' + b",".join(vectors) + b"]," + json_bytes(end)[1:]

        return self._host.compute(work, num_tokens)

    async def _embed_one(self, request: Request) -> Response:
        """The route before /api/embed."""
        body = await self._host.read_body(request)
        serving = self._host.find(body)
        if body.get("prompt") in (None, ""):
            return json_response({"embedding": []})
        text_field(body, "prompt")
        limits = serving.model, serving.worker.context_tokens, "prompt"
        inputs = await serving.encode(lambda: embedding_inputs(body, *limits, truncate=True))

        async def work() -> bytes:
            [vector] = await serving.embedder.embed(inputs, numbers)
            return b'{"embedding":' + vector + b"}"

        return self._host.compute(work, len(inputs[0]))

    # ---- models

    async def _version(self, request: Request) -> Response:
        return json_response({"version": API_VERSION})

    async def _tags(self, request: Request) -> Response:
        listed = [{**_model_object(each), "modified_at": _time(each.created)} for each in self._host.models.values()]
        return json_response({"models": listed})

    async def _running(self, request: Request) -> Response:
        more = {"expires_at": _NEVER, "size_vram": 0}
        listed = [
            {**_model_object(each), **more, "context_length": each.worker.context_tokens}
            for each in self._host.models.values()
        ]
        return json_response({"models": listed})

    async def _show(self, request: Request) -> Response:
        body = await self._host.read_body(request)
        serving = self._host.find({"model": body.get("model") or body.get("name")})
        model, sampling = serving.model, dataclasses.asdict(serving.sampling)
        settings = [f"{_OLLAMA_NAMES.get(name, name)} {value}" for name, value in sampling.items() if value is not None]
        return json_response({
            "parameters": "\n".join(settings),
            "template": model.chat_template or "",
            "system": model.system_prompt or "",
            "details": _details(model),
            "model_info": _model_info(serving),
            "capabilities": ["completion"],
            "modified_at": _time(serving.created),
        })  # fmt: skip

    async def _refuse(self, request: Request) -> Response:
        raise ApiError(
            403,
            f"{request.url.path[:100]}: not supported: the models are those that the server was started with: "
            "llamita serve NAME=MODEL",
        )


class OllamaAnswer(Answer):
    """The answer to /api/chat or /api/generate. with_context: its last object has the ids of the
    prompt and the answer."""

    media_type = "application/x-ndjson"

    def __init__(
        self,
        model_name: str,
        model: Model,
        group: Group,
        params: TextParams,
        end_ids: frozenset[int],
        start: float,
        *,
        is_chat: bool,
        with_context: bool = False,
    ) -> None:
        """start: when the request arrived, by time.perf_counter."""
        super().__init__(model, group, params, end_ids)
        self._name, self._arrival, self._is_chat, self._with_context = model_name, start, is_chat, with_context
        self._end_id = min(end_ids, default=model.info.eos_id)

    async def whole(self) -> dict[str, Any]:
        """The answer as one object. Raises ApiError."""
        [text], [logprobs] = await self._collect()
        return {**self._said(text), **self._logprobs(logprobs), **self._end()}

    def first_chunks(self) -> bytes:
        """Nothing."""
        return b""

    def chunk(self, piece: Piece) -> bytes:
        """A piece as lines of the stream; the end has a line of its own."""
        lines = b""
        if piece.text or piece.logprobs:
            lines = _line({**self._said(piece.text), **self._logprobs(piece.logprobs), "done": False})
        return lines if piece.finish is None else lines + _line({**self._said(""), **self._end()})

    def last_chunks(self) -> bytes:
        """Nothing."""
        return b""

    def error_chunks(self, error: ApiError) -> bytes:
        """The error as a line."""
        return _line(error.body("/api/"))

    def _said(self, text: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"response": text}
        return {"model": self._name, "created_at": _time(time.time()), **said}

    def _logprobs(self, events: Any) -> dict[str, Any]:
        return {} if self.params.top_logprobs is None else {"logprobs": self._tokens(events)}

    def _end(self) -> dict[str, Any]:
        """The fields of the last object. Durations are in nanoseconds."""
        [choice] = self.choices
        now = time.perf_counter()
        submitted, first = self._start - self._arrival, self.first_token_seconds or now - self._start
        end: dict[str, Any] = {"done": True, "done_reason": choice.finish}
        if self._with_context:
            ends = choice.is_ended_by_token and self._model.chat_template is not None and self._end_id >= 0
            end["context"] = [*map(int, choice.running.request.ids), *choice.ids, *([self._end_id] if ends else [])]
        return {
            **end,
            "total_duration": _nanoseconds(now - self._arrival),
            "load_duration": _nanoseconds(submitted),
            "prompt_eval_count": self.num_prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first),
            "eval_count": self.num_new_tokens,
            "eval_duration": _nanoseconds(now - self._start - first),
        }


# ---- requests

_OLLAMA_NAMES: Final = {"repetition_penalty": "repeat_penalty", "repetition_window": "repeat_last_n"}


def ollama_params(body: dict[str, Any], defaults: SamplingParams, context_tokens: int, prompt_field: str) -> TextParams:
    """The parameters of a request: its options, or the defaults. Raises ApiError."""
    for name in ("tools", "images", "think", "suffix", "template"):
        if body.get(name):
            raise ApiError(400, f"{name}: not supported by this server", param=name)
    messages = body.get("messages")
    if isinstance(messages, list) and any(isinstance(each, dict) and each.get("images") for each in messages):
        raise ApiError(400, "messages: expected no images: this server reads text only", param="messages")
    options = object_field(body, "options")
    for name, off in _OTHER_SAMPLERS.items():
        if options.get(name) not in (None, off):
            raise ApiError(400, f"{name}: not supported by this server: expected {off} (off)", param=name)
    window = whole_field(options, "repeat_last_n", -1, MAX_TOKENS, defaults.repetition_window)
    sampling = dataclasses.replace(
        sampling_fields(options, defaults),
        top_k=max(whole_field(options, "top_k", -1, MAX_TOP_K, defaults.top_k), 0),
        min_p=number_field(options, "min_p", 0, 1, defaults.min_p),
        repetition_penalty=number_field(options, "repeat_penalty", 0.01, 100, defaults.repetition_penalty),
        repetition_window=context_tokens if window < 0 else window,
    )
    seed = whole_field(options, "seed", -(2**63), 2**63 - 1, -1)
    most = whole_field(options, "num_predict", -2, MAX_TOKENS, -1)
    return TextParams(
        sampling,
        seed=secrets.randbits(62) if seed == -1 else seed % 2**63,
        max_new_tokens=most if most > 0 else None,
        stops=stop_strings(options.get("stop")),
        presence_penalty=number_field(options, "presence_penalty", -2, 2, 0.0),
        frequency_penalty=number_field(options, "frequency_penalty", -2, 2, 0.0),
        top_logprobs=chat_logprobs(body),
        stream=flag_field(body, "stream", True),
        prompt_field=prompt_field,
    )


def format_of(body: dict[str, Any]) -> NamedGrammar | None:
    """What limits the text of a request: "json" or a schema; None: nothing. Raises ApiError."""
    form = body.get("format")
    if form is None or form == "":
        return None
    if form == "json":
        return "format", Grammar.json_object
    if not isinstance(form, dict):
        raise ApiError(400, 'format: expected "json" or a JSON Schema', param="format")
    return "format", lambda: Grammar.json_schema(form, "format")


def _context(body: dict[str, Any], vocab_size: int) -> list[int]:
    """The ids of earlier texts. Raises ApiError."""
    if body.get("context") in (None, []):
        return []
    found = prompts_of(body, vocab_size, "context")
    if len(found) != 1 or isinstance(found[0], str):
        raise ApiError(400, "context: expected a list of token ids", param="context")
    return found[0]


# ---- objects


def _name(body: dict[str, Any], serving: Serving) -> str:
    """The model's name as the client writes it."""
    return body.get("model") or serving.name


def _loaded(body: dict[str, Any], serving: Serving, said: dict[str, Any]) -> Response:
    """The answer to a request without text, by which clients load a model."""
    head = {"model": _name(body, serving), "created_at": _time(time.time())}
    return json_response({**head, **said, "done": True, "done_reason": "load"})


def _model_object(serving: Serving) -> dict[str, Any]:
    name = serving.name if ":" in serving.name else serving.name + LATEST
    properties = json_bytes([serving.name, dataclasses.asdict(serving.model.info)])
    return {
        "name": name,
        "model": name,
        "size": serving.model.info.weight_bytes,
        "digest": hashlib.sha256(properties).hexdigest(),
        "details": _details(serving.model),
    }


def _details(model: Model) -> dict[str, Any]:
    info = model.info
    millions = info.num_parameters / 1e6
    return {
        "parent_model": "",
        "format": info.format.split()[0].lower(),
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": f"{millions / 1e3:.1f}B" if millions >= 1e3 else f"{millions:.1f}M",
        "quantization_level": info.weight_type,
    }


def _model_info(serving: Serving) -> dict[str, Any]:
    """Some keys of the file. context_length: that of the server."""
    info = serving.model.info
    of_architecture = {
        "context_length": serving.worker.context_tokens,
        "embedding_length": info.hidden_size,
        "block_count": info.num_hidden_layers,
        "feed_forward_length": info.intermediate_size,
        "attention.head_count": info.num_attention_heads,
        "attention.head_count_kv": info.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": info.rms_norm_eps,
        "rope.freq_base": info.rope_theta,
        "vocab_size": info.vocab_size,
    }
    ends = {"bos": info.bos_id, "eos": info.eos_id}
    return {
        "general.architecture": info.architecture,
        "general.basename": info.name or serving.name,
        "general.parameter_count": info.num_parameters,
        **{f"{info.architecture}.{key}": value for key, value in of_architecture.items()},
        **{f"tokenizer.ggml.{name}_token_id": id for name, id in ends.items() if id >= 0},
    }


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NANOSECONDS)


def _line(body: dict[str, Any]) -> bytes:
    return json_bytes(body) + b"\n"
