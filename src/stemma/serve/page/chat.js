// The chat page: what is shown and remembered, and what a button or a key does.
//
// A conversation is a list of turns; an answer has versions, one of them shown. The page is brought
// up to date from that list alone (`show`); an answer being written adds to its own node only.

import { Markdown, copyButton, icon, make } from "./markdown.js";
import { ServerError, keep, listModels, newVersion, recall, setKey, statusOf, write } from "./server.js";
import { mountText } from "./text.js";

const QUESTIONS = [
  "What is a hash table? Explain it with a short example.",
  "Write a haiku about the sea in winter.",
  "What should I look at when I choose a bicycle?",
];
const SEEDS = 2 ** 31; // drawn from; a seed that is typed may be larger
const SAVE_EVERY = 500; // milliseconds, while an answer is being written
const NEAR = 8; // pixels from the end that still count as being there
const SPOKEN = 2000; // characters of an answer that are read aloud

const byId = (id) => document.getElementById(id);
const list = byId("turns");
const prompt = byId("prompt");
const panel = byId("panel");
const narrow = matchMedia("(max-width: 52rem)");

// What is remembered: settings for good, the conversation for as long as the tab is open.

const settings = { model: "", theme: "auto", system: "", sampling: {}, ...recall("localStorage", "settings", {}) };
let conversation = { ...empty(), ...recall("sessionStorage", "conversation", {}) };
let models = [];
let model = null;
let running = null; // the AbortController of the answer that is being written
let editing = false;
let earlier = null; // the conversation before the button for a new one was pressed
let savedAt = 0;

/** `start`: the first turn the model is shown; `leaving`: it may be moved on without asking. */
function empty() {
  return { turns: [], start: 0, leaving: false, spans: [] };
}

function save() {
  savedAt = performance.now();
  keep("sessionStorage", "conversation", conversation);
}

/** Answers that were being written when the page was left stay as far as they had come. */
function settle() {
  for (const turn of conversation.turns) {
    turn.versions = turn.versions?.filter((version) => version.content || version.ended === "stop");
    for (const version of turn.versions ?? []) version.ended ??= "broken";
    if (turn.versions) turn.shown = Math.min(turn.shown, turn.versions.length - 1);
  }
  conversation.turns = conversation.turns.filter((turn) => turn.role === "user" || turn.versions.length);
}

// Turns and what the model is told of them

function contentOf(turn) {
  return turn.role === "user" ? turn.content : turn.versions[turn.shown].content;
}

/** The messages before a turn; an answer without words is none, so two of the user's may meet. */
function messagesBefore(turn) {
  const { turns, start } = conversation;
  const sent = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const { role, content } of turns.slice(start, turns.indexOf(turn)).map(told)) {
    const before = sent.at(-1);
    if (!content) continue;
    if (before?.role === role) before.content += `\n\n${content}`;
    else sent.push({ role, content });
  }
  return sent;
}

function told(turn) {
  return { role: turn.role, content: contentOf(turn) };
}

const views = new WeakMap();

function viewOf(turn) {
  if (views.has(turn)) return views.get(turn);
  const mine = turn.role === "user";
  const body = make("div", { className: "body" });
  const foot = make("div", { className: "foot" });
  const seam = make("p", { className: "seam", textContent: "The model no longer sees what is above." });
  const name = make("h2", { className: "unseen", textContent: mine ? "You" : "Answer" });
  const element = make("li", { className: `turn ${turn.role}` }, seam, name, body, foot);
  const view = { element, body, foot, seam, markdown: new Markdown(body, { fencesOnly: mine }) };
  views.set(turn, view);
  return view;
}

function toolButton(act, label, picture, press) {
  const button = make("button", { type: "button", className: "tool", title: label }, icon(picture));
  button.setAttribute("aria-label", label);
  button.dataset.act = act;
  button.addEventListener("click", press);
  return button;
}

function userTools(turn) {
  const tools = [copyButton("Copy the message", () => turn.content)];
  const latest = conversation.turns.findLast((other) => other.role === "user");
  if (turn === latest) tools.unshift(toolButton("edit", "Edit and send again", "edit", startEditing));
  return tools;
}

function answerTools(turn, last) {
  const version = turn.versions[turn.shown];
  const tools = [copyButton("Copy the answer", () => version.content)];
  if (last) tools.push(toolButton("again", "Answer again", "again", reply));
  if (last && turn.versions.length > 1) tools.unshift(...arrows(turn));
  const from = models.length > 1 ? `${version.model} · ` : "";
  tools.push(make("span", { className: "status", textContent: from + statusOf(version, contextOf(version)) }));
  if (last && version.ended === "length") {
    const more = make("button", { type: "button", className: "link", textContent: "Continue" });
    more.addEventListener("click", () => submit("Please continue."));
    tools.push(more);
  }
  return tools;
}

