// Uses of js/llamita.d.ts, for test_typescript.py: right ones, and wrong ones that must be errors.
import { engineFile, load } from "llamita";
import type { GenerateOptions, LoadOptions, Message, Model, ModelInfo, Source } from "llamita";

const file: "llamita-relaxed.wasm" | "llamita.wasm" = engineFile();
const sources: Source[] = ["a.gguf", new URL("https://a.example/b.gguf"), new Blob([]), new ArrayBuffer(4), new Uint8Array(4)];
const opening: LoadOptions = {
  onProgress: ({ loaded, total }) => console.log(loaded / (total ?? loaded)),
  signal: new AbortController().signal,
  tokenizer: sources[0],
  wasm: new Uint8Array(8),
  name: file,
  kernels: "simd128",
  contextTokens: 0,
  kvType: "q8",
};
const sampling: GenerateOptions = {
  maxNewTokens: 5, temperature: 0.5, topP: 1, topK: 0, minP: 0, repetitionPenalty: 1, repetitionWindow: 64,
  seed: 2n ** 60n, stop: ["a", "b"], signal: opening.signal, onToken: (id: number) => console.log(id),
};
const model: Model = await load(sources[0], opening);
const info: ModelInfo = model.info;
const family: string = info.chatFamily ?? info.architecture;
for await (const piece of model.generate("Once", sampling)) console.log(piece.length, family);
const messages: Message[] = [{ role: "user", content: "Hello" }];
for await (const piece of model.chat(messages)) console.log(piece.trim());
const ids: number[] = model.tokenize("text", { bos: true, special: false });
const logits: Float32Array = model.logits(new Int32Array(ids));
const text: string = model.detokenize(new Set(ids)) + logits.length + model.contextTokens;
console.log(text);
model.close();

// Wrong uses, each of which must be an error.
// @ts-expect-error: Python's name of the option
model.generate("x", { top_p: 1 });
// @ts-expect-error: a text is no list of messages
model.chat("x");
// @ts-expect-error: no such role
model.chat([{ role: "bot", content: "x" }]);
// @ts-expect-error: a model is read before it can be used
load("a.gguf").generate("x");
// @ts-expect-error: no such type of the KV cache
load("a.gguf", { kvType: "q4" });
// @ts-expect-error: not a source
load(5);
// @ts-expect-error: no such function
model.encode("x");
// @ts-expect-error: fixed once the model is read
model.info.name = "x";
