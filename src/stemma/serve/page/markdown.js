// Markdown to nodes, for text that nobody has checked and that is still being written.
//
// Nodes are made one by one and text is only ever text, so nothing in an answer is run or loaded:
// HTML is shown as it was written, a picture as its words and its address, and a link leads to the
// web or to mail or is no link. The work is linear in the text: nesting is limited, and of a text
// that grows only the last block is read again.

const DEEPEST = 12; // quotes and lists within each other; deeper ones are text
const MOST_COLUMNS = 64; // of a table: short rows are filled up, so a wide one could be made of little
const MOST_OPEN = 24; // brackets and marks of emphasis that may be open at once
const LONGEST_ADDRESS = 300; // of a picture, whose address may hold the picture itself

export function make(name, properties = {}, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  // afterwards: a node with dir="auto" looks for a letter in all of its text at each child it gets
  return Object.assign(node, properties);
}

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("aria-hidden", "true");
  picture.append(document.createElementNS(space, "use"));
  picture.firstChild.setAttribute("href", `#icon-${name}`);
  return picture;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // no clipboard on a page that came over plain http from another machine
  const field = make("textarea", { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** A button that copies what `text()` gives when it is pressed. */
export function copyButton(label, text) {
  const button = make("button", { type: "button", title: label, className: "tool" }, icon("copy"));
  button.setAttribute("aria-label", label);
  button.dataset.act = "copy";
  button.addEventListener("click", async () => {
    await copy(text());
    button.replaceChildren(icon("done"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/** Shows a text inside an element, and goes on where it was when the text has grown. */
export class Markdown {
  constructor(element, { fencesOnly = false } = {}) {
    this.element = element;
    this.readers = fencesOnly ? [readFence] : READERS;
    this.text = "";
    this.from = 0; // where the last block begins in the text
    this.kept = 0; // how many blocks, one node each, are before it
  }

  update(given) {
    const text = given.replace(/\r\n?/g, "\n");
    if (text === this.text) return;
    if (!text.startsWith(this.text)) this.from = this.kept = 0;
    this.text = text;
    const lines = text.slice(this.from).split("\n");
    const found = parse(lines, 0, this.readers);
    let place = this.kept;
    for (const { node } of found) {
      const shown = this.element.children[place];
      if (!shown) this.element.append(node);
      else if (isCode(shown) && isCode(node)) growCode(shown, node);
      else if (!shown.isEqualNode(node)) shown.replaceWith(node);
      place += 1;
    }
    while (this.element.children.length > place) this.element.lastChild.remove();
    const closed = closedBlocks(found, lines);
    this.kept += closed;
    if (closed) this.from += lengthOf(lines.slice(0, found[closed].line));
  }
}

/**
 * How many blocks no later text can change: all before the last. While the first line of that one
 * is still being written it may yet turn out to go on with the block before.
 */
function closedBlocks(found, lines) {
  const last = found.length - 1;
  return Math.max(0, found[last]?.line === lines.length - 1 ? last - 1 : last);
}

function lengthOf(lines) {
  return lines.reduce((sum, line) => sum + line.length + 1, 0);
}

// Blocks. A reader takes the lines and a place, and gives the node and where it ends, or null.

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*))?$/;

const READERS = [readFence, readHeading, readRule, readQuote, readTable, readList];

function parse(lines, depth, readers = READERS) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const { node, end } = readBlock(lines, at, depth, readers) ?? readParagraph(lines, at, depth, readers);
    blocks.push({ node, line: at });
    at = end;
  }
  return blocks;
}

function readBlock(lines, at, depth, readers) {
  for (const reader of readers) {
    const block = reader(lines, at, depth);
    if (block) return block;
  }
  return null;
}

function readParagraph(lines, at, depth, readers) {
  const plain = readers !== READERS;
  let end = at + 1;
  while (end < lines.length && !(plain ? FENCE.test(lines[end]) : endsParagraph(lines, end, depth))) end += 1;
  if (plain) {
    const text = lines.slice(at, end).join("\n").trimEnd();
    return { node: make("p", { dir: "auto", className: "typed" }, text), end };
  }
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  const node = make("p");
  for (const part of inline(text)) node.append(part); // too many for the arguments of one call
  node.dir = "auto"; // afterwards, as in make
  return { node, end };
}

function endsParagraph(lines, at, depth) {
  return Boolean(tableHead(lines, at)) || beginsAnother(lines[at], depth);
}

/** Whether a line begins another block, whatever follows it: then it also ends a table. */
function beginsAnother(line, depth) {
  if (!line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth >= DEEPEST) return false;
  // a number in the middle of a sentence may begin a line: only 1. begins a list there
  const item = ITEM.exec(line);
  return QUOTE.test(line) || Boolean(item?.[4] && (!/\d/.test(item[2]) || parseInt(item[2]) === 1));
}

function readFence(lines, at) {
  const opened = FENCE.exec(lines[at]);
  if (!opened) return null;
  const [, indent, mark, words] = opened;
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).map((line) => unindent(line, indent.length)).join("\n");
  return { node: codeBlock(words.trim().split(/\s/)[0].slice(0, 30), text), end: end + 1 };
}

function codeBlock(language, text) {
  const code = make("code", { textContent: text });
  const head = make("figcaption", {}, make("span", { textContent: language || "text" }));
  head.append(copyButton("Copy the code", () => code.textContent));
  return make("figure", { className: "code" }, head, make("pre", { tabIndex: 0 }, code));
}

function isCode(node) {
  return node?.className === "code";
}

/** Gives the old node the new text: its button can be pressed and its lines scrolled meanwhile. */
function growCode(old, fresh) {
  for (const part of ["span", "code"]) {
    old.querySelector(part).textContent = fresh.querySelector(part).textContent;
  }
}

function readHeading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  const text = (found[2] ?? "").trim().replace(/(^|[ \t])#+$/, "");
  // the page's own headings are above those of an answer
  const level = Math.min(6, found[1].length + 2);
  return { node: make(`h${level}`, { dir: "auto" }, ...inline(text)), end: at + 1 };
}

function readRule(lines, at) {
  return RULE.test(lines[at]) ? { node: make("hr"), end: at + 1 } : null;
}

function readQuote(lines, at, depth) {
  if (depth >= DEEPEST || !QUOTE.test(lines[at])) return null;
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  const nodes = parse(inner, depth + 1).map((block) => block.node);
  return { node: make("blockquote", {}, ...nodes), end };
}

function cells(line) {
  const row = line.trim().replace(/^\|/, "").split(/(?<!\\)\|/);
  if (row.length > 1 && !row.at(-1).trim()) row.pop(); // the bar that ends a row
  return row.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function tableHead(lines, at) {
  const rule = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !rule.includes("-") || !/^[ \t|:-]+$/.test(rule)) return null;
  const names = cells(lines[at]);
  const rules = cells(lines[at + 1]);
  if (names.length !== rules.length || rules.length > MOST_COLUMNS) return null;
  return rules.every((each) => /^:?-+:?$/.test(each)) ? { names, rules } : null;
}

function sideOf(rule) {
  if (rule.endsWith(":")) return rule.startsWith(":") ? "centred" : "right";
  return "";
}

function readTable(lines, at, depth) {
  const head = tableHead(lines, at);
  if (!head) return null;
  const row = (kind, texts) =>
    make("tr", {}, ...head.rules.map((rule, place) =>
      make(kind, { className: sideOf(rule), dir: "auto" }, ...inline(texts[place] ?? ""))));
  const body = make("tbody");
  let end = at + 2;
  while (end < lines.length && !beginsAnother(lines[end], depth)) {
    body.append(row("td", cells(lines[end])));
    end += 1;
  }
  const table = make("table", {}, make("thead", {}, row("th", head.names)), body);
  return { node: make("div", { className: "table", tabIndex: 0 }, table), end };
}

function indentOf(line) {
  let column = 0;
  for (const sign of line) {
    if (sign === " ") column += 1;
    else if (sign === "\t") column += 4 - (column % 4);
    else break;
  }
  return column;
}

function unindent(line, columns) {
  let column = 0;
  let at = 0;
  while (column < columns && (line[at] === " " || line[at] === "\t")) {
    column += line[at] === "\t" ? 4 - (column % 4) : 1;
    at += 1;
  }
  return " ".repeat(Math.max(0, column - columns)) + line.slice(at);
}

function itemOf(line) {
  const found = ITEM.exec(line);
  if (!found || RULE.test(line)) return null;
  const [, , mark, space = " ", rest = ""] = found;
  const indent = indentOf(line);
  const gap = space.length > 4 ? 1 : space.length;
  const kind = /\d/.test(mark) ? mark.at(-1) : mark;
  return { indent, mark, kind, rest, inside: indent + mark.length + gap };
}

function readList(lines, at, depth) {
  const first = itemOf(lines[at]);
  if (!first || depth >= DEEPEST) return null;
  const ordered = /\d/.test(first.mark);
  const list = make(ordered ? "ol" : "ul");
  if (ordered && parseInt(first.mark) !== 1) list.start = parseInt(first.mark);
  let item = first;
  while (item && item.kind === first.kind && item.indent <= first.indent + 1) {
    const { inner, end } = itemLines(lines, at, item);
    list.append(listItem(inner, depth));
    at = end;
    while (end < lines.length && at < lines.length && !lines[at].trim()) at += 1;
    item = at < lines.length && !RULE.test(lines[at]) ? itemOf(lines[at]) : null;
  }
  return { node: list, end: at };
}

/** The lines of one item without their indent, and where they end. */
function itemLines(lines, at, item) {
  const inner = [item.rest];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const indent = indentOf(line);
    if (!line.trim()) inner.push("");
    else if (indent >= item.inside) inner.push(unindent(line, item.inside));
    // models indent lists within lists by less than the rules want
    else if (itemOf(line) && indent > item.indent + 1) inner.push(unindent(line, indent));
    else if (itemOf(line) || !lines[end - 1].trim() || endsParagraph(lines, end, 0)) break;
    else inner.push(line.trim());
  }
  while (!lines[end - 1].trim()) end -= 1;
  return { inner, end };
}

const BOXES = { "[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ " };

function listItem(lines, depth) {
  const box = BOXES[lines[0].slice(0, 4)];
  if (box) lines[0] = box + lines[0].slice(4);
  const nodes = parse(lines, depth + 1).map((block) => block.node);
  const words = nodes[0]?.localName === "p" ? nodes.shift().childNodes : [];
  return make("li", { dir: "auto" }, ...words, ...nodes);
}

// Words. A frame is what is open: a bracket, or a mark of emphasis, with the nodes after it.
// Closing one takes the frames above it as plain text, so each node moves a few times at most.

const PLAIN = /[^\\`*_~[\]!<hH\n]+/y;
const MARKS = /\*+|_+|~+/y;
const ADDRESS = /https?:\/\/[^\s<>[\]`"|]+/iy;
const BRACED = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/iy;
// the numbers of spaces are limited, so that no text makes the search go back and forth
const TARGET = /\(\s{0,4}(<[^<>\n]*>|[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s{1,4}(?:"[^"]*"|'[^']*'))?\s{0,4}\)/y;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SAFE = new Set(["http:", "https:", "mailto:"]);

function inline(text) {
  const scan = { text, at: 0, frames: [{ nodes: [], literal: "" }], ticks: tickRuns(text) };
  while (scan.at < text.length) step(scan);
  return collapse(scan, 1);
}

function match(pattern, scan) {
  pattern.lastIndex = scan.at;
  const found = pattern.exec(scan.text);
  if (found) scan.at = pattern.lastIndex;
  return found;
}

function push(nodes, node) {
  if (typeof node === "string" && typeof nodes.at(-1) === "string") nodes[nodes.length - 1] += node;
  else if (node !== "") nodes.push(node);
}

function put(scan, node) {
  push(scan.frames.at(-1).nodes, node);
}

function take(scan, length = 1) {
  put(scan, scan.text.slice(scan.at, scan.at + length));
  scan.at += length;
}

function step(scan) {
  const plain = match(PLAIN, scan);
  if (plain) return put(scan, plain[0]);
  const sign = scan.text[scan.at];
  if (sign === "`") return readTicks(scan);
  if (sign === "*" || sign === "_" || sign === "~") return readMarks(scan);
  if (sign === "[" || scan.text.startsWith("![", scan.at)) return openBracket(scan);
  if (sign === "]") return closeBracket(scan);
  if (sign === "<" || sign === "h" || sign === "H") return readAddress(scan);
  if (sign === "\n") {
    scan.at += 1;
    return put(scan, make("br"));
  }
  if (sign === "\\" && /[!-/:-@[-`{-~]/.test(scan.text[scan.at + 1] ?? "")) scan.at += 1;
  return take(scan);
}

/** Where runs of backticks begin, by their length. */
function tickRuns(text) {
  const runs = new Map();
  for (const run of text.matchAll(/`+/g)) {
    const length = run[0].length;
    if (!runs.has(length)) runs.set(length, { places: [], next: 0 });
    runs.get(length).places.push(run.index);
  }
  return runs;
}

function readTicks(scan) {
  const length = /^`+/.exec(scan.text.slice(scan.at, scan.at + 100))[0].length;
  const runs = scan.ticks.get(length);
  while (runs && runs.places[runs.next] <= scan.at) runs.next += 1;
  const end = runs?.places[runs.next];
  if (end === undefined) return take(scan, length);
  let code = scan.text.slice(scan.at + length, end).replaceAll("\n", " ");
  if (/^ .* $/.test(code) && code.trim()) code = code.slice(1, -1);
  scan.at = end + length;
  return put(scan, make("code", { textContent: code }));
}

function flanks(scan, mark) {
  const before = scan.at ? scan.text.slice(scan.at - 2, scan.at).match(/.$/su)?.[0] ?? " " : " ";
  const after = String.fromCodePoint(scan.text.codePointAt(scan.at + mark.length) ?? 32);
  const spaced = (sign) => /\s/u.test(sign);
  const left = !spaced(after) && (!PUNCTUATION.test(after) || spaced(before) || PUNCTUATION.test(before));
  const right = !spaced(before) && (!PUNCTUATION.test(before) || spaced(after) || PUNCTUATION.test(after));
  if (mark[0] !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || PUNCTUATION.test(before)), closes: right && (!left || PUNCTUATION.test(after)) };
}

function readMarks(scan) {
  MARKS.lastIndex = scan.at;
  const mark = MARKS.exec(scan.text)[0];
  if (mark[0] === "~" && mark.length !== 2) return take(scan, mark.length);
  const { opens, closes } = flanks(scan, mark);
  scan.at += mark.length;
  const run = { mark: mark[0], size: mark.length, both: opens && closes };
  let left = mark.length;
  while (closes && left) {
    const place = openMark(scan.frames, run);
    if (place < 0) break;
    left -= closeMark(scan, place, left);
  }
  if (!left) return null;
  const literal = mark.slice(0, left);
  if (!opens || scan.frames.length > MOST_OPEN) return put(scan, literal);
  return scan.frames.push({ nodes: [], literal, ...run });
}

/** The place of the nearest open mark that a run closes, within the bracket that is open. */
function openMark(frames, run) {
  for (let place = frames.length - 1; place > 0 && !frames[place].bracket; place -= 1) {
    if (frames[place].mark === run.mark && fits(frames[place], run)) return place;
  }
  return -1;
}

/** CommonMark's rule of three, by which `**a*b*c**` is one strong text with an emphasis inside. */
function fits(one, other) {
  const odd = (one.both || other.both) && (one.size + other.size) % 3 === 0;
  return !odd || (one.size % 3 === 0 && other.size % 3 === 0);
}

function closeMark(scan, place, left) {
  const frame = scan.frames[place];
  const used = Math.min(2, left, frame.literal.length);
  const children = collapse(scan, place + 1);
  const name = frame.mark === "~" ? "del" : used === 2 ? "strong" : "em";
  const node = make(name, {}, ...children);
  frame.literal = frame.literal.slice(used);
  frame.nodes = [node];
  if (!frame.literal) {
    scan.frames.pop();
    put(scan, node);
  }
  return used;
}

/** Ends the frames from a place on as plain text in the one below, and gives its nodes. */
function collapse(scan, place) {
  const { nodes } = scan.frames[place - 1];
  for (const frame of scan.frames.splice(place)) {
    push(nodes, frame.literal);
    for (const node of frame.nodes) push(nodes, node);
  }
  return nodes;
}

function openBracket(scan) {
  const literal = scan.text[scan.at] === "!" ? "![" : "[";
  if (scan.frames.length > MOST_OPEN) return take(scan, literal.length);
  scan.at += literal.length;
  return scan.frames.push({ nodes: [], literal, bracket: true, active: true });
}

function closeBracket(scan) {
  scan.at += 1;
  const place = scan.frames.findLastIndex((frame) => frame.bracket);
  if (place < 0) return put(scan, "]");
  const frame = scan.frames[place];
  const target = frame.active ? match(TARGET, scan) : null;
  const children = collapse(scan, place + 1);
  if (!target) {
    collapse(scan, place);
    return put(scan, "]");
  }
  scan.frames.pop();
  const address = target[1].replace(/^<(.*)>$/, "$1");
  if (frame.literal === "![") return put(scan, picture(children, address));
  for (const other of scan.frames) other.active &&= other.literal === "!["; // no link within a link
  return link(children, address).forEach((node) => put(scan, node));
}

function picture(children, address) {
  const words = make("span", {}, ...children).textContent || "picture";
  const short = address.length > LONGEST_ADDRESS ? `${address.slice(0, LONGEST_ADDRESS)}…` : address;
  return make("span", { className: "picture" }, words, make("span", { className: "address" }, ` (${short})`));
}

function safeUrl(address) {
  try {
    const url = new URL(address); // only whole addresses: nothing leads to this server
    return SAFE.has(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

/** The nodes of a link; of one that leads elsewhere than the web or mail, its words as text. */
function link(children, address) {
  const url = safeUrl(address);
  if (!url) return ["[", ...children, `](${address})`];
  const anchor = make("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, ...children);
  const shown = anchor.textContent.trim();
  if (!shown) anchor.append(address);
  else if (shown !== address && shown !== url.href) anchor.title = url.href;
  // words that look like another address would tell the reader something false
  const posing = anchor.title && /^(https?:\/\/|www\.)|^[\w-]+(\.[\w-]+)+(\/|$)/i.test(shown);
  return posing ? [anchor, make("span", { className: "address" }, ` (${url.href})`)] : [anchor];
}

function readAddress(scan) {
  const braced = match(BRACED, scan);
  if (braced) return link([braced[1].replace(/^mailto:/i, "")], braced[1]).forEach((node) => put(scan, node));
  const within = scan.frames.some((frame) => frame.bracket);
  const glued = scan.at && /\w/.test(scan.text[scan.at - 1]);
  const found = within || glued ? null : match(ADDRESS, scan);
  if (!found) return take(scan);
  const address = trimAddress(found[0]);
  scan.at -= found[0].length - address.length;
  return link([address], address).forEach((node) => put(scan, node));
}

/** An address in running text without the stop, bracket or emphasis that follows it. */
function trimAddress(found) {
  let end = found.length;
  let open = count(found, "(") - count(found, ")");
  for (; end > 0; end -= 1) {
    const sign = found[end - 1];
    if (sign === ")" && open < 0) open += 1;
    else if (!".,:;!?'*_~".includes(sign)) break;
  }
  return found.slice(0, end);
}

function count(text, sign) {
  return text.split(sign).length - 1;
}