function contextOf(version) {
  return models.find((one) => one.id === version.model)?.context;
}

function arrows(turn) {
  const count = turn.versions.length;
  const turnTo = (step) => () => {
    turn.shown = Math.min(count - 1, Math.max(0, turn.shown + step));
    show();
    save();
  };
  const back = toolButton("back", "Earlier version", "earlier", turnTo(-1));
  const on = toolButton("on", "Later version", "later", turnTo(1));
  // aria-disabled leaves the focus where it is when the end is reached
  back.setAttribute("aria-disabled", turn.shown === 0);
  on.setAttribute("aria-disabled", turn.shown === count - 1);
  return [back, make("span", { className: "place", textContent: `${turn.shown + 1} / ${count}` }), on];
}

/** Puts new tools at the foot of a turn; the one that has the focus keeps it. */
function fill(foot, tools) {
  const act = foot.contains(document.activeElement) ? document.activeElement.dataset.act : null;
  foot.replaceChildren(...tools);
  if (act) (foot.querySelector(`[data-act="${act}"]`) ?? prompt).focus();
}

function refresh(turn, place) {
  const { turns, start } = conversation;
  const last = place === turns.length - 1;
  const writing = Boolean(running) && last && turn.role === "assistant";
  const view = viewOf(turn);
  view.seam.hidden = place !== start || start === 0;
  view.element.classList.toggle("unsent", place < start);
  view.element.classList.toggle("writing", writing);
  view.element.setAttribute("aria-busy", writing);
  view.markdown.update(contentOf(turn));
  view.body.classList.toggle("blank", !writing && !contentOf(turn));
  if (running) view.foot.replaceChildren();
  else fill(view.foot, turn.role === "user" ? userTools(turn) : answerTools(turn, last));
}

/** Brings the page up to date with the conversation. */
function show() {
  const { turns } = conversation;
  const nodes = turns.map((turn) => viewOf(turn).element);
  nodes.forEach((node, place) => {
    if (list.children[place] !== node) list.insertBefore(node, list.children[place] ?? null);
  });
  while (list.children.length > nodes.length) list.lastElementChild.remove();
  turns.forEach(refresh);
  showWelcome();
  showSystem();
  showComposer();
  text.show();
  follow();
}

function showWelcome() {
  const welcome = byId("welcome");
  welcome.hidden = conversation.turns.length > 0 || !model;
  if (welcome.hidden) return;
  const context = model.context ? `It reads and writes ${model.context.toLocaleString("en")} tokens at most.` : "";
  const ask = (question) => {
    const button = make("button", { type: "button", className: "question", textContent: question });
    button.addEventListener("click", () => submit(question));
    return make("li", {}, button);
  };
  const questions = make("ul", {}, ...QUESTIONS.map(ask));
  welcome.replaceChildren(make("h2", { textContent: model.id }), make("p", { textContent: context }), questions);
  if (!earlier) return;
  const back = make("button", { type: "button", className: "link", textContent: "Back to the earlier conversation" });
  back.addEventListener("click", () => begin(earlier));
  welcome.append(back);
}

function showSystem() {
  const note = byId("system-note");
  note.hidden = !settings.system.trim();
  note.textContent = `System prompt: ${settings.system.trim()}`;
}

function showComposer() {
  byId("stop").hidden = !running;
  byId("send").hidden = Boolean(running);
  byId("send").disabled = !prompt.value.trim() || !model;
  byId("editing").hidden = !editing;
}

// Scrolling: the end stays in view until the reader goes up.

const scroll = byId("scroll");
let following = true;
let scrolledTo = 0;

scroll.addEventListener("scroll", () => {
  const below = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight;
  if (scroll.scrollTop < scrolledTo && below > 1) following = false;
  else if (below <= NEAR) following = true;
  scrolledTo = scroll.scrollTop;
  byId("latest").hidden = following;
});

// a wheel moves the page over several frames, in which an answer that grows would pull it back
scroll.addEventListener("wheel", (event) => {
  if (event.deltaY < 0 && scroll.scrollTop > 0) following = false;
}, { passive: true });

function follow() {
  if (!following) return;
  scroll.scrollTop = scroll.scrollHeight;
  scrolledTo = scroll.scrollTop;
}

// what is above may grow by more than an answer: a panel opens, a window is made narrow
new ResizeObserver(follow).observe(scroll);
new ResizeObserver(follow).observe(list);

byId("latest").addEventListener("click", () => {
  following = true;
  follow();
  prompt.focus();
});

// Answers

/** Seeds of further versions follow a seed that is typed; else each is drawn. */
function seedFor(place) {
  const typed = byId("seed").value;
  return typed ? Number(typed) + place : Math.floor(Math.random() * SEEDS);
}

