// llamita.js: runs Llama models (GGUF, llama2.c) in browsers and Node with the engine in WebAssembly.

const NODE = typeof process === "object" && Boolean(process.versions?.node);
const MAX_FILE_BYTES = 1.75 * 2 ** 30; // WebAssembly has 4 GB for the file and its packed copy
const ERROR_BYTES = 516; // llamita_error: a status, and a message of 512 bytes
const STATUS_OK = 0;
const STATUS_CONTEXT = 5; // LLAMITA_ERROR_CONTEXT
const ENCODE_BOS = 1;
const ENCODE_SPECIAL = 2;
const READ_BYTES = 2 ** 22; // of a file at once
const FEED_TOKENS = 32; // of a prompt, between two looks at the signal
const BUSY_MS = 12; // how long the event loop waits at most, but for one step
const MAX_REMEMBERED_ANSWERS = 64;

const GENERATE_DEFAULTS = {
  maxNewTokens: 256,
  temperature: 1,
  topP: 0.9,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  repetitionWindow: 64,
};
const CHAT_DEFAULTS = { ...GENERATE_DEFAULTS, maxNewTokens: 512, temperature: 0.6 };

// ---------------------------------------------------------------- the engine

/** The file of the engine for this browser: "llamita-relaxed.wasm" or "llamita.wasm". */
export function engineFile() {
  // Modules with one function () -> i32; its code has at most 123 bytes.
  const module = (...code) =>
    new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 0x60, 0, 1, 0x7f, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10,
      code.length + 4, 1, code.length + 2, 0, ...code, 11]);
  const bytes = (view) => [...new Uint8Array(view.buffer)];
  const floats = (value) => [253, 12, ...bytes(new Float32Array(4).fill(value))]; // v128.const
  const lane = [253, 0x1f, 0]; // f32x4.extract_lane 0
  const equals = (value) => [0x43, ...bytes(new Float32Array([value])), 0x5b]; // f32.const, f32.eq
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(module(...floats(0), ...lane, ...equals(0))))
    throw new Error("cannot start the engine: expected a browser with WebAssembly SIMD, found one without; " +
      "use Chrome 91, Firefox 89, Safari 16.4, Node 18 or later");
  // V8 computed wrong dot products while they were experimental (Node 20); it has had struct types since 2023.
  const structType = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 3, 1, 0x5f, 0]);
  // f32x4.relaxed_madd rounds once where the processor has fma: 1 + 2^-11 + 2^-24 keeps its last bit.
  const factor = floats(1 + 2 ** -12);
  const fma = module(...factor, ...factor, ...floats(-1 - 2 ** -11), 253, 0x85, 0x02, ...lane, ...equals(2 ** -24));
  const relaxed = WebAssembly.validate(structType) && WebAssembly.validate(fma) &&
    new WebAssembly.Instance(new WebAssembly.Module(fma)).exports.f() === 1;
  return relaxed ? "llamita-relaxed.wasm" : "llamita.wasm";
}

const compiled = new Map(); // file name -> promise of its module

async function compileEngine(wasm) {
  if (wasm instanceof WebAssembly.Module) return wasm;
  if (wasm) return WebAssembly.compile(wasm);
  const file = engineFile();
  if (!compiled.has(file)) {
    const url = new URL(file, import.meta.url);
    const compile = async () => WebAssembly.compile(await readBytes(url, "engine"));
    compiled.set(file, compile());
    compiled.get(file).catch(() => compiled.delete(file));
  }
  return compiled.get(file);
}

// ---------------------------------------------------------------- reading files

/** Where a file is read to: `bytes`, which reserve() replaces. */
class Room {
  bytes = new Uint8Array(0);

  /** Makes room for so many bytes, behind what was written. */
  reserve(numBytes) {
    if (numBytes <= this.bytes.length) return;
    const bytes = new Uint8Array(numBytes);
    bytes.set(this.bytes);
    this.bytes = bytes;
  }
}

