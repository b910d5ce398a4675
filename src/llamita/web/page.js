// page.js: the page around a model: unpacks it, starts the worker, shows what it writes.
"use strict";

const page = JSON.parse(document.getElementById("page").textContent);
const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------- language and theme

const TEXTS = {
  en: {
    begin: "How does it begin?", ask: "Your message", go: "Write", send: "Send", stop: "Stop", again: "Another one",
    clear: "New chat", copy: "Copy", copied: "Copied", settings: "Settings", temperature: "Temperature",
    length: "Tokens at most", seed: "Seed", random: "random", about: "About this model", surprise: "Surprise me",
    unpacking: "Unpacking the model…", ready: "Ready", written: "What was written", writing: "Writing…", dark: "Dark", light: "Light", other: "中文",
    done: (n, speed, seed) => `${n} tokens · ${speed} tokens/s · seed ${seed}`,
    weights: "Weights", type: "Type", size: "Size", context: "Context", tokens: "tokens", bits: "Held-out text",
    bitsUnit: "bits per byte", license: "License", languages: "Languages", engine: "Engine",
    private: "Everything runs on this device. The page works offline and sends nothing.",
    old: "This browser is too old for this page. Use Chrome 97, Firefox 113, Safari 16.4 or later.",
    broken: "This page is damaged: the model in it is incomplete. Get the file again.",
  },
  zh: {
    begin: "开头写什么？", ask: "你的消息", go: "续写", send: "发送", stop: "停止", again: "换一篇",
    clear: "新对话", copy: "复制", copied: "已复制", settings: "设置", temperature: "温度",
    length: "最多词元数", seed: "随机种子", random: "随机", about: "关于此模型", surprise: "随便写",
    unpacking: "正在解压模型…", ready: "就绪", written: "已写内容", writing: "正在写…", dark: "深色", light: "浅色", other: "English",
    done: (n, speed, seed) => `${n} 个词元 · 每秒 ${speed} 个 · 种子 ${seed}`,
    weights: "参数量", type: "类型", size: "大小", context: "上下文", tokens: "个词元", bits: "留出文本",
    bitsUnit: "比特/字节", license: "许可证", languages: "语言", engine: "引擎",
    private: "一切都在本机运算。此页面可离线使用，不发送任何数据。",
    old: "此浏览器版本太旧。请使用 Chrome 97、Firefox 113、Safari 16.4 或更新的版本。",
    broken: "此页面已损坏：其中的模型不完整。请重新获取文件。",
  },
};
let language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
let theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
const say = (key) => TEXTS[language][key];

let info; // of the model, once it is loaded
let isBusy = false;
let problem = ""; // a key of TEXTS, or a message of the engine
let status = () => say("unpacking");
const chat = []; // messages, oldest first
let last; // what was asked of the worker last
let text; // the element that is being written
let log = ""; // the text in it

function show() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  document.documentElement.dataset.theme = theme;
  const labels = {
    language: "other", theme: theme === "dark" ? "light" : "dark", "about-button": "about", stop: "stop",
    "settings-label": "settings", "temperature-label": "temperature", "length-label": "length", "seed-label": "seed",
    "input-label": page.isChat ? "ask" : "begin", go: page.isChat ? "send" : "go",
    again: page.isChat ? "clear" : "again", copy: "copy",
  };
  for (const [id, key] of Object.entries(labels)) $(id).textContent = say(key);
  $("seed").placeholder = say("random");
  $("log").setAttribute("aria-label", say("written"));
  $("progress").setAttribute("aria-label", say("unpacking"));
  $("status").textContent = problem ? "" : status();
  $("problem").hidden = !problem;
  $("problem").textContent = TEXTS[language][problem] ?? problem;
  $("go").disabled = !info || isBusy;
  $("go").hidden = isBusy;
  $("stop").hidden = !isBusy;
  $("again").hidden = isBusy || !last;
  $("copy").hidden = isBusy || !log;
  $("log").setAttribute("aria-busy", String(isBusy));
  for (const button of $("starts").children) button.disabled = !info || isBusy;
  $("temperature-value").textContent = Number($("temperature").value).toFixed(2);
  $("length-value").textContent = $("length").value;
  showStarts();
  showAbout();
}