/** Has one answer written into a version; returns the ServerError that ended it, or null. */
async function run(version, path, body, changed) {
  running = new AbortController();
  notice("");
  byId("spoken").textContent = "The answer is being written.";
  show();
  try {
    await write(version, path, { model: model.id, seed: version.seed, ...body }, running.signal, () => {
      changed();
      if (performance.now() - savedAt > SAVE_EVERY) save();
    });
    return null;
  } catch (fault) {
    if (fault instanceof ServerError) return fault;
    throw fault;
  } finally {
    running = null;
    byId("spoken").textContent = version.content.slice(0, SPOKEN);
  }
}

let drawing = 0;

function draw(turn) {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    viewOf(turn).markdown.update(contentOf(turn));
    follow();
  });
}

/** Answers the latest message; where there is an answer, as a further version of it. */
async function reply() {
  const { turns } = conversation;
  if (running || !model || !settingsFit()) return;
  if (turns.at(-1).role === "user") turns.push({ role: "assistant", versions: [], shown: 0 });
  const turn = turns.at(-1);
  const version = newVersion(seedFor(turn.versions.length), model.id);
  const before = turn.shown;
  turn.shown = turn.versions.push(version) - 1;
  following = true;
  const asked = { ...sampling(), messages: messagesBefore(turn) };
  const fault = await run(version, "v1/chat/completions", asked, () => draw(turn));
  if (!version.content && version.ended !== "stop" && version.ended !== "length") {
    turn.versions.pop();
    turn.shown = before;
    if (!turn.versions.length) turns.pop();
    if (!fault && turns === conversation.turns) notice("Stopped before the first word.", { "Answer again": reply });
  }
  show();
  save();
  if (fault && turns === conversation.turns) complain(fault, reply, tooLong);
}

function submit(content) {
  const { turns } = conversation;
  if (running || !model || !content.trim() || !settingsFit()) return;
  if (editing) turns.length = turns.findLastIndex((turn) => turn.role === "user");
  conversation.start = Math.min(conversation.start, turns.length);
  turns.push({ role: "user", content });
  editing = false;
  compose("");
  reply();
}

function tooLong() {
  const { turns, start } = conversation;
  const asked = [...turns.keys()].filter((place) => place >= start && turns[place].role === "user");
  if (asked.length < 2) {
    notice("This message alone is too long for the model. Shorten it, or the system prompt.", { "Edit it": startEditing });
    return;
  }
  const leave = () => {
    // half of them, so that the answer has room too
    conversation.start = asked[Math.ceil(asked.length / 2)] ?? asked.at(-1);
    conversation.leaving = true;
    reply();
  };
  if (conversation.leaving) leave();
  else notice("The conversation is too long for the model.", { "Leave out the oldest turns": leave });
}

/** Says what went wrong, and offers what may help. */
function complain(fault, again, onTooLong) {
  if (fault.status === 401) askKey(again);
  else if (fault.code === "context_length_exceeded") onTooLong();
  else if (fault.status === 429) {
    const wait = fault.wait ? ` Try again in about ${fault.wait} seconds.` : "";
    notice(`The server is busy with other requests.${wait}`, { "Try again": again });
  } else notice(sentence(fault.message), { "Try again": again });
}