async function readStream(stream, total, room, onProgress) {
  const reader = stream.getReader();
  let loaded = 0;
  room.reserve(total ?? 0);
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    const end = loaded + next.value.length;
    if (end > room.bytes.length) room.reserve(Math.max(end, 2 * loaded)); // a compressed answer is longer than its total
    room.bytes.set(next.value, loaded);
    loaded = end;
    onProgress?.({ loaded, total: total >= loaded ? total : undefined });
  }
  return loaded;
}

/** Opens a URL, path (Node), File, Blob, ArrayBuffer or typed array; gives the function that reads it to a room. */
async function openSource(source, what, { onProgress, signal } = {}) {
  signal?.throwIfAborted();
  const copy = (bytes) => async (room) => {
    room.reserve(bytes.length);
    room.bytes.set(bytes);
    return bytes.length;
  };
  if (source instanceof ArrayBuffer) return copy(new Uint8Array(source));
  if (ArrayBuffer.isView(source)) return copy(new Uint8Array(source.buffer, source.byteOffset, source.byteLength));
  if (typeof Blob === "function" && source instanceof Blob) {
    checkSize(source.size, what, nameOf(source));
    return (room) => readStream(source.stream(), source.size, room, onProgress);
  }
  if (typeof source !== "string" && !(source instanceof URL))
    throw new TypeError(`cannot open ${what}: expected a URL, File, Blob, ArrayBuffer or typed array, found ` +
      (source === null ? "null" : typeof source));
  const text = String(source);
  if (NODE && !/^(https?|data|blob):/.test(text)) return openPath(text, what, signal, onProgress);
  let response;
  try {
    response = await fetch(text, { signal });
  } catch (error) {
    signal?.throwIfAborted();
    throw new Error(`cannot open ${what} ${shorten(text)}: ${error.message}`);
  }
  if (!response.ok) throw new Error(`cannot open ${what} ${shorten(text)}: the server answered ${response.status}`);
  const total = Number(response.headers.get("content-length")) || undefined;
  checkSize(total ?? 0, what, shorten(text));
  return (room) => readStream(response.body, total, room, onProgress);
}

async function openPath(text, what, signal, onProgress) {
  const { open, stat } = await import("node:fs/promises");
  const fail = (error) => {
    signal?.throwIfAborted();
    throw new Error(`cannot open ${what} ${text}: ${error.code === "ENOENT" ? "no such file" : error.message}`);
  };
  const path = text.startsWith("file:") ? new URL(text) : text;
  const { size } = await stat(path).catch(fail);
  checkSize(size, what, nameOf(text));
  return async (room) => {
    const file = await open(path).catch(fail);
    try {
      const beyond = new Uint8Array(READ_BYTES); // what a pipe, or a file that grew, has besides
      room.reserve(size);
      for (let loaded = 0; ; ) {
        signal?.throwIfAborted();
        const isFull = loaded === room.bytes.length;
        const [to, at] = isFull ? [beyond, 0] : [room.bytes, loaded];
        const { bytesRead } = await file.read(to, at, Math.min(READ_BYTES, to.length - at));
        if (bytesRead === 0) return loaded;
        if (isFull) {
          room.reserve(2 * loaded + READ_BYTES);
          room.bytes.set(beyond.subarray(0, bytesRead), loaded);
        }
        loaded += bytesRead;
        onProgress?.({ loaded, total: size });
      }
    } catch (error) {
      return fail(error);
    } finally {
      await file.close();
    }
  };
}

async function readBytes(source, what, options) {
  const room = new Room();
  const read = await openSource(source, what, options);
  const numBytes = await read(room);
  return room.bytes.subarray(0, numBytes);
}

function checkSize(numBytes, what, name) {
  if (numBytes > MAX_FILE_BYTES)
    throw new Error(`cannot open ${what} ${name}: expected at most ${MAX_FILE_BYTES} bytes (WebAssembly's memory is ` +
      `4 GB), found ${numBytes}; quantize the model or use a smaller one`);
}

