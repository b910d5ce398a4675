// chat.js: the chat page of a server: conversations in this browser, answers over OpenAI's API.
"use strict";

const $ = (id) => document.getElementById(id);
const BASE = location.pathname.replace(/\/?$/, "/"); // of all requests: the page may lie behind a prefix
const NUM_TOP = 8; // tokens that are shown beside the one that was taken
const TITLE_CHARS = 80;

// ---------------------------------------------------------------- language

const TEXTS = {
  en: {
    fresh: "New chat", freshText: "New text", chats: "Conversations", none: "Nothing here yet", empty: "Empty text",
    remove: (title) => `Delete: ${title}`, removed: "Deleted.", undo: "Undo", menu: "Conversations and settings",
    begin: "How does it begin?", ask: "Your message", welcome: "What do you want to ask?",
    welcomeHint: "Conversations stay in this browser.", beginHint: "This model continues texts. Write a beginning.",
    surprise: "Surprise me", go: "Write", send: "Send", stop: "Stop", again: "Try again", another: "Another one",
    on: "Continue", edit: "Edit", cancel: "Cancel", copy: "Copy", copied: "Copied", log: "Conversation", model: "Model",
    you: "You", answer: "Answer", text: "Text", settings: "Settings", system: "System prompt",
    systemHint: "How the model is to behave", temperature: "Temperature", topP: "Top-p", length: "Tokens at most",
    seed: "Seed", random: "random", probabilities: "Token probabilities", defaults: "Defaults of the model",
    probabilitiesHint:
      "For new answers. Point at a word, tap it, or use the arrow keys, to see what else it might have been.",
    tokens: "Tokens; the arrow keys show what else they might have been", key: "This server needs an API key",
    useKey: "Use", forget: "Forget the key", dark: "Dark", light: "Light", other: "中文", writing: "Writing…",
    wrongKey: "The server does not accept this key.",
    done: ({ tokens, speed }) => `${tokens} tokens · ${number(speed)} tokens/s`, seeded: (seed) => `seed ${seed}`,
    stopped: "stopped", cut: "reached the limit of tokens", trace: "Where from?", sources: "Where it stands",
    traced: (count) => `${number(count)} ${count === 1 ? "passage stands" : "passages stand"} in the documents.`,
    untraced: "No long passage of this stands in the documents word for word.", heldOut: "held out",
    places: (count, isComplete) =>
      `${isComplete ? "" : "at least "}${number(count)} ${count === 1 && isComplete ? "place" : "places"}`,
    byte: (at) => `byte ${number(at)}`, line: (at) => `line ${number(at)}`, item: (at) => `item ${number(at)}`,
    row: (at) => `row ${number(at)}`, document: (at) => `document ${number(at)}`,
    unreachable: "The server cannot be reached. Check that it runs, then try again.",
    lost: "The connection was lost; the answer is not complete.",
    busy: (seconds) => `The server is busy. Try again in ${seconds} s.`,
    unavailable: (said) => `The server cannot answer now: ${said}`,
    slow: "The server ended the answer: it took too long.",
    long: (context) =>
      `This is too long for the model: its context has ${context} tokens. Shorten it, or start a new one.`,
    gone: (name) => `The server no longer has the model ${name}. Choose another.`,
    full: "The browser's storage is full: this conversation is not kept. Delete old ones.",
    failed: (said) => said,
  },
  zh: {
    fresh: "新对话", freshText: "新文本", chats: "对话列表", none: "还没有内容", empty: "空文本",
    remove: (title) => `删除：${title}`, removed: "已删除。", undo: "撤销", menu: "对话与设置",
    begin: "开头写什么？", ask: "你的消息", welcome: "想问点什么？",
    welcomeHint: "对话只保存在此浏览器中。", beginHint: "此模型续写文本。请写一个开头。",
    surprise: "随便写", go: "续写", send: "发送", stop: "停止", again: "重试", another: "换一篇",
    on: "继续写", edit: "编辑", cancel: "取消", copy: "复制", copied: "已复制", log: "对话", model: "模型",
    you: "你", answer: "回答", text: "文本", settings: "设置", system: "系统提示词",
    systemHint: "希望模型如何表现", temperature: "温度", topP: "Top-p", length: "最多词元数",
    seed: "随机种子", random: "随机", probabilities: "词元概率", defaults: "模型的默认值",
    probabilitiesHint: "用于之后的回答。指向、点按词元，或用方向键，可查看其他可能的词元。",
    tokens: "词元；用方向键查看其他可能", key: "此服务器需要 API 密钥",
    useKey: "使用", forget: "清除密钥", dark: "深色", light: "浅色", other: "English", writing: "正在写…",
    wrongKey: "服务器不接受此密钥。",
    done: ({ tokens, speed }) => `${tokens} 个词元 · 每秒 ${number(speed)} 个`, seeded: (seed) => `种子 ${seed}`,
    stopped: "已停止", cut: "已达词元上限", trace: "出自哪里？", sources: "出处",
    traced: (count) => `有 ${number(count)} 处文字见于文档。`,
    untraced: "没有较长的文字逐字见于文档。", heldOut: "未用于训练",
    places: (count, isComplete) => `${isComplete ? "" : "至少 "}${number(count)} 处`,
    byte: (at) => `第 ${number(at)} 字节`, line: (at) => `第 ${number(at)} 行`, item: (at) => `第 ${number(at)} 项`,
    row: (at) => `第 ${number(at)} 行`, document: (at) => `第 ${number(at)} 篇文档`,
    unreachable: "无法连接服务器。请确认它正在运行，然后重试。",
    lost: "连接中断，回答不完整。",
    busy: (seconds) => `服务器繁忙，请在 ${seconds} 秒后重试。`,
    unavailable: (said) => `服务器暂时无法回答：${said}`,
    slow: "回答耗时过长，服务器已将其终止。",
    long: (context) => `内容超出模型的上下文（${context} 个词元）。请缩短内容，或新建对话。`,
    gone: (name) => `服务器上已没有模型 ${name}，请选择其他模型。`,
    full: "浏览器存储空间已满，此对话未能保存。请删除旧对话。",
    failed: (said) => said,
  },
};
const number = (value) => value.toLocaleString(undefined, { maximumFractionDigits: value < 10 ? 1 : 0 });

