// The Markdown inside a paragraph: emphasis, code, links, entities, formulas. Nodes and texts come of it, never HTML.
//
// Each character is looked at a bounded number of times: patterns are sticky and bounded, what has no end is looked for
// once, and emphasis is paired as CommonMark's appendix describes, with a bottom below which no opener is left.

import { element } from "./element.js";

const DEEPEST = 24; // elements in one another
const SPECIAL = /[\\`*_~[\]!<&$\n]|(?<![\p{L}\p{N}])(?:https?:\/\/|www\.)/giu;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([A-Za-z][A-Za-z0-9]{1,31}));/;
const ESCAPE_OR_ENTITY = new RegExp(`\\\\(${ESCAPABLE.source})|${ENTITY.source}`, "g");

const sticky = (pattern) => new RegExp(pattern.source, "yu");
const DESTINATION = sticky(/\([ \t\n]{0,9}(?:<((?:[^<>\n\\]|\\.){0,2000})>|((?:[^\s()\\]|\\[^\s]|\((?:[^\s()\\]|\\[^\s]|\([^\s()]{0,200}\)){0,400}\)){0,2000}))(?:[ \t\n]{1,9}(?:"(?:[^"\\]|\\[^]){0,500}"|'(?:[^'\\]|\\[^]){0,500}'|\((?:[^()\\]|\\[^]){0,500}\)))?[ \t\n]{0,9}\)/);
const LABEL = sticky(/\[((?:[^[\]\\]|\\[^]){0,999})\]/);
const FOOTNOTE = sticky(/\[\^([^\s[\]]{1,60})\]/);
const AUTOLINK = sticky(/<([A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]{0,2000}|[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,200}@[A-Za-z0-9.-]{1,200})>/);
const BREAK = sticky(/<[bB][rR][ \t]{0,9}\/?>/);
const NEXT_ENTITY = sticky(ENTITY);
const URL_TEXT = sticky(/[^\s<>"`*[\]]{1,2000}/);

const entities = new Map(); // texts by names, as the browser knows them: at most two characters

function namedText(name) {
  if (!entities.has(name)) entities.set(name, new DOMParser().parseFromString(`x&${name};`, "text/html").body.textContent.slice(1));
  const text = entities.get(name);
  return text.length > 2 ? null : text;
}

/** The text of an entity, or null where it is none that is known. */
function entityText([, decimal, hexadecimal, name]) {
  if (name) return namedText(name);
  const code = parseInt(decimal ?? hexadecimal, decimal ? 10 : 16);
  const valid = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000);
  return valid ? String.fromCodePoint(code) : "\ufffd";
}

/** A text with its escapes and entities resolved, as in an address or the name of a language. */
export const unescaped = (text) =>
  text.replace(ESCAPE_OR_ENTITY, (whole, escaped, ...groups) => escaped ?? entityText([whole, ...groups.slice(0, 3)]) ?? whole);

export const normalLabel = (label) => label.trim().replace(/\s+/g, " ").toLowerCase().toUpperCase();

/** The address if it is one of the web or of mail, else null: no other may be followed from here. */
function allowedAddress(text) {
  const url = text && URL.canParse(text) ? new URL(text) : null;
  return url && ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
}

/** Whether an address names a way that may not be followed. One without a way of its own is the text's alone. */
const isForbidden = (address) => /^[a-z][a-z0-9+.-]*:/i.test(address.trim()) && !allowedAddress(address);

/** A link, or null where the address is not allowed. */
export function webLink(address, ...words) {
  const href = allowedAddress(address);
  return href && element("a", { href, title: href, target: "_blank", rel: "noopener noreferrer" }, ...words);
}

/** Adds the words to the node. `definitions` has the addresses of reference links by their labels. */
export function inline(words, node, definitions) {
  const reader = new InlineReader(words, definitions);
  build(reader.read(), node, 0, false);
}