function sentence(words) {
  return `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
}

function notice(words, actions = {}) {
  const place = byId("notice");
  place.hidden = !words;
  const buttons = Object.entries(actions).map(([label, act]) => {
    const button = make("button", { type: "button", className: "plain", textContent: label });
    button.addEventListener("click", () => {
      notice("");
      act();
    });
    return button;
  });
  if (words) buttons.push(toolButton("close", "Close this note", "close", () => notice("")));
  place.replaceChildren(make("p", { textContent: words }), ...buttons);
}

// The key

let afterKey = null;

function askKey(again) {
  afterKey = again;
  byId("key").value = "";
  byId("key-dialog").showModal();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  byId("key-fault").textContent = "The server did not take that key.";
  byId("key-dialog").close();
  afterKey();
});

function leaveKey() {
  byId("key-dialog").close();
  notice("The server answers nobody without a key.", { "Give the key": () => askKey(afterKey) });
}

byId("key-cancel").addEventListener("click", leaveKey);
byId("key-dialog").addEventListener("cancel", leaveKey);

// The composer

function compose(words) {
  prompt.value = words;
  grow();
  showComposer();
}

/** The field is as high as its twin, which holds the same words. */
function grow() {
  byId("prompt-mirror").textContent = `${prompt.value}\n`;
}

function startEditing() {
  const turn = conversation.turns.findLast((other) => other.role === "user");
  editing = true;
  compose(turn.content);
  prompt.focus();
}

function stopEditing() {
  editing = false;
  compose("");
  prompt.focus();
}

byId("cancel-edit").addEventListener("click", stopEditing);
byId("stop").addEventListener("click", stop);

function stop() {
  running?.abort();
  prompt.focus();
}

prompt.addEventListener("input", () => {
  grow();
  showComposer();
});

prompt.addEventListener("keydown", (event) => {
  // while a word is being composed, Enter chooses it; keyCode says so where isComposing does not
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  if (matchMedia("(pointer: coarse)").matches) return; // no Shift on the keyboard of a phone
  event.preventDefault();
  submit(prompt.value);
});

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(prompt.value);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || byId("key-dialog").open) return;
  if (running) stop();
  else if (!panel.hidden && (narrow.matches || panel.contains(event.target))) openPanel(false);
  else if (editing) stopEditing();
});

function begin(other) {
  running?.abort();
  earlier = conversation.turns.length || conversation.spans.length ? conversation : null;
  conversation = other;
  editing = false;
  notice("");
  show();
  save();
  text.begin();
}

byId("new").addEventListener("click", () => {
  begin(empty());
  (model?.chat === false ? byId("sheet") : prompt).focus();
});

// Settings

function sampling() {
  const chosen = {};
  for (const field of byId("sampling").elements) {
    if (!field.name || !field.value.trim() || field.name === "seed") continue;
    chosen[field.name] = field.name === "stop" ? stopStrings(field.value) : Number(field.value);
  }
  return chosen;
}

function stopStrings(typed) {
  const strings = typed.split("\n").map((line) => line.replaceAll("\\n", "\n"));
  return strings.filter((string) => string !== "");
}

/** Whether every field holds what can be sent; shows the first that does not. */
function settingsFit() {
  const form = byId("sampling");
  if (form.checkValidity()) return true;
  openPanel(true);
  return form.reportValidity();
}

function openPanel(open) {
  panel.hidden = !open;
  byId("settings").setAttribute("aria-expanded", open);
  covered();
  (open ? byId("close-panel") : byId("settings")).focus();
}

/** On a phone the panel covers the page, which then cannot be reached. */
function covered() {
  const under = !panel.hidden && narrow.matches;
  byId("main").inert = under;
  document.querySelector(".bar").inert = under;
}

narrow.addEventListener("change", covered);
byId("settings").addEventListener("click", () => openPanel(panel.hidden));
byId("close-panel").addEventListener("click", () => openPanel(false));
byId("system-note").addEventListener("click", () => {
  openPanel(true);
  byId("system").focus();
});

function keepSettings() {
  for (const field of byId("sampling").elements) {
    if (field.name) settings.sampling[field.name] = field.value;
  }
  settings.system = byId("system").value;
  settings.theme = byId("themes").querySelector(":checked").value;
  document.documentElement.dataset.theme = settings.theme;
  keep("localStorage", "settings", settings);
  showSystem();
}

function fillSettings() {
  for (const field of byId("sampling").elements) {
    if (field.name) field.value = settings.sampling[field.name] ?? "";
  }
  byId("system").value = settings.system;
  const chosen = [...byId("themes").elements].find((field) => field.value === settings.theme);
  if (chosen) chosen.checked = true;
  keepSettings();
}

panel.addEventListener("input", keepSettings);
byId("sampling").addEventListener("submit", (event) => event.preventDefault());
byId("reset-sampling").addEventListener("click", () => {
  byId("sampling").reset();
  keepSettings();
});

// Models

function choose(id) {
  model = models.find((one) => one.id === id) ?? models[0];
  settings.model = model.id;
  keep("localStorage", "settings", settings);
  document.title = `${model.id} · Stemma`;
  byId("model").value = model.id;
  byId("model-name").textContent = model.id;
  for (const [name, value] of Object.entries(model.defaults ?? {})) {
    const field = byId("sampling").elements[name];
    if (field) field.placeholder = value;
  }
  for (const id of ["chat", "composer", "system-field"]) byId(id).hidden = !model.chat;
  for (const id of ["text", "text-bar"]) byId(id).hidden = model.chat;
  byId("max_completion_tokens").placeholder = model.chat ? "no limit" : text.tokens;
  show();
}

byId("model").addEventListener("change", () => choose(byId("model").value));

async function start() {
  try {
    models = await listModels();
  } catch (fault) {
    return complain(fault, start);
  }
  const names = models.map((one) => make("option", { value: one.id, textContent: one.id }));
  byId("model").replaceChildren(...names);
  byId("model").hidden = models.length < 2;
  byId("model-name").hidden = models.length > 1;
  choose(settings.model);
  if (!narrow.matches) (model.chat ? prompt : byId("sheet")).focus();
}

const text = mountText({
  conversation: () => conversation,
  running: () => running,
  model: () => model,
  ready: () => !running && model && settingsFit(),
  seedFor,
  run,
  sampling,
  save,
  notice,
  complain,
  show,
  stop,
});

window.addEventListener("pagehide", save);
settle();
fillSettings();
show();
start();