function say(key, ...given) {
  const text = TEXTS[language][key];
  return typeof text === "function" ? text(...given) : text;
}

// ---------------------------------------------------------------- what the browser keeps

// A key of localStorage for each conversation, so that two tabs do not overwrite each other's.
const PREFIX = `llamita:${BASE}:`;

function load(name) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return null; // no storage, or not ours
  }
}

function keep(name, value) {
  try {
    if (value === undefined) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch (error) {
    return error.name !== "QuotaExceededError"; // a browser that keeps nothing need not say so each time
  }
}

const session = { // of this tab: a key must not outlive it
  get: (name) => { try { return sessionStorage.getItem(PREFIX + name) ?? ""; } catch { return ""; } },
  set: (name, value) => { try { sessionStorage.setItem(PREFIX + name, value); } catch { /* not kept */ } },
};

const settings = load("settings") ?? {};
let language = settings.language ?? ((navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let key = session.get("key");

function change(changes) {
  Object.assign(settings, changes);
  keep("settings", settings);
  show();
}

// ---------------------------------------------------------------- conversations

// A conversation: {id, at, model, messages}. A message: {role, content, isText, meta}; isText: part of a text that a
// model continues, not of a chat. Not kept: the parts and the trace of a message, and the run and the problem of a
// conversation.
const chats = new Map();
let models = []; // of the server
let chat = newChat();
let removed; // the last conversation that was deleted

function newChat() {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, at: Date.now(), model: "", messages: [] };
}

function save(each) {
  each.at = Date.now();
  const messages = each.messages.map((message) => {
    const { role, content, isText, meta } = message;
    return { role, content, isText, meta: message === each.run?.message ? { ...meta, end: "stopped" } : meta };
  });
  const isKept = keep(`chat:${each.id}`, { id: each.id, at: each.at, model: each.model, messages });
  chats.set(each.id, each);
  if (!isKept) each.problem = ["full"];
}

function readChat(id) {
  const found = load(`chat:${id}`);
  return found && Array.isArray(found.messages) ? { ...found, id } : null;
}

function readChats() {
  let names = [];
  try {
    names = Object.keys(localStorage);
  } catch { /* no storage */ }
  for (const name of names) {
    if (!name.startsWith(`${PREFIX}chat:`)) continue;
    const found = readChat(name.slice(PREFIX.length + 5));
    if (found) chats.set(found.id, found);
  }
}

const title = ({ messages }) =>
  messages.slice(0, 2).map(({ content }) => content.trim().slice(0, TITLE_CHARS)).find(Boolean) ?? say("empty");
const model = () => models.find((each) => each.id === $("model").value);
const isBase = () => model()?.chat === false;

/** Show a conversation; none: a new one. */
function visit(id) {
  history.pushState(null, "", id ? `#${id}` : location.pathname + location.search);
  openChat();
}

function openChat() {
  const found = chats.get(location.hash.slice(1));
  if (found === chat) return;
  chat = found ?? newChat();
  if (models.some((each) => each.id === chat.model)) $("model").value = chat.model;
  showLog();
  show();
  $("log").scrollTop = $("log").scrollHeight;
}

function remove(each) {
  each.run?.controller.abort();
  chats.delete(each.id);
  keep(`chat:${each.id}`, undefined);
  removed = each;
  if (each === chat) visit();
  show();
  $("undo").focus();
}

// ---------------------------------------------------------------- the server

/** What went wrong, as the arguments of say. */
class Problem extends Error {
  constructor(...said) {
    super(said[0]);
    this.said = said;
  }
}

async function call(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    const method = body ? "POST" : "GET";
    response = await fetch(BASE + path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    throw signal?.aborted ? error : new Problem("unreachable");
  }
  if (response.ok) return response;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch { /* of a proxy */ }
  throw problemOf(response.status, error, response.headers.get("Retry-After"));
}

function problemOf(status, error, seconds) {
  const said = String(error.message ?? `HTTP ${status}`).slice(0, 500);
  if (status === 401) return new Problem("key");
  if (status === 429) return new Problem("busy", Number(seconds) || 1);
  if (status === 502 || status === 504) return new Problem("unreachable");
  if (error.code === "timeout") return new Problem("slow");
  if (status === 503) return new Problem("unavailable", said);
  if (error.code === "context_length_exceeded") return new Problem("long", number(model()?.context_length ?? 0));
  if (error.code === "model_not_found") return new Problem("gone", $("model").value);
  return new Problem("failed", said);
}

/** The objects of a stream of server-sent events. */
async function* events(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Problem("lost");
    waiting += decoder.decode(value, { stream: true });
    const lines = waiting.split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw problemOf(0, found.error);
      yield found;
    }
  }
}