class InlineReader {
  constructor(words, definitions) {
    this.words = words;
    this.definitions = definitions;
    this.tokens = [];
    this.brackets = [];
    this.at = 0;
    this.ends = new Map(); // where the next end of a formula stands, by its mark
    this.lastLink = -1; // where the last link begins: no bracket before it can begin another
    this.fences = nextFences(words);
  }

  read() {
    let done = (SPECIAL.lastIndex = 0);
    for (let match; (match = SPECIAL.exec(this.words)); SPECIAL.lastIndex = done = this.at) {
      const { index } = match;
      if (index > done) this.text(this.words.slice(done, index));
      this.at = index;
      const mark = match[0];
      if (mark.length > 1) this.url();
      else this.special(mark);
    }
    this.text(this.words.slice(done));
    pairEmphasis(this.tokens);
    return this.tokens;
  }

  special(mark) {
    if (mark === "\\") this.escape();
    else if (mark === "`") this.code();
    else if (mark === "*" || mark === "_" || mark === "~") this.delimiters(mark);
    else if (mark === "[" || mark === "!") this.open(mark);
    else if (mark === "]") this.close();
    else if (mark === "<") this.angle();
    else if (mark === "&") this.entity();
    else if (mark === "$") this.dollar();
    else this.lineEnd();
  }

  text(text, length = 0) {
    if (text) this.tokens.push({ text });
    this.at += length;
  }

  node(node, length) {
    this.tokens.push({ node });
    this.at += length;
  }

  match(pattern, at = this.at) {
    pattern.lastIndex = at;
    return pattern.exec(this.words);
  }

  escape() {
    const next = this.words[this.at + 1] ?? "";
    const end = next === "(" ? "\\)" : next === "[" ? "\\]" : "";
    if (end && this.formula("\\" + next, end)) return;
    if (next === "\n") this.node(element("br"), 2);
    else if (ESCAPABLE.test(next)) this.text(next, 2);
    else this.text("\\", 1);
  }

  /** Where this mark comes next. Each is looked for once. */
  nextEnd(end, from) {
    if ((this.ends.get(end) ?? -1) < from) {
      const to = this.words.indexOf(end, from);
      this.ends.set(end, to < 0 ? Infinity : to);
    }
    return this.ends.get(end);
  }

  /** A formula stays as it was written. The server may draw it. */
  formula(begin, end) {
    const from = this.at + begin.length;
    const to = this.nextEnd(end, from);
    if (to - from > 4000 || !/[\p{L}\p{N}]/u.test(this.words.slice(from, to))) return false;
    this.node(element("span", { class: "math" }, this.words.slice(this.at, to + end.length)), to + end.length - this.at);
    return true;
  }

  dollar() {
    if (this.words.startsWith("$$", this.at)) return this.formula("$$", "$$") || this.text("$$", 2);
    const from = this.at + 1;
    const to = this.nextEnd("$", from);
    // Prices are no formulas: within its marks a formula has no space at either end, and no digit follows.
    const isFormula = to > from && to - from < 1000 && /\S/.test(this.words[from]) && /\S/.test(this.words[to - 1]) && !/\d/.test(this.words[to + 1] ?? "");
    if (!isFormula || !this.formula("$", "$")) this.text("$", 1);
  }

  code() {
    const length = runLength(this.words, this.at);
    const close = this.fences.get(this.at);
    if (close === undefined) return this.text("`".repeat(length), length);
    const inside = this.words.slice(this.at + length, close).replaceAll("\n", " ");
    const trimmed = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim() ? inside.slice(1, -1) : inside;
    this.node(element("code", {}, trimmed), close + length - this.at);
  }

