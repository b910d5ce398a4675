// Runs a list of cases from stdin, as JSON, with js/llamita.js; prints the list of what they gave.
import { readFileSync } from "node:fs";
import { engineFile, load } from "../../js/llamita.js";

const collect = async (pieces) => {
  const list = [];
  for await (const piece of pieces) list.push(piece);
  return list;
};

const open = ({ model, engine, options = {} }) =>
  load(model, engine ? { ...options, wasm: readFileSync(engine) } : options);

class HugeBlob extends Blob {
  get size() {
    return 2 ** 32;
  }
}

const ACTIONS = {
  engineFile: () => engineFile(),
  imports: ({ engine }) => WebAssembly.Module.imports(new WebAssembly.Module(readFileSync(engine))),
  async generate(c) {
    const model = await open(c);
    const texts = [];
    for (const [prompt, options] of c.prompts) texts.push(await collect(model.generate(prompt, options)));
    return { info: model.info, texts };
  },
  async chat(c) {
    const model = await open(c);
    const messages = [];
    for (const content of c.questions) {
      messages.push({ role: "user", content });
      messages.push({ role: "assistant", content: (await collect(model.chat(messages, c.generation))).join("") });
    }
    return messages.filter(({ role }) => role === "assistant").map(({ content }) => content);
  },
  async text(c) {
    const model = await open(c);
    return c.texts.map((text) => {
      const ids = model.tokenize(text);
      return [ids, model.detokenize(ids)];
    });
  },
  async logits(c) {
    const logits = (await open(c)).logits(c.prompt);
    return Buffer.from(logits.buffer).toString("base64");
  },
  /** Texts that advance in turn, of one model and of two. */
  async side_by_side(c) {
    const [one, two] = await Promise.all([open(c), open(c)]);
    const [prompt, options] = c.prompts[0];
    const expected = (await collect(one.generate(prompt, options))).join("");
    const [other, otherOptions] = c.prompts[1];
    const otherExpected = (await collect(one.generate(other, otherOptions))).join("");
    const all = [one.generate(prompt, options), one.generate(other, otherOptions), two.generate(prompt, options)];
    const texts = ["", "", ""];
    for (let active = all.length; active > 0; ) {
      active = 0;
      for (const [i, pieces] of all.entries()) {
        const next = await pieces.next();
        if (next.done) continue;
        texts[i] += next.value;
        active++;
      }
    }
    return { expected: [expected, otherExpected, expected], texts };
  },
  async abort(c) {
    const model = await open(c);
    const [prompt, options] = c.prompts[0];
    const expected = (await collect(model.generate(prompt, options))).join("");
    const stop = new AbortController();
    let count = 0;
    let name = "";
    try {
      for await (const _ of model.generate(prompt, { ...options, signal: stop.signal })) if (++count === 3) stop.abort();
    } catch (error) {
      name = error.name;
    }
    for await (const _ of model.generate(prompt, options)) break;
    const timed = new AbortController();
    setTimeout(() => timed.abort(), 5); // events happen while texts are generated
    let timedName = "";
    try {
      for (;;) await collect(model.generate(prompt, { ...options, signal: timed.signal }));
    } catch (error) {
      timedName = error.name;
    }
    return { count, name, timedName, same: (await collect(model.generate(prompt, options))).join("") === expected };
  },
  async sources(c) {
    const bytes = readFileSync(c.model);
    const url = `data:application/octet-stream;base64,${bytes.toString("base64")}`;
    const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
    const texts = [];
    let loaded = 0;
    const onProgress = (progress) => (loaded = progress.loaded);
    for (const source of [c.model, new URL(`file://${c.model}`), url, bytes, copy, new Blob([bytes])]) {
      const model = await load(source, { onProgress });
      texts.push((await collect(model.generate(...c.prompts[0]))).join(""));
      model.close();
    }
    return { texts, loaded, size: bytes.length };
  },
  async error(c) {
    const sources = { truncated: () => readFileSync(c.model).subarray(0, c.bytes), huge: () => new HugeBlob(["x"]) };
    try {
      const model = await load(c.make ? sources[c.make]() : c.model, c.options);
      if (c.close) model.close();
      if (c.call === "generate" || c.call === "chat") await collect(model[c.call](...c.args));
      else if (c.call) model[c.call](...c.args);
    } catch (error) {
      return { name: error.constructor.name, message: error.message, isError: error instanceof Error };
    }
    return null;
  },
};

const results = [];
for (const c of JSON.parse(readFileSync(0, "utf8"))) results.push(await ACTIONS[c.action](c));
console.log(JSON.stringify(results));