async function loadModels() {
  try {
    models = (await (await call("v1/models")).json()).data;
    $("model").replaceChildren(...models.map((each) => make("option", "", each.id, { value: each.id })));
    const wanted = [chat.model, settings.model].find((name) => models.some((each) => each.id === name));
    $("model").value = wanted ?? models[0].id;
    if (chat.problem?.[0] !== "gone") chat.problem = undefined;
  } catch (error) {
    fail(chat, error);
  }
  showLog();
  show();
}

let needsKey = false;

function fail(each, error) {
  if (!(error instanceof Problem)) console.error(error); // the network's, in the middle of a stream
  const said = error instanceof Problem ? error.said : ["lost"];
  each.problem = said[0] !== "key" ? said : key ? ["wrongKey"] : undefined;
  if (said[0] === "gone") loadModels();
  if (said[0] !== "key") return;
  needsKey = true;
  show();
  $("key").focus();
}

// ---------------------------------------------------------------- asking

const sampling = () => model()?.sampling ?? {};
// Without a default of its own a small model writes better below OpenAI's 1.
const defaultOf = (name, own) => sampling()[name] ?? (Object.keys(sampling()).length ? 1 : own);
const temperature = () => settings.temperature ?? defaultOf("temperature", isBase() ? 0.8 : 0.6);
const topP = () => settings.topP ?? defaultOf("top_p", 0.9);

function request(each, question, seed) {
  const context = model().context_length;
  const asked = {
    model: model().id, stream: true, stream_options: { include_usage: true }, temperature: temperature(),
    top_p: topP(), seed, max_tokens: Math.min(settings.length ?? (question.isText ? 256 : 1024), context),
  };
  if (question.isText) {
    if (settings.probabilities) asked.logprobs = NUM_TOP;
    const written = each.messages.at(-1) === question ? "" : each.messages.at(-1).content;
    return ["v1/completions", { ...asked, prompt: question.content + written }];
  }
  if (settings.probabilities) Object.assign(asked, { logprobs: true, top_logprobs: NUM_TOP });
  const isAnswered = (i) => each.messages[i + 1]?.role === "assistant";
  const messages = each.messages.filter((message, i) => // a question without an answer is left out
    !message.isText && (message.role === "assistant" || isAnswered(i) || message === question));
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system });
  return ["v1/chat/completions", { ...asked, messages: messages.map(({ role, content }) => ({ role, content })) }];
}