  delimiters(mark) {
    const length = runLength(this.words, this.at);
    const before = characterBefore(this.words, this.at);
    const after = characterAt(this.words, this.at + length);
    const leftFlanking = flanks(before, after);
    const rightFlanking = flanks(after, before);
    // Arithmetic is no emphasis: 2*3*4, 2**8.
    const inNumber = /[\p{L}\p{N}]/u.test(before) && /[\p{L}\p{N}]/u.test(after) && /\d/.test(before + after);
    const plain = inNumber || (mark === "~" && length !== 2);
    const between = mark === "*" && !/\s/.test(before + after);
    const inWord = mark === "_";
    const canOpen = !plain && ((between && WITHOUT_SPACES.test(before)) || leftFlanking) && (!inWord || !rightFlanking || PUNCTUATION.test(before));
    const canClose = !plain && ((between && WITHOUT_SPACES.test(after)) || rightFlanking) && (!inWord || !leftFlanking || PUNCTUATION.test(after));
    this.tokens.push({ mark, length, count: length, canOpen, canClose, opens: [], closes: 0 });
    this.at += length;
  }

  open(mark) {
    const footnote = mark === "[" && this.match(FOOTNOTE);
    if (footnote) return this.node(element("sup", {}, footnote[1]), footnote[0].length);
    const bracket = mark === "[" ? "[" : this.words[this.at + 1] === "[" ? "![" : "";
    if (!bracket) return this.text("!", 1);
    const token = { text: bracket };
    this.tokens.push(token);
    this.at += bracket.length;
    this.brackets.push({ token, index: this.tokens.length - 1, at: this.at, isImage: mark === "!" });
  }

  close() {
    const opener = this.brackets.pop();
    const link = opener && (opener.isImage || opener.at > this.lastLink) && this.linkEnd(opener);
    if (!link || isForbidden(unescaped(link.address))) return this.text("]", 1);
    const inside = this.tokens.splice(opener.index).slice(1);
    pairEmphasis(inside);
    this.tokens.push({ address: unescaped(link.address), children: inside });
    this.at = link.end;
    if (!opener.isImage) this.lastLink = opener.at; // No link stands in a link.
  }

  /** The address of the link that ends here, and where it ends. */
  linkEnd(opener) {
    const destination = this.words[this.at + 1] === "(" && this.match(DESTINATION, this.at + 1);
    if (destination) return { address: destination[1] ?? destination[2] ?? "", end: this.at + 1 + destination[0].length };
    if (!this.definitions.size || this.at - opener.at > 999) return null;
    const label = this.match(LABEL, this.at + 1);
    const words = label?.[1].trim() ? label[1] : this.words.slice(opener.at, this.at);
    const address = this.definitions.get(normalLabel(words));
    return address === undefined ? null : { address, end: this.at + 1 + (label?.[0].length ?? 0) };
  }

  angle() {
    const lineBreak = this.match(BREAK);
    if (lineBreak) return this.node(element("br"), lineBreak[0].length);
    const [whole, target] = this.match(AUTOLINK) ?? [];
    if (!whole) return this.text("<", 1);
    const address = /^[A-Za-z][A-Za-z0-9+.-]+:/.test(target) ? target : `mailto:${target}`;
    // An address that may not be followed stays as it was written.
    if (allowedAddress(address)) this.link(address, target, whole.length);
    else this.text(whole, whole.length);
  }

  link(address, text, length) {
    this.tokens.push({ address, children: [{ text }] });
    this.at += length;
  }

  entity() {
    const match = this.match(NEXT_ENTITY);
    const text = match && entityText(match);
    if (text) this.text(text, match[0].length);
    else this.text("&", 1);
  }

  url() {
    let [text] = this.match(URL_TEXT);
    const ends = text.includes("(") ? ".,;:!?'\"]}_~" : ".,;:!?'\"])}_~";
    let length = text.length;
    while (ends.includes(text[length - 1])) length -= 1;
    text = text.slice(0, length);
    const address = /^www\./i.test(text) ? `https://${text}` : text;
    if (allowedAddress(address)) this.link(address, text, length);
    else this.text(text, length);
  }