const shorten = (text) => (text.length > 100 ? `${text.slice(0, 99)}…` : text);

/** The last part of a path or URL, for messages. */
function nameOf(source) {
  if (typeof source?.name === "string" && source.name) return source.name;
  const text = typeof source === "string" || source instanceof URL ? String(source) : "";
  if (!text || /^(data|blob):/.test(text)) return "(in memory)";
  return shorten(text.split(/[?#]/)[0].split(/[\\/]/).pop() || text);
}

// ---------------------------------------------------------------- loading

/**
 * Opens a model.
 * source: a URL, a path (Node), a File, Blob, ArrayBuffer or typed array.
 */
export async function load(source, options = {}) {
  const { onProgress, signal, tokenizer, wasm, name, kernels = null, contextTokens = 0, kvType = "f16" } = options;
  const kv = ["f16", "f32", "q8"].indexOf(kvType);
  if (kv < 0) throw new RangeError(`kvType: expected f16, f32 or q8, found ${kvType}`);
  whole("contextTokens", contextTokens, 0, 2 ** 31 - 1);
  const [module, read, readTokenizer] = await Promise.all([
    compileEngine(wasm),
    openSource(source, "model", { onProgress, signal }),
    tokenizer === undefined ? null : openSource(tokenizer, "tokenizer", { signal }),
  ]);
  const path = name ?? nameOf(source);
  const imports = { llamita: { seconds: () => performance.now() / 1e3 } };
  const instance = await WebAssembly.instantiate(module, imports);
  instance.exports._initialize();
  const engine = new Engine(instance.exports);
  const tokenizerPath = readTokenizer && (nameOf(tokenizer) === path ? `${path} (tokenizer)` : nameOf(tokenizer));
  await engine.addFile(path, read, "model");
  if (readTokenizer) await engine.addFile(tokenizerPath, readTokenizer, "tokenizer");
  signal?.throwIfAborted();
  const handle = engine.scope((put) => {
    const opened = engine.call("host_open_model", put.text(path), put.text(tokenizerPath), put.text(kernels),
      engine.error);
    return opened || engine.fail();
  });
  engine.call("host_remove_files");
  return new Model(engine, handle, { contextTokens, kv });
}

const encoder = new TextEncoder();

/** The instance of a model: memory, calls and errors. */
class Engine {
  constructor(exports) {
    this.exports = exports;
    this.error = this.allocate(ERROR_BYTES);
    this.scratch = this.allocate(16); // for what each token needs
  }

  get bytes() {
    return new Uint8Array(this.exports.memory.buffer);
  }

  get words() {
    return new Int32Array(this.exports.memory.buffer);
  }

  call(name, ...args) {
    if (!this.exports) throw new Error("the model is closed");
    try {
      return this.exports[name](...args);
    } catch (error) {
      this.exports = null; // its memory may be damaged
      throw new Error(`the engine crashed in ${name}: ${error.message}; load the model again`, { cause: error });
    }
  }

  allocate(numBytes) {
    const address = this.call("malloc", Math.max(numBytes, 1)) >>> 0;
    if (!address) throw new Error(`out of memory: cannot allocate ${numBytes} bytes in WebAssembly`);
    return address;
  }

  /** Calls use(put); what put allocates is freed afterwards. */
  scope(use) {
    const addresses = [];
    const put = {
      space: (numBytes) => {
        addresses.push(this.allocate(numBytes));
        return addresses.at(-1);
      },
      bytes: (values) => {
        const address = put.space(values.length);
        this.bytes.set(values, address);
        return address;
      },
      words: (values) => {
        const address = put.space(4 * values.length);
        this.words.set(values, address / 4);
        return address;
      },
      text: (value) => (value === null ? 0 : put.bytes(encoder.encode(`${value}\0`))),
    };
    try {
      return use(put);
    } finally {
      if (this.exports) for (const address of addresses) this.call("free", address);
    }
  }

  /** Reads a file into the engine's memory, where it can be opened by its name. */
  async addFile(name, read, what) {
    const room = new EngineRoom(this, (numBytes) => {
      throw new Error(`cannot open ${what} ${name}: out of memory: cannot allocate ${numBytes} bytes; ` +
        "close other tabs or use a smaller file");
    });
    room.reserve(1);
    const numBytes = await read(room);
    checkSize(numBytes, what, name);
    const path = encoder.encode(`${name}\0`);
    const address = this.allocate(path.length);
    this.bytes.set(path, address);
    this.call("host_add_file", address, room.address, numBytes);
  }

  /** The text at an address, up to a NUL; null for address 0. */
  text(address) {
    if (!address) return null;
    const start = address >>> 0;
    const { bytes } = this;
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.slice(start, bytes.indexOf(0, start)));
  }

  fail() {
    const error = new Error(this.text(this.error + 4));
    error.status = this.words[this.error / 4];
    throw error;
  }

  check(name, ...args) {
    if (this.call(name, ...args, this.error) !== STATUS_OK) this.fail();
  }
}

/** A Room in the engine's memory. */
class EngineRoom {
  address = 0;
  #capacity = 0;
  #engine;
  #fail;

  constructor(engine, fail) {
    this.#engine = engine;
    this.#fail = fail;
  }

  get bytes() {
    return this.#engine.bytes.subarray(this.address, this.address + this.#capacity);
  }

  reserve(numBytes) {
    if (numBytes <= this.#capacity) return;
    const address = this.#engine.call("malloc", numBytes) >>> 0;
    if (!address) this.#fail(numBytes);
    this.#engine.bytes.copyWithin(address, this.address, this.address + this.#capacity);
    if (this.address) this.#engine.call("free", this.address);
    this.address = address;
    this.#capacity = numBytes;
  }
}

function whole(name, value, low, high) {
  if (!Number.isInteger(value) || value < low || value > high)
    throw new RangeError(`${name}: expected a whole number from ${low} to ${high}, found ${value}`);
}

function real(name, value, low, high) {
  if (typeof value !== "number" || !(value >= low && value <= high))
    throw new RangeError(`${name}: expected a number from ${low} to ${high}, found ${value}`);
}

function checkOptions(options, defaults) {
  for (const name of Object.keys(options))
    if (!(name in defaults) && !["seed", "stop", "signal", "onToken"].includes(name))
      throw new TypeError(`unknown option ${name}; expected ${Object.keys(defaults).join(", ")}, seed, stop, signal ` +
        "or onToken");
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const o = { ...defaults, ...given };
  whole("maxNewTokens", o.maxNewTokens, 0, 2 ** 31 - 1);
  real("temperature", o.temperature, 0, 1000);
  real("topP", o.topP, 0, 1);
  whole("topK", o.topK, 0, 2 ** 31 - 1);
  real("minP", o.minP, 0, 1);
  real("repetitionPenalty", o.repetitionPenalty, 0.01, 100);
  whole("repetitionWindow", o.repetitionWindow, 0, 2 ** 31 - 1);
  o.seed ??= Math.floor(Math.random() * 2 ** 53);
  if (typeof o.seed !== "bigint" && !Number.isSafeInteger(o.seed))
    throw new RangeError(`seed: expected a whole number from 0 to 2^53 - 1, or a bigint, found ${o.seed}`);
  o.seed = BigInt(o.seed);
  if (o.seed < 0n || o.seed >= 2n ** 64n)
    throw new RangeError(`seed: expected a number from 0 to 2^64 - 1, found ${o.seed}`);
  o.stop = o.stop === undefined ? [] : [o.stop].flat();
  for (const text of o.stop)
    if (typeof text !== "string" || text === "")
      throw new TypeError(`stop: expected texts of at least one character, found ${JSON.stringify(text)}`);
  return o;
}

/** Lets events happen: a click on "stop", a frame. */
const pause = (() => {
  if (typeof setImmediate === "function") return () => new Promise((resolve) => setImmediate(resolve));
  return () =>
    new Promise((resolve) => {
      const channel = new MessageChannel(); // setTimeout would wait 4 ms
      channel.port1.onmessage = () => {
        channel.port1.close();
        resolve();
      };
      channel.port2.postMessage(null);
    });
})();

// ---------------------------------------------------------------- the model

class Model {
  #engine;
  #handle;
  #session;
  #free = []; // sessions that no text uses, with the ids in their context
  #answers = new Map(); // answers of chats -> the ids they were generated as

  constructor(engine, handle, session) {
    this.#engine = engine;
    this.#handle = handle;
    this.#session = session;
    const json = engine.call("host_describe_model", handle) || engine.fail();
    this.info = Object.freeze(JSON.parse(engine.text(json)));
    engine.call("free", json);
    this.#free.push(this.#openSession()); // an error of its parameters is one of load
  }

  /** Frees the memory. The model cannot be used afterwards. */
  close() {
    this.#engine.exports = null; // the instance, and all that it allocated
    this.#free = [];
  }

  // -------------------------------------------------------------- text

  /** The ids of a text. bos: begin with BOS; special: recognize control tokens such as <|im_start|>. */
  tokenize(text, { bos = false, special = false } = {}) {
    const bytes = encoder.encode(text);
    return this.#engine.scope((put) => {
      const capacity = 2 * bytes.length + 2;
      const ids = put.space(4 * capacity);
      const count = put.space(4);
      const flags = (bos ? ENCODE_BOS : 0) | (special ? ENCODE_SPECIAL : 0);
      this.#engine.check("llamita_encode", this.#handle, put.bytes(bytes), bytes.length, flags, ids, capacity, count);
      return Array.from(this.#engine.words.subarray(ids / 4, ids / 4 + this.#engine.words[count / 4]));
    });
  }

  /** The text of ids; bytes that are no UTF-8 become U+FFFD. */
  detokenize(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    let previous = -1;
    const pieces = Array.from(ids, (id) => {
      this.#checkId(id);
      const bytes = this.#tokenBytes(previous, id);
      previous = id;
      return decoder.decode(bytes, { stream: true });
    });
    return pieces.join("") + decoder.decode();
  }

  #checkId(id) {
    whole("token id", id, 0, this.info.vocabSize - 1);
  }

  #tokenBytes(previousId, id) {
    const engine = this.#engine;
    const at = engine.scratch;
    engine.check("llamita_token_bytes", this.#handle, previousId, id, at, at + 4);
    const start = engine.words[at / 4] >>> 0;
    return engine.bytes.slice(start, start + engine.words[at / 4 + 1]);
  }

  /** The ids of a chat, up to the start of the assistant's answer. */
  #encodeChat(messages) {
    if (!Array.isArray(messages) || messages.length === 0)
      throw new TypeError("messages: expected a list of {role, content}, found " +
        (Array.isArray(messages) ? "an empty list" : typeof messages));
    const list = messages.map((message, i) => {
      if (typeof message?.role !== "string" || typeof message?.content !== "string")
        throw new TypeError(`messages[${i}]: expected texts role and content, found ` +
          shorten(JSON.stringify(message) ?? "undefined"));
      return { role: message.role, content: message.content };
    });
    if (list[0].role !== "system" && this.info.systemPrompt !== null)
      list.unshift({ role: "system", content: this.info.systemPrompt });
    return this.#engine.scope((put) => {
      const structs = [];
      let numIds = 0;
      let numBytes = 0;
      for (const { role, content } of list) {
        const bytes = encoder.encode(content);
        const ids = (role === "assistant" && this.#answers.get(content)) || [];
        structs.push(put.text(role), put.bytes(bytes), bytes.length, ids.length ? put.words(ids) : 0, ids.length);
        numBytes += bytes.length + 64;
        numIds += ids.length;
      }
      const count = put.space(4);
      const array = put.words(structs);
      // The template adds to the messages. Too little room is an error that sets the count.
      let capacity = 2 * numBytes + numIds + 1024;
      for (;;) {
        const out = put.space(4 * capacity);
        this.#engine.words[count / 4] = 0;
        const status = this.#engine.call("llamita_chat_encode", this.#handle, array, list.length, out, capacity, count,
          this.#engine.error);
        const needed = this.#engine.words[count / 4];
        if (status === STATUS_OK) return Array.from(this.#engine.words.subarray(out / 4, out / 4 + needed));
        if (needed <= capacity) this.#engine.fail();
        capacity = needed;
      }
    });
  }

  // -------------------------------------------------------------- sessions

  #openSession() {
    const { contextTokens, kv } = this.#session;
    const engine = this.#engine;
    const handle = engine.call("host_open_session", this.#handle, contextTokens, kv, engine.error) || engine.fail();
    this.contextTokens = engine.call("llamita_session_context_tokens", handle);
    return { handle, ids: [] };
  }

  /** Takes the free session that has computed most of these ids, rewound to what it can use. */
  #takeSession(ids) {
    const shared = (session) => {
      let count = 0;
      while (count < session.ids.length && count + 1 < ids.length && session.ids[count] === ids[count]) count++;
      return count;
    };
    this.#free.sort((a, b) => shared(a) - shared(b));
    const session = this.#free.pop() ?? this.#openSession();
    session.ids.length = shared(session);
    this.#engine.check("llamita_session_rewind", session.handle, session.ids.length);
    return session;
  }

  #giveBack(session) {
    if (!this.#engine.exports) return;
    if (this.#free.length === 0) this.#free.push(session);
    else this.#engine.call("llamita_session_close", session.handle);
  }

  #feed(session, ids) {
    this.#engine.scope((put) => {
      this.#engine.check("llamita_session_feed", session.handle, put.words(ids), ids.length);
    });
    session.ids.push(...ids);
  }

  #checkPrompt(ids) {
    if (ids.length <= this.contextTokens) return ids;
    const error = new RangeError(`the prompt: expected at most ${this.contextTokens} tokens (the context), found ` +
      `${ids.length}; shorten the prompt`);
    throw Object.assign(error, { status: STATUS_CONTEXT });
  }

  #encodePrompt(prompt) {
    if (typeof prompt !== "string") {
      if (!Array.isArray(prompt) && !(prompt instanceof Int32Array))
        throw new TypeError(`the prompt: expected a text or a list of ids, found ${typeof prompt}`);
      if (prompt.length === 0) throw new RangeError("the prompt: expected at least one id, found none");
      prompt.forEach((id) => this.#checkId(id));
      return this.#checkPrompt(Array.from(prompt));
    }
    if (!this.info.hasTokenizer)
      throw new Error("this model has no tokenizer; pass load a tokenizer, or generate a list of ids");
    if (prompt === "" && this.info.bosId < 0)
      throw new RangeError("the prompt: expected a text, found none; this model has no BOS token to start from");
    return this.#checkPrompt(this.tokenize(prompt, { bos: this.info.addBos || prompt === "" }));
  }

  /** The logits after the last token of a text or of ids: a Float32Array with one for each token. */
  logits(prompt) {
    const ids = this.#encodePrompt(prompt);
    const session = this.#takeSession(ids);
    try {
      this.#feed(session, ids.slice(session.ids.length));
      const start = this.#engine.call("llamita_session_logits", session.handle) >>> 0;
      return new Float32Array(this.#engine.exports.memory.buffer, start, this.info.vocabSize).slice();
    } finally {
      this.#giveBack(session);
    }
  }

  // -------------------------------------------------------------- generating

  /** The text that follows a prompt (a text or ids), piece by piece. */
  generate(prompt, options = {}) {
    const checked = checkOptions(options, GENERATE_DEFAULTS);
    return this.#pieces(this.#encodePrompt(prompt), checked, null);
  }

  /** The assistant's answer to messages [{role, content}, ...], piece by piece. */
  chat(messages, options = {}) {
    const checked = checkOptions(options, CHAT_DEFAULTS);
    return this.#pieces(this.#checkPrompt(this.#encodeChat(messages)), checked, this.#answers);
  }

  async *#pieces(promptIds, o, answers) {
    o.signal?.throwIfAborted();
    const newIds = [];
    const text = new StoppedText(o.stop);
    for await (const [id, bytes] of this.#tokens(promptIds, o)) {
      newIds.push(id);
      const piece = text.add(bytes);
      if (piece) yield piece;
      if (text.stopped) break;
    }
    const rest = text.end();
    if (rest) yield rest;
    if (answers && !text.stopped) {
      answers.set(text.all, newIds);
      if (answers.size > MAX_REMEMBERED_ANSWERS) answers.delete(answers.keys().next().value);
    }
  }

  /** The new tokens: their ids and bytes. */
  async *#tokens(promptIds, o) {
    const engine = this.#engine;
    const session = this.#takeSession(promptIds);
    let sampler = 0;
    let resumed = performance.now();
    const rest = async () => {
      if (performance.now() - resumed >= BUSY_MS) {
        await pause();
        resumed = performance.now();
      }
      o.signal?.throwIfAborted();
    };
    try {
      sampler = engine.call("host_open_sampler", this.#handle, o.temperature, o.topK, o.topP || 1, o.minP,
        o.repetitionPenalty, o.repetitionWindow, o.seed, engine.error) || engine.fail();
      for (const id of promptIds) engine.call("llamita_sampler_accept", sampler, id);
      while (session.ids.length < promptIds.length) {
        await rest();
        this.#feed(session, promptIds.slice(session.ids.length, session.ids.length + FEED_TOKENS));
      }
      let previousId = promptIds.at(-1);
      for (let count = 1; ; count++) {
        const id = this.#pick(session, sampler);
        if (engine.call("llamita_token_ends", this.#handle, id)) return;
        o.onToken?.(id);
        yield [id, this.#tokenBytes(previousId, id)];
        if (count === o.maxNewTokens || session.ids.length >= this.contextTokens) return;
        await rest();
        this.#feed(session, [id]);
        previousId = id;
      }
    } finally {
      if (sampler && engine.exports) engine.call("llamita_sampler_close", sampler);
      this.#giveBack(session);
    }
  }

  #pick(session, sampler) {
    const engine = this.#engine;
    const logits = engine.call("llamita_session_logits", session.handle);
    engine.check("llamita_sampler_pick", sampler, logits, engine.scratch);
    const id = engine.words[engine.scratch / 4];
    engine.call("llamita_sampler_accept", sampler, id);
    return id;
  }
}

/** Bytes to text, whole characters only, up to a stop text. */
class StoppedText {
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #held = ""; // may be the start of a stop text
  #stop;

  constructor(stop) {
    this.#stop = stop;
    this.all = "";
    this.stopped = false;
  }

  /** The text that these bytes complete. */
  add(bytes) {
    const text = this.#held + this.#decoder.decode(bytes, { stream: true });
    const found = this.#stop.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
    if (found.length) {
      this.stopped = true;
      return this.#give(text.slice(0, Math.min(...found)), "");
    }
    let length = 0;
    for (const stop of this.#stop)
      for (let n = Math.min(stop.length - 1, text.length); n > length; n--)
        if (text.endsWith(stop.slice(0, n))) length = n;
    return this.#give(text.slice(0, text.length - length), text.slice(text.length - length));
  }

  /** What was held back. An unfinished character is dropped. */
  end() {
    return this.stopped ? "" : this.#give(this.#held, "");
  }

  #give(text, held) {
    this.#held = held;
    this.all += text;
    return text;
  }
}