/** Ask for the answer to the last question. before: the answer that it replaces. goesOn: continue the last text. */
async function answer(each, { before, goesOn = false } = {}) {
  if (!model()) return;
  const question = each.messages.findLast((message) => message.role === "user");
  if (!goesOn) question.isText = isBase();
  const seed = /^[0-9]+$/.test(settings.seed ?? "") ? Number(settings.seed) : Math.floor(Math.random() * 2 ** 31);
  const meta = { tokens: 0, seed, model: model().id };
  const [path, body] = request(each, question, seed);
  const message = goesOn ? each.messages.at(-1) : { role: "assistant", content: "", isText: question.isText };
  if (!goesOn) each.messages.push(message);
  const { content: contentBefore, meta: metaBefore } = message;
  message.trace = undefined;
  message.meta = meta;
  const run = { controller: new AbortController(), message, numChars: 0, sent: performance.now() };
  Object.assign(each, { run, model: meta.model, problem: undefined });
  save(each);
  if (each === chat) {
    showLog();
    scrollDown(true);
    focusInput();
  }
  $("news").textContent = say("writing");
  show();
  try {
    await receive(each, run, await call(path, body, run.controller.signal));
  } catch (error) {
    meta.end = "stopped";
    if (!run.controller.signal.aborted) fail(each, error);
    if (message.content === contentBefore) { // nothing came
      message.meta = metaBefore;
      if (!goesOn) each.messages.splice(-1, 1, ...(before ? [before] : []));
    }
  }
  each.run = undefined;
  if (chats.has(each.id)) save(each); // it was not deleted meanwhile
  if (each === chat) {
    showLog();
    scrollDown();
    $("news").textContent = each.problem ? "" : message.content.slice(contentBefore.length);
  }
  show();
}

/** Read the stream of an answer into its message. */
async function receive(each, run, response) {
  const { message } = run;
  const start = message.content.length;
  let [first, last, firstChars, saved] = [0, 0, 0, performance.now()];
  for await (const event of events(response)) {
    if (event.usage) message.meta.tokens = event.usage.completion_tokens;
    const choice = event.choices[0];
    if (choice?.finish_reason === "length") message.meta.end = "cut";
    const piece = choice?.delta?.content ?? choice?.text ?? "";
    if (!piece) continue;
    last = performance.now();
    if (!first) [first, firstChars] = [last, piece.length];
    write(each, run, piece, choice.logprobs);
    if (last - saved < 1000) continue;
    save(each);
    saved = last;
  }
  // The tokens after the first piece, by the time they took: that of the prompt does not count. A text that came at
  // once has no such time.
  const isPaced = last - first > 20;
  const share = isPaced ? 1 - firstChars / (message.content.length - start) : 1;
  message.meta.speed = (message.meta.tokens * share * 1e3) / (last - (isPaced ? first : run.sent));
}

function write(each, run, piece, logprobs) {
  const parts = tokenParts(piece, logprobs, run.numChars);
  run.numChars += Array.from(piece).length;
  run.message.content += piece;
  (run.message.parts ??= []).push(...parts);
  if (each !== chat || !run.element) return;
  run.element.append(...parts.flatMap(partNodes));
  scrollDown();
}

const nameOf = ({ token, bytes }) => // bytes that are no whole characters in hex
  (token.includes("\ufffd") && bytes ? bytes.map((byte) => byte.toString(16)).join(" ") : token);

/** A piece of text cut into its tokens: [{text, tokens}]. Tokens that share a character stay together. */
function tokenParts(piece, logprobs, numChars) {
  const parts = [];
  let waiting = [];
  const push = (text, token) => {
    waiting.push(token);
    if (!text) return;
    parts.push({ text, tokens: waiting });
    waiting = [];
  };
  if (logprobs?.content) {
    const decoder = new TextDecoder();
    for (const token of logprobs.content)
      push(decoder.decode(Uint8Array.from(token.bytes ?? []), { stream: true }),
        { text: nameOf(token), logprob: token.logprob,
          top: token.top_logprobs.map((each) => [nameOf(each), each.logprob]) });
  } else if (logprobs?.tokens) {
    const letters = Array.from(piece);
    const starts = logprobs.text_offset.map((offset) => offset - numChars);
    logprobs.tokens.forEach((text, i) => push(letters.slice(starts[i], starts[i + 1] ?? letters.length).join(""),
      { text, logprob: logprobs.token_logprobs[i], top: Object.entries(logprobs.top_logprobs[i] ?? {}) }));
  }
  const joined = parts.map((part) => part.text).join("");
  if (joined !== piece && joined.trimStart() === piece) parts[0].text = parts[0].text.trimStart();
  return joined === piece || joined.trimStart() === piece ? parts.filter((part) => part.text) : [{ text: piece }];
}

async function ask(content) {
  if (!models.length) await loadModels();
  if (!model() || chat.run) return;
  const isText = isBase();
  if (!isText && !content.trim()) return;
  chat.messages.push({ role: "user", content, isText });
  save(chat);
  if (location.hash.slice(1) !== chat.id) history.replaceState(null, "", `#${chat.id}`);
  removed = undefined;
  $("input").value = "";
  session.set("draft", "");
  fitInput();
  answer(chat);
}

