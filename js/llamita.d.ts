/** What a model is read from: a URL, a path (Node), a file, or bytes. */
export type Source = string | URL | Blob | ArrayBuffer | ArrayBufferView;

export interface LoadOptions {
  /** Called while the model is read. total: undefined where the server does not say. */
  onProgress?: (progress: { loaded: number; total: number | undefined }) => void;
  signal?: AbortSignal;
  /** A llama2.c tokenizer.bin, or a GGUF to take the tokenizer from. Default: the one in the model. */
  tokenizer?: Source;
  /** The engine, compiled or as bytes. Default: engineFile(), beside this module. */
  wasm?: WebAssembly.Module | BufferSource;
  /** The name of the model in messages. Default: the file's. */
  name?: string;
  /** "auto" (default), "scalar", or what the engine was compiled for. Never changes the text. */
  kernels?: "auto" | "scalar" | "simd128" | "relaxed";
  /** Tokens of the context; 0 (default): the model's. */
  contextTokens?: number;
  /** The type of the KV cache. Default: "f16". */
  kvType?: "f16" | "f32" | "q8";
}

export interface GenerateOptions {
  /** 256; in chats 512. 0: until the context is full. */
  maxNewTokens?: number;
  /** 1; in chats 0.6. 0: the most probable token. */
  temperature?: number;
  /** 0.9. 0 or 1: off. */
  topP?: number;
  /** 0: off. */
  topK?: number;
  /** 0: off. */
  minP?: number;
  /** 1: off. */
  repetitionPenalty?: number;
  /** Recent tokens that are penalized: 64. */
  repetitionWindow?: number;
  /** The same seed gives the same text on every machine. Default: random. */
  seed?: number | bigint;
  /** The text ends before any of these. */
  stop?: string | string[];
  /** Aborting throws the signal's reason, an AbortError. */
  signal?: AbortSignal;
  /** Called with the id of each new token. */
  onToken?: (id: number) => void;
}

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface ModelInfo {
  readonly architecture: string;
  /** "GGUF v3", "llama2.c v0", ... */
  readonly format: string;
  readonly name: string;
  /** The type of most weights: "F32", "Q8_0", ... */
  readonly weightType: string;
  readonly kernels: string;
  /** null: chat() does not know the model's chat template. */
  readonly chatFamily: "chatml" | "llama2" | "llama3" | "zephyr" | null;
  readonly chatTemplate: string | null;
  readonly systemPrompt: string | null;
  readonly numParameters: number;
  readonly weightBytes: number;
  readonly contextTokens: number;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKeyValueHeads: number;
  readonly hasTokenizer: boolean;
  readonly addBos: boolean;
  /** -1: none. */
  readonly bosId: number;
  readonly eosId: number;
}

export interface Model {
  readonly info: ModelInfo;
  readonly contextTokens: number;
  /** The text that follows a prompt (a text, or ids), piece by piece. */
  generate(prompt: string | number[] | Int32Array, options?: GenerateOptions): AsyncGenerator<string, void, void>;
  /** The assistant's answer, piece by piece. The model's system prompt is added if messages have none. */
  chat(messages: Message[], options?: GenerateOptions): AsyncGenerator<string, void, void>;
  /** The ids of a text. bos: begin with BOS; special: recognize control tokens. */
  tokenize(text: string, options?: { bos?: boolean; special?: boolean }): number[];
  /** The text of ids; bytes that are no UTF-8 become U+FFFD. */
  detokenize(ids: Iterable<number>): string;
  /** The logits after the last token of a text or of ids, one for each token of the vocabulary. */
  logits(prompt: string | number[] | Int32Array): Float32Array;
  /** Frees the memory. */
  close(): void;
}

/** Opens a model: GGUF or llama2.c. */
export function load(source: Source, options?: LoadOptions): Promise<Model>;

/** The file of the engine for this browser: "llamita-relaxed.wasm" or "llamita.wasm". Throws where there is no SIMD. */
export function engineFile(): "llamita-relaxed.wasm" | "llamita.wasm";