function showStarts() {
  const starts = page.starts.map((start) => [start, start]);
  if (!page.isChat && page.canSurprise) starts.push([say("surprise"), ""]);
  $("starts").hidden = page.isChat && chat.length > 0;
  if ($("starts").dataset.language === language) return;
  $("starts").dataset.language = language;
  $("starts").replaceChildren(...starts.map(([label, start]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "start" });
    button.textContent = label;
    button.disabled = !info || isBusy;
    button.onclick = () => {
      $("input").value = start;
      write();
    };
    return button;
  }));
}

function showAbout() {
  const facts = [
    [say("languages"), page.languages.join(", ")], [say("license"), page.license],
    [say("bits"), page.bitsPerByte && `${page.bitsPerByte.toFixed(3)} ${say("bitsUnit")}`],
    [say("weights"), info && info.numParameters.toLocaleString()], [say("type"), info && info.weightType],
    [say("size"), `${(page.numBytes / 1e6).toFixed(1)} MB`], [say("context"), info && `${info.contextTokens} ${say("tokens")}`],
    [say("engine"), `llamita ${page.version}${info ? `, ${info.kernels}` : ""}`],
  ].filter(([, value]) => value);
  const list = document.createElement("dl");
  for (const [name, value] of facts) {
    list.append(Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }));
  }
  const parts = page.description ? [Object.assign(document.createElement("p"), { textContent: page.description })] : [];
  const privacy = Object.assign(document.createElement("small"), { textContent: say("private") });
  $("about").replaceChildren(...parts, list, privacy);
}

// ---------------------------------------------------------------- the worker

let worker;

function decode(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // browsers of 2025
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** The bytes of the model, from its compressed stream. */
async function unpack(stream) {
  const reader = stream.pipeThrough(new DecompressionStream("gzip")).getReader(); // checks a checksum
  const bytes = new Uint8Array(page.numBytes);
  let end = 0;
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    bytes.set(next.value, end);
    end += next.value.length;
  }
  return bytes.buffer;
}

/** Reads the files in the page while the browser still reads the page. They are compressed, and in base64 in attributes:
 * the engines go to the worker, part by part; the model is unpacked here while the worker starts. */
function readFiles() {
  const left = { ...page.sizes };
  let compressed; // the controller of the model's stream
  const stream = new ReadableStream({ start: (controller) => (compressed = controller) });
  unpack(stream).then(
    (model) => worker.postMessage({ do: "load", model, name: page.name }, [model]),
    () => fail("broken"),
  );
  const readAll = () => {
    for (const element of document.querySelectorAll("data[data-part]")) {
      const name = element.dataset.part;
      element.remove(); // frees its memory
      const bytes = decode(element.value);
      left[name] -= bytes.length;
      const isLast = left[name] === 0;
      if (name === "model") {
        $("progress").value = 1 - left.model / page.sizes.model;
        compressed.enqueue(bytes);
        if (isLast) compressed.close();
      } else worker.postMessage({ do: "compile", name, bytes, isLast }, [bytes.buffer]);
    }
    if (document.readyState !== "loading" && Object.values(left).some(Boolean)) throw new Error("a file that was cut");
  };
  const read = () => {
    try {
      readAll();
    } catch {
      fail("broken");
    }
  };
  new MutationObserver(read).observe(document.body, { childList: true });
  document.addEventListener("DOMContentLoaded", read);
}

function fail(key) {
  problem = key;
  isBusy = false;
  text?.classList.remove("busy");
  if (page.isChat && chat.at(-1)?.role === "user") {
    // It was not answered: the chat goes on without it, and the reader can change and send it again.
    const { content } = chat.pop();
    $("input").value ||= content;
    text.previousSibling.remove();
    text.remove();
  }
  $("progress").hidden = true;
  show();
}