function again() {
  if (!model() || chat.run) return;
  const last = chat.messages.at(-1);
  if (last.role === "user") answer(chat);
  else {
    chat.messages.pop();
    answer(chat, { before: last });
  }
}

/** Ask another question in place of this one. If more was asked after it, this happens in a new conversation. */
function edit(at, content) {
  if (!model() || chat.run) return;
  const isText = isBase();
  const before = chat.messages.slice(0, at);
  if (chat.messages.slice(at + 1).some((message) => message.role === "user")) {
    chat = { ...newChat(), messages: before };
    history.pushState(null, "", `#${chat.id}`);
  } else chat.messages = before;
  chat.messages.push({ role: "user", content, isText });
  answer(chat);
}

// ---------------------------------------------------------------- what is shown

// Texts only ever become text nodes: what a model writes is never read as HTML.
function make(tag, className, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function button(label, onclick, properties) {
  return make("button", "plain", label, { type: "button", onclick, ...properties });
}

const TINTS = [0.5, 0.2, 0.05, 0.01]; // probabilities below which a token is tinted

function partNodes({ text: whole, tokens }) {
  if (!tokens) return [document.createTextNode(whole)];
  const text = whole.replace(/^ (?=.)/, ""); // the space before a word is not tinted
  const probability = tokens.reduce((product, token) => product * Math.exp(token.logprob), 1);
  const element = make("span", `token p${TINTS.filter((limit) => probability < limit).length}`, text);
  element.tabIndex = -1;
  element.tokens = tokens;
  return text === whole ? [element] : [document.createTextNode(" "), element];
}

function showLog() {
  const turns = [];
  let turn;
  chat.messages.forEach((message, i) => {
    const isLast = i === chat.messages.length - 1;
    if (message.role === "user" || !turn) {
      turn = make("section", "turn");
      turns.push(turn);
    }
    if (message.role === "user" && message.isText) {
      const text = make("div", "text");
      text.append(make("span", "given", message.content));
      turn.append(make("h2", "unseen", say("text")), text);
    } else if (message.role === "user") {
      turn.append(make("h2", "unseen", say("you")), make("div", "said user", message.content));
    } else if (!message.isText) {
      turn.append(make("h2", "unseen", say("answer")), make("div", "said assistant"));
    }
    if (message.role !== "user") showAnswer(turn, message);
    const acts = actions(message, i, isLast, turn);
    if (acts.childElementCount) turn.append(acts);
    if (message.trace) turn.append(traceView(message.trace));
  });
  if (!turns.length) turns.push(welcome());
  $("log").replaceChildren(...turns);
}

function showAnswer(turn, message) {
  const box = turn.querySelector(".said.assistant, .text") ?? turn.appendChild(make("div", "text"));
  const body = make("span", "answer");
  const isWhole = message.parts?.map((part) => part.text).join("") === message.content;
  if (settings.probabilities && isWhole) body.append(...message.parts.flatMap(partNodes));
  else if (message.trace) body.append(...tracedNodes(message));
  else body.append(document.createTextNode(message.content));
  box.append(body);
  const first = body.querySelector(".token");
  if (first) {
    first.tabIndex = 0;
    body.setAttribute("role", "group");
    body.setAttribute("aria-label", say("tokens"));
  }
  if (chat.run?.message === message) {
    chat.run.element = body;
    box.classList.add("busy");
  }
}

function actions(message, at, isLast, turn) {
  const acts = make("div", `acts${message.role === "user" && !message.isText ? " of-user" : ""}`);
  const isAnswer = message.role === "assistant";
  const question = isAnswer ? at - 1 : at;
  const isAnsweredText = message.isText && !isAnswer && !isLast; // the buttons of both follow the text
  if (chat.run?.message === message || isAnsweredText) return acts;
  const text = message.isText ? chat.messages[question].content + message.content : message.content;
  if (!chat.run && (message.isText || !isAnswer)) acts.append(button(say("edit"), () => showEdit(turn, question)));
  if (isAnswer) acts.append(button(say("copy"), (event) => copy(text, event.target)));
  if (!chat.run && isLast) acts.append(button(say(message.isText && isAnswer ? "another" : "again"), again));
  if (!chat.run && isLast && isAnswer && message.isText && message.meta.end)
    acts.append(button(say("on"), () => answer(chat, { goesOn: true })));
  if (isAnswer && !chat.run && model()?.trace)
    acts.append(button(say("trace"), () => toggleTrace(message, at),
      { id: `trace-${at}`, ariaExpanded: String(message.trace !== undefined) }));
  if (isAnswer) acts.append(make("span", "", about(message.meta)));
  return acts;
}

function about(meta) {
  const name = models.length > 1 && meta.model;
  const parts = [name, meta.tokens && say("done", meta), say("seeded", meta.seed), meta.end && say(meta.end)];
  return parts.filter(Boolean).join(" · ");
}

/** Ask where an answer stands in the documents, or show it no more. */
async function toggleTrace(message, at) {
  const isShown = message.trace !== undefined;
  const asked = chat;
  try {
    message.trace = isShown ? undefined : (await (await call("trace", { text: message.content })).json()).sentences;
    if (!isShown) asked.problem = undefined;
  } catch (error) {
    fail(asked, error);
  }
  if (asked !== chat || chat.run) return;
  showLog();
  show();
  $(`trace-${at}`)?.focus();
  const count = message.trace?.reduce((sum, sentence) => sum + sentence.spans.length, 0);
  if (message.trace) $("news").textContent = count ? say("traced", count) : say("untraced");
}

/** The text of an answer with its spans marked. */
function tracedNodes({ content, trace }) {
  const letters = Array.from(content); // the server counts characters
  const nodes = [];
  let at = 0;
  for (const span of trace.flatMap((sentence) => sentence.spans)) {
    const end = span.start + Array.from(span.text).length;
    nodes.push(document.createTextNode(letters.slice(at, span.start).join("")));
    nodes.push(make("mark", span.is_only_held_out ? "held-out" : "", letters.slice(span.start, end).join("")));
    at = end;
  }
  return [...nodes, document.createTextNode(letters.slice(at).join(""))];
}

function traceView(trace) {
  const element = make("section", "trace");
  element.setAttribute("aria-label", say("sources"));
  const spans = trace.flatMap((sentence) => sentence.spans);
  if (!spans.length) element.append(make("p", "", say("untraced")));
  element.append(...spans.flatMap((span) => span.sources.map((source, i) => sourceView(span, source, i === 0))));
  return element;
}

function sourceView(span, source, isFirst) {
  const figure = make("figure");
  const quote = figure.appendChild(make("blockquote"));
  quote.append(source.before, make("mark", source.is_held_out ? "held-out" : "", span.text), source.after);
  const where = source.file ? `${source.file}, ${say(source.unit, source.position)}` : say("document", source.document);
  const count = span.num_places.train + span.num_places.val;
  const parts = [where, source.is_held_out && say("heldOut"), isFirst && say("places", count, span.is_complete)];
  figure.append(make("figcaption", "", parts.filter(Boolean).join(" · ")));
  return figure;
}

function welcome() {
  const element = make("div", "welcome");
  if (!model()) return element;
  element.append(make("p", "", say(isBase() ? "begin" : "welcome")));
  element.append(make("small", "", say(isBase() ? "beginHint" : "welcomeHint")));
  if (isBase()) element.append(make("button", "start", say("surprise"), { type: "button", onclick: () => ask("") }));
  return element;
}

function showEdit(turn, at) {
  const form = make("form", "edit");
  const area = make("textarea", "", undefined, { value: chat.messages[at].content, rows: 3 });
  area.setAttribute("aria-label", say(chat.messages[at].isText ? "begin" : "edit"));
  const row = make("div", "row");
  row.append(button(say("cancel"), () => showLog()), make("button", "", say(isBase() ? "go" : "send")));
  form.append(area, row);
  form.onsubmit = (event) => {
    event.preventDefault();
    if (area.value.trim() || isBase()) edit(at, area.value);
  };
  area.onkeydown = (event) => {
    if (isEnter(event)) form.requestSubmit();
    if (event.key === "Escape" && !event.isComposing) showLog();
  };
  turn.replaceChildren(form);
  area.focus();
}

function showChats() {
  const sorted = [...chats.values()].sort((a, b) => b.at - a.at);
  $("chats").replaceChildren(...sorted.map((each) => {
    const item = make("li");
    const link = make("a", "", title(each), { href: `#${each.id}` });
    if (each === chat) link.setAttribute("aria-current", "page");
    const label = say("remove", title(each));
    const cross = button("×", () => remove(each), { title: label });
    cross.setAttribute("aria-label", label);
    item.append(link, cross);
    return item;
  }));
  if (!sorted.length) $("chats").append(make("li", "hint", say("none")));
}

function show() {
  const isDark = (settings.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  const labels = {
    new: isBase() ? "freshText" : "fresh", "removed-label": "removed", undo: "undo", "settings-label": "settings",
    "system-label": "system", "temperature-label": "temperature", "top-p-label": "topP", "length-label": "length",
    "seed-label": "seed", "probabilities-label": "probabilities", "probabilities-hint": "probabilitiesHint",
    defaults: "defaults", theme: isDark ? "light" : "dark", language: "other", forget: "forget", "key-label": "key",
    "key-go": "useKey", "input-label": isBase() ? "begin" : "ask", go: isBase() ? "go" : "send", stop: "stop",
  };
  for (const [id, name] of Object.entries(labels)) $(id).textContent = say(name);
  for (const [id, name] of [["log", "log"], ["model", "model"], ["menu", "menu"], ["side", "menu"], ["chats", "chats"]])
    $(id).setAttribute("aria-label", say(name));
  $("menu").textContent = "☰";
  $("input").placeholder = say(isBase() ? "begin" : "ask");
  $("system").placeholder = say("systemHint");
  $("seed").placeholder = say("random");
  $("length").placeholder = isBase() ? "256" : "1024";
  $("title").textContent = model()?.id ?? "llamita";
  $("title").classList.toggle("unseen", models.length > 1);
  $("model").hidden = models.length < 2;
  document.title = chat.messages.length ? `${title(chat)} · llamita` : "llamita";
  $("temperature").value = temperature();
  $("top-p").value = topP();
  $("temperature-value").textContent = Number($("temperature").value).toFixed(2);
  $("top-p-value").textContent = Number($("top-p").value).toFixed(2);
  $("probabilities").checked = settings.probabilities === true;
  $("system-part").hidden = isBase();
  $("removed").hidden = !removed;
  $("forget").hidden = !key;
  $("key-form").hidden = !needsKey;
  $("problem").hidden = !chat.problem;
  if (!chat.problem) $("problem").textContent = "";
  else if ($("problem").textContent !== say(...chat.problem)) $("problem").textContent = say(...chat.problem);
  $("go").hidden = chat.run !== undefined;
  $("stop").hidden = chat.run === undefined;
  $("log").setAttribute("aria-busy", String(chat.run !== undefined));
  showChats();
}

let isFollowing = true; // the end of the log, while it grows
let isScrolling = false;

function scrollDown(isForced = false) {
  if (isForced) isFollowing = true;
  if (!isFollowing || isScrolling) return;
  isScrolling = true;
  requestAnimationFrame(() => {
    isScrolling = false;
    $("log").scrollTop = $("log").scrollHeight;
  });
}

function focusInput() {
  if (matchMedia("(pointer: fine)").matches) $("input").focus({ preventScroll: true }); // else a keyboard would appear
}

function fitInput() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}

async function copy(text, element) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // only pages of https and of this machine may write to the clipboard
    const area = make("textarea", "unseen", undefined, { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    element.focus();
  }
  element.textContent = say("copied");
  $("news").textContent = say("copied");
}

// ---------------------------------------------------------------- tokens

const percent = (logprob) => `${(Math.exp(logprob) * 100).toFixed(Math.exp(logprob) < 0.0995 ? 1 : 0)} %`;
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "·") || "∅";

