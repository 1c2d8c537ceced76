// How the page talks with the server: the models it has, and answers as they are written.
//
// The key, where the server wants one, is kept for this tab alone and sent in a header only.

/** What was kept under a name; `otherwise` where that is nothing, or nothing that can be read. */
export function recall(storage, name, otherwise) {
  try {
    return JSON.parse(window[storage].getItem(`stemma.${name}`)) ?? otherwise;
  } catch {
    return otherwise; // switched off, or written by something else
  }
}

export function keep(storage, name, value) {
  try {
    window[storage].setItem(`stemma.${name}`, JSON.stringify(value));
  } catch {
    // switched off or full: the page works without a memory
  }
}

let key = recall("sessionStorage", "key", "");

export function setKey(value) {
  key = value;
  keep("sessionStorage", "key", value);
}

export class ServerError extends Error {
  constructor(message, { status = 0, code = null, wait = null } = {}) {
    super(message);
    this.status = status; // of HTTP; 0 where no answer came, or it broke off
    this.code = code;
    this.wait = wait; // seconds that the server asks to wait
  }
}

async function refusal(response) {
  const told = await response.json().catch(() => ({}));
  const error = told?.error ?? {};
  return new ServerError(error.message ?? `The server answered with status ${response.status}.`, {
    status: response.status,
    code: error.code ?? null,
    wait: Number(response.headers.get("Retry-After")) || null,
  });
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The models of the server, one at least. */
export async function listModels() {
  const response = await ask("v1/models");
  const { data } = parsed(await response.text());
  if (!data?.length) throw new ServerError("The server has no model to talk with.");
  return data;
}

/** JSON from the server, or from whatever stands between. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ServerError("What came is no answer of this server. Is a proxy in between?");
  }
}

async function* linesOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      yield* lines;
    }
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new ServerError("The connection broke off.");
  } finally {
    reader.cancel().catch(() => {}); // a stream that has failed has nothing left to cancel
  }
}

/** The chunks of one answer: `{text}`, `{finish}` and `{usage}`, in the order they arrive. */
async function* answer(path, body, signal) {
  const response = await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const line of linesOf(response.body)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new ServerError(chunk.error.message, { code: chunk.error.code });
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content ?? choice?.text;
    if (text) yield { text };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  throw new ServerError("The connection broke off.");
}

export function newVersion(seed, model) {
  return { content: "", ended: null, seed, model, tokens: null, used: null, seconds: null, rate: null };
}

/**
 * Reads one answer into a version and calls `changed` whenever text has come. The version says how
 * it ended: stop, length, stopped (by the signal) or broken; a broken one throws its ServerError.
 */
export async function write(version, path, body, signal, changed) {
  const started = performance.now();
  let first = null;
  try {
    for await (const part of answer(path, body, signal)) {
      first ??= performance.now();
      if (part.text) version.content += part.text;
      if (part.finish) version.ended = part.finish;
      if (part.usage) version.tokens = part.usage.completion_tokens;
      if (part.usage) version.used = part.usage.total_tokens;
      if (part.text) changed();
    }
    const writing = (performance.now() - first) / 1000;
    if (version.tokens > 1 && writing > 0.05) version.rate = (version.tokens - 1) / writing; // less is no measure
  } catch (fault) {
    version.ended = fault.name === "AbortError" ? "stopped" : "broken";
    if (version.ended === "broken") throw fault;
  } finally {
    version.seconds = (performance.now() - started) / 1000;
  }
}

const ENDS = { length: "cut at the limit", stopped: "stopped", broken: "broken off" };

/** One line about an answer: its length, speed and seed, and why it ended where that is unusual. */
export function statusOf(version, context) {
  const words = [];
  if (version.tokens !== null) words.push(`${version.tokens.toLocaleString("en")} tokens`);
  if (version.rate) words.push(`${version.rate.toFixed(1)} tokens/s`);
  if (version.seconds !== null) words.push(`${version.seconds.toFixed(1)} s`);
  words.push(`seed ${version.seed}`);
  if (version.used && context) words.push(`${Math.round((100 * version.used) / context)} % of the context`);
  if (ENDS[version.ended]) words.push(ENDS[version.ended]);
  return words.map((word) => word.replaceAll(" ", "\u00a0")).join(" · "); // wraps at the dots only
}