function start() {
  if (typeof WebAssembly !== "object" || typeof DecompressionStream !== "function" || typeof Worker !== "function")
    return fail("old");
  const source = new Blob([$("worker").textContent], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(source));
  worker.onerror = () => fail("old");
  readFiles();
  worker.onmessage = ({ data }) => {
    if (data.did === "load") {
      info = data.info;
      $("progress").hidden = true;
      $("length").max = Math.min(2048, data.contextTokens);
      status = () => say("ready");
      document.documentElement.dataset.readyMs = String(Math.round(performance.now()));
      show();
    } else if (data.did === "piece") {
      if (!document.documentElement.dataset.firstTextMs)
        document.documentElement.dataset.firstTextMs = String(Math.round(performance.now()));
      add(data.piece);
    } else if (data.did === "write") {
      finish(data);
    } else if (data.did === "fail") {
      if (data.isFull && last?.messages?.length > 2) {
        // The context is full: without the oldest question and its answer, as `llamita chat` forgets them.
        last = { ...last, messages: last.messages.slice(2) };
        worker.postMessage(last);
      } else if (data.isLost) fail(/expected a browser/.test(data.message) ? "old" : "broken");
      else fail(data.message);
    }
  };
}

// ---------------------------------------------------------------- writing

function seed() {
  const given = $("seed").value.trim();
  return /^[0-9]+$/.test(given) ? Number(given) : Math.floor(Math.random() * 2 ** 31);
}

function write() {
  if (!info || isBusy) return;
  const given = $("input").value;
  const temperature = Number($("temperature").value);
  const options = { ...page.sampling, temperature, maxNewTokens: Number($("length").value), seed: seed() };
  problem = "";
  if (page.isChat) {
    if (!given.trim()) return;
    chat.push({ role: "user", content: given });
    bubble("user").textContent = given;
    $("input").value = "";
    last = { do: "write", messages: chat, options };
    text = bubble("assistant");
    log = "";
  } else {
    if (!given && !page.canSurprise) return;
    last = { do: "write", prompt: given, options };
    text = Object.assign(document.createElement("div"), { className: "text" });
    text.append(Object.assign(document.createElement("span"), { className: "given", textContent: given }));
    text.append(document.createTextNode(""));
    $("log").replaceChildren(text);
    log = given;
  }
  text.classList.add("busy");
  isBusy = true;
  status = () => say("writing");
  worker.postMessage(last);
  show();
}

function bubble(role) {
  const element = Object.assign(document.createElement("div"), { className: `said ${role}` });
  $("log").append(element);
  element.scrollIntoView({ block: "nearest" });
  return element;
}

function add(piece) {
  log += piece;
  if (page.isChat) text.textContent = log;
  else text.lastChild.data += piece;
}

function finish({ tokens, speed }) {
  isBusy = false;
  text.classList.remove("busy");
  if (page.isChat) chat.push({ role: "assistant", content: log });
  const { seed: used } = last.options;
  status = () => TEXTS[language].done(tokens, Math.round(speed).toLocaleString(), used);
  show();
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  write();
};
$("input").onkeydown = (event) => {
  // Enter that ends the composition of an input method belongs to it; Safari sends it after the end, with code 229.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    write();
  }
};
$("stop").onclick = () => worker.postMessage({ do: "stop" });
document.onkeydown = (event) => {
  if (event.key === "Escape" && isBusy) worker.postMessage({ do: "stop" });
};
$("again").onclick = () => {
  if (page.isChat) {
    chat.length = 0;
    last = undefined;
    log = "";
    $("log").replaceChildren();
    $("input").focus();
    show();
  } else write();
};
$("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(log);
  } catch { // a page from file:// may not write to the clipboard
    getSelection().selectAllChildren(text);
    document.execCommand("copy");
  }
  $("copy").textContent = say("copied");
};
$("language").onclick = () => {
  language = language === "zh" ? "en" : "zh";
  show();
};
$("theme").onclick = () => {
  theme = theme === "dark" ? "light" : "dark";
  show();
};
$("about-button").onclick = () => {
  $("about").hidden = !$("about").hidden;
  $("about-button").setAttribute("aria-expanded", String(!$("about").hidden));
};
$("temperature").oninput = $("length").oninput = show;
$("temperature").value = page.sampling.temperature ?? (page.isChat ? 0.6 : 0.8);
$("length").value = 256;
start(); // first: what takes longest
show();
$("input").focus({ preventScroll: true });