function showToken(element) {
  const lists = element.tokens.map((token) => {
    const list = make("ol");
    const rows = [...token.top].sort((a, b) => b[1] - a[1]).slice(0, element.tokens.length > 1 ? 3 : NUM_TOP);
    const isChosen = ([text, logprob]) => text === token.text && Math.abs(logprob - token.logprob) < 1e-3;
    if (!rows.some(isChosen)) rows.push([token.text, token.logprob]);
    list.append(...rows.map(([text, logprob]) => {
      const row = make("li", isChosen([text, logprob]) ? "chosen" : "");
      const bar = make("span", "bar");
      const fill = bar.appendChild(make("i"));
      fill.style.width = `${Math.exp(logprob) * 100}%`;
      row.append(make("span", "name", visible(text)), bar, make("span", "share", percent(logprob)));
      return row;
    }));
    return list;
  });
  const info = $("token-info");
  info.replaceChildren(...lists);
  info.hidden = false;
  const at = element.getClientRects()[0];
  const { width, height } = info.getBoundingClientRect();
  const isBelow = at.bottom + height + 8 < innerHeight;
  info.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  info.style.top = `${isBelow ? at.bottom + 6 : Math.max(8, at.top - height - 6)}px`;
}

const hideToken = () => { $("token-info").hidden = true; };

