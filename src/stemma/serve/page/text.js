// The view for models without a chat form: one text that you and the model write in turns.
//
// The text is a field that can be edited anywhere. Behind it lies the same text without colour,
// whose parts by the model are shaded; it also gives the field its height.

import { make } from "./markdown.js";
import { newVersion, statusOf } from "./server.js";

const TOKENS = 256; // at most in one go, where nothing is set: there is no end of a turn to wait for

const byId = (id) => document.getElementById(id);

/** The text between two places, as spans that keep who wrote them. */
function cut(spans, from, to) {
  const found = [];
  let at = 0;
  for (const { by, text } of spans) {
    const part = text.slice(Math.max(0, from - at), Math.max(0, to - at));
    if (part) found.push({ by, text: part });
    at += text.length;
  }
  return found;
}

function join(spans) {
  return spans.map((span) => span.text).join("");
}

function merged(spans) {
  const found = [];
  for (const { by, text } of spans) {
    if (found.at(-1)?.by === by) found.at(-1).text += text;
    else found.push({ by, text });
  }
  return found;
}

/** The spans after an edit: what was typed is the user's, the rest is whose it was. */
function edited(spans, now) {
  const old = join(spans);
  const shorter = Math.min(old.length, now.length);
  let head = 0;
  while (head < shorter && old[head] === now[head]) head += 1;
  let tail = 0;
  while (tail < shorter - head && old[old.length - 1 - tail] === now[now.length - 1 - tail]) tail += 1;
  const typed = { by: "you", text: now.slice(head, now.length - tail) };
  const all = [...cut(spans, 0, head), typed, ...cut(spans, old.length - tail, old.length)];
  return merged(all.filter((span) => span.text));
}

// The view

const sheet = byId("sheet");
const mirror = byId("sheet-mirror");
const scroll = byId("text-scroll");
let before = null; // the spans that the latest continuation went on from, while it is as it came
let version = null; // of that continuation
let tries = 0;
let skipped = 0; // characters at the beginning that the model is not shown
let page = null; // what chat.js lends: its state, and `run`, `save`, `notice`, …

function paint() {
  const { spans } = page.conversation();
  mirror.replaceChildren(...spans.map(({ by, text }) => (by === "model" ? make("mark", {}, text) : text)), "\n");
  const now = join(spans);
  if (sheet.value !== now) sheet.value = now;
}

function show() {
  const running = Boolean(page.running());
  paint();
  sheet.readOnly = running;
  byId("text-go").hidden = running;
  byId("text-stop").hidden = !running;
  for (const id of ["text-undo", "text-again"]) byId(id).disabled = running || !before;
  byId("text-status").textContent = version && !running ? statusOf(version, page.model()?.context) : "";
}

function grown() {
  const near = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  paint();
  if (near) scroll.scrollTop = scroll.scrollHeight;
}

async function goOn() {
  if (!page.ready()) return;
  const conversation = page.conversation();
  const base = conversation.spans;
  const earlier = version;
  const { max_completion_tokens: most, ...chosen } = page.sampling();
  version = newVersion(page.seedFor(tries), page.model().id);
  let frame = 0;
  const changed = () => {
    conversation.spans = [...base, { by: "model", text: version.content }];
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      grown();
    });
  };
  const body = { ...chosen, prompt: join(base).slice(skipped), max_tokens: most ?? TOKENS };
  const fault = await page.run(version, "v1/completions", body, changed);
  if (conversation !== page.conversation()) return;
  // a refused continuation leaves the last one as it was: it can still be taken back
  if (version.content) before = base;
  else version = earlier;
  page.show();
  page.save();
  sheet.focus();
  sheet.setSelectionRange(sheet.value.length, sheet.value.length);
  if (fault) page.complain(fault, goOn, tooLong);
}

function tooLong() {
  const left = join(page.conversation().spans).length - skipped;
  const leave = () => {
    skipped += Math.ceil(left / 4);
    goOn();
  };
  if (skipped) leave();
  else page.notice("The text is too long for the model.", { "Go on from its last part": leave });
}

function takeBack() {
  page.conversation().spans = before;
  before = version = null;
  page.show();
  page.save();
}

sheet.addEventListener("input", () => {
  const conversation = page.conversation();
  conversation.spans = edited(conversation.spans, sheet.value);
  before = version = null;
  tries = skipped = 0;
  show();
  page.save();
});
sheet.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  event.preventDefault();
  advance();
});

function advance() {
  tries = 0;
  goOn();
}

byId("text-bar").addEventListener("submit", (event) => {
  event.preventDefault();
  advance();
});
byId("text-stop").addEventListener("click", () => page.stop());
byId("text-undo").addEventListener("click", takeBack);
byId("text-again").addEventListener("click", () => {
  takeBack();
  tries += 1;
  goOn();
});

function begin() {
  before = version = null;
  tries = skipped = 0;
  show();
}

/** Takes over the view, and gives what chat.js needs of it. */
export function mountText(lent) {
  page = lent;
  return { show, begin, tokens: TOKENS };
}
