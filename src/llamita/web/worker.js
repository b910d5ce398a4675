// worker.js: computes for a page, in its worker. llamita.js stands before it in the same script.

let engine; // the compressed parts of the engine that this browser takes
let wasm; // promise of its module
let model;
let running; // the AbortController of the text that is generated

const post = (message, transfer = []) => self.postMessage(message, transfer);

self.onmessage = async ({ data }) => {
  if (data.do === "stop") return running?.abort();
  try {
    if (data.do === "compile") {
      if (engine?.file !== data.name) return;
      engine.parts.enqueue(data.bytes);
      if (data.isLast) engine.parts.close();
    } else if (data.do === "load") {
      model = await load(data.model, { wasm: await wasm, name: data.name });
      post({ did: "load", info: model.info, contextTokens: model.contextTokens });
    } else await write(data);
  } catch (error) {
    post({
      did: "fail", message: error.message, isLost: model === undefined, isFull: error.status === STATUS_CONTEXT,
    });
  }
};

async function write({ prompt, messages, options }) {
  const controller = new AbortController();
  running = controller;
  let tokens = 0;
  let first = 0;
  const onToken = () => {
    first ||= performance.now();
    tokens++;
  };
  const given = { ...options, onToken, signal: controller.signal };
  let waiting = "";
  let sent = 0; // the first piece goes at once
  try {
    for await (const piece of messages ? model.chat(messages, given) : model.generate(prompt, given)) {
      waiting += piece;
      if (performance.now() - sent < 16) continue; // a frame
      post({ did: "piece", piece: waiting });
      waiting = "";
      sent = performance.now();
    }
  } catch (error) {
    if (!controller.signal.aborted) throw error;
  } finally {
    if (running === controller) running = undefined;
  }
  if (waiting) post({ did: "piece", piece: waiting });
  const now = performance.now();
  const speed = tokens > 1 ? (tokens - 1) / ((now - first) / 1e3) : 0;
  post({ did: "write", tokens, speed });
}

try {
  engine = { file: engineFile() };
  const stream = new ReadableStream({ start: (controller) => (engine.parts = controller) });
  wasm = new Response(stream.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer().then(WebAssembly.compile);
  wasm.catch(() => {}); // loading the model reports it
} catch (error) {
  post({ did: "fail", message: error.message, isLost: true });
}