function moveToken(event) {
  const token = event.target.closest(".token");
  if (!token) return;
  const all = [...token.parentElement.querySelectorAll(".token")];
  const at = all.indexOf(token);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || !all[to]) return;
  event.preventDefault();
  token.tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

// ---------------------------------------------------------------- events

// Enter that ends the composition of an input method belongs to it; Safari sends it after the end, with code 229.
const isEnter = (event) => {
  const isIt = event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
  if (isIt) event.preventDefault();
  return isIt;
};

function showDrawer(isOpen) {
  document.body.classList.toggle("drawer", isOpen);
  document.querySelector("main").inert = isOpen;
  $("menu").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) $("new").focus();
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  ask($("input").value);
};
$("input").onkeydown = (event) => {
  if (isEnter(event) && ($("input").value.trim() || !isBase())) ask($("input").value);
};
$("input").oninput = () => {
  session.set("draft", $("input").value);
  fitInput();
};
$("stop").onclick = () => {
  chat.run?.controller.abort();
  focusInput();
};
$("new").onclick = () => {
  visit();
  showDrawer(false);
  focusInput();
};
$("chats").onclick = (event) => event.target.closest("a") && showDrawer(false);
$("undo").onclick = () => {
  save(removed);
  visit(removed.id);
  removed = undefined;
  show();
};
$("menu").onclick = () => showDrawer(true);
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  if (/[^\x20-\x7e]/.test(given)) chat.problem = ["wrongKey"]; // no header can carry it
  else if (given) {
    key = given;
    session.set("key", key);
    $("key").value = "";
    needsKey = false;
    chat.problem = undefined;
    if (models.length && chat.messages.at(-1)?.role === "user") again();
    else loadModels();
  }
  show();
};
$("forget").onclick = () => {
  key = "";
  session.set("key", "");
  show();
};
$("model").onchange = () => {
  chat.problem = undefined;
  change({ model: $("model").value });
  showLog();
};
$("theme").onclick = () => change({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" });
$("language").onclick = () => {
  language = language === "zh" ? "en" : "zh";
  change({ language });
  showLog();
};
$("temperature").oninput = () => change({ temperature: Number($("temperature").value) });
$("top-p").oninput = () => change({ topP: Number($("top-p").value) });
$("length").oninput = () => change({ length: Number($("length").value) > 0 ? Number($("length").value) : undefined });
$("seed").oninput = () => change({ seed: $("seed").value.trim() });
$("system").oninput = () => change({ system: $("system").value });
$("probabilities").onchange = () => {
  change({ probabilities: $("probabilities").checked });
  showLog();
};
$("defaults").onclick = () => {
  $("length").value = $("seed").value = "";
  change({ temperature: undefined, topP: undefined, length: undefined, seed: undefined });
};
$("log").onscroll = () => {
  if (document.activeElement.matches(".token")) showToken(document.activeElement);
  else hideToken();
  isFollowing = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 40;
};
$("log").onpointerover = (event) => (event.target.closest(".token") ? showToken(event.target) : hideToken());
$("log").onpointerleave = hideToken;
$("log").onclick = (event) => event.target.closest(".token") && showToken(event.target);
$("log").onkeydown = moveToken;
$("log").addEventListener("focusin", (event) => {
  if (!event.target.matches(".token")) return;
  showToken(event.target);
  $("news").textContent = [...$("token-info").querySelectorAll("li")]
    .map((row) => `${row.querySelector(".name").textContent} ${row.querySelector(".share").textContent}`).join(", ");
});
$("log").addEventListener("focusout", hideToken);
document.onclick = (event) => {
  if (document.body.classList.contains("drawer") && !event.target.closest("#side, #menu")) showDrawer(false);
};
document.onkeydown = (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  if (document.body.classList.contains("drawer")) {
    showDrawer(false);
    $("menu").focus();
  } else if (!$("token-info").hidden) hideToken();
  else chat.run?.controller.abort();
};
prefersDark.onchange = show;
window.onpopstate = openChat;
window.onresize = () => {
  fitInput();
  scrollDown();
  if (getComputedStyle($("menu")).display === "none") showDrawer(false);
};
window.onpagehide = () => chats.forEach((each) => each.run && save(each));
window.onstorage = ({ key: name }) => { // of another tab
  if (!name?.startsWith(`${PREFIX}chat:`)) return;
  const id = name.slice(PREFIX.length + 5);
  if (chats.get(id)?.run) return;
  const found = readChat(id);
  if (found) chats.set(id, found);
  else chats.delete(id);
  if (found && id === chat.id) {
    chat = found;
    showLog();
  }
  show();
};

readChats();
$("input").value = session.get("draft");
$("system").value = settings.system ?? "";
$("length").value = settings.length ?? "";
$("seed").value = settings.seed ?? "";
$("settings").open = settings.probabilities === true;
openChat();
show();
fitInput();
loadModels().then(() => ($("log").scrollTop = $("log").scrollHeight));
focusInput();