  lineEnd() {
    const last = this.tokens.at(-1);
    const isHard = last?.text?.endsWith("  ");
    if (last?.text) last.text = last.text.trimEnd();
    if (isHard) this.node(element("br"), 1);
    else this.text("\n", 1);
    while (this.words[this.at] === " ") this.at += 1;
  }
}

function runLength(words, at) {
  let end = at + 1;
  while (words[end] === words[at]) end += 1;
  return end - at;
}

/** For each run of backticks the place of the next run of the same length. */
function nextFences(words) {
  const next = new Map();
  const seen = new Map();
  for (const { 0: { length }, index } of [...words.matchAll(/`+/g)].reverse()) {
    if (seen.has(length)) next.set(index, seen.get(length));
    seen.set(length, index);
  }
  return next;
}

const characterAt = (words, at) => (at < words.length ? String.fromCodePoint(words.codePointAt(at)) : " ");
const characterBefore = (words, at) => (at > 0 ? characterAt(words, /[\udc00-\udfff]/.test(words[at - 1]) && at > 1 ? at - 2 : at - 1) : " ");
const flanks = (outer, inner) => !/\s/.test(inner) && (!PUNCTUATION.test(inner) || /\s/.test(outer) || PUNCTUATION.test(outer));
const WITHOUT_SPACES = /[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]/; // how Chinese, Japanese and Korean are written

/** Tells the runs of marks which of them belong together (CommonMark 0.31, "process emphasis"). */
function pairEmphasis(tokens) {
  const bottoms = new Map();
  let previous = null;
  for (const [order, closer] of tokens.entries()) {
    if (!closer.mark) continue;
    Object.assign(closer, { order, previous });
    if (closer.canClose) closeEmphasis(closer, bottoms);
    if (closer.canOpen && closer.count) previous = closer;
    else previous = closer.previous;
  }
}

function closeEmphasis(closer, bottoms) {
  const key = `${closer.mark}${closer.canOpen}${closer.length % 3}`;
  while (closer.count) {
    let opener = closer.previous;
    const bottom = bottoms.get(key) ?? -1;
    while (opener && opener.order > bottom && !belongTogether(opener, closer)) opener = opener.previous;
    if (!opener || opener.order <= bottom) return void bottoms.set(key, closer.previous?.order ?? -1);
    const count = closer.mark === "~" || (opener.count > 1 && closer.count > 1) ? 2 : 1;
    const name = closer.mark === "~" ? "del" : count > 1 ? "strong" : "em";
    opener.opens.unshift(name);
    opener.count -= count;
    closer.count -= count;
    closer.closes += 1;
    closer.previous = opener.count ? opener : opener.previous;
  }
}

function belongTogether(opener, closer) {
  if (opener.mark !== closer.mark) return false;
  const sum = (opener.canClose || closer.canOpen) && (opener.length + closer.length) % 3 === 0;
  return !sum || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

/** Makes nodes of tokens. Beyond the greatest depth marks have no effect. */
function build(tokens, parent, depth, isInLink) {
  const parents = [];
  let node = parent;
  let words = ""; // of the node, not yet in it: to join thousands of texts in the document takes long
  const flush = () => {
    if (words) node.append(words);
    words = "";
  };
  const append = (child) => {
    flush();
    return node.appendChild(child);
  };
  for (const token of tokens) {
    if (token.children) {
      const link = append((!isInLink && webLink(token.address)) || element("span"));
      build(token.children, link, depth + 1, isInLink || link.localName === "a");
    } else if (token.mark) {
      if (token.closes) flush();
      for (let left = token.closes; left; left -= 1) node = parents.pop();
      words += token.mark.repeat(token.count);
      for (const name of token.opens) {
        parents.push(node);
        if (depth + parents.length < DEEPEST) node = append(element(name));
      }
    } else if (token.node) append(token.node);
    else words += token.text;
  }
  flush();
}
