// An answer that is being drawn, from stored messages or from events: reasoning, text and tool calls in their order.

import { element, fill } from "./element.js";
import { drawParts } from "./files.js";
import { markdown, NEEDS_WHOLE } from "./markdown.js";
import { renderLater } from "./rendered.js";
import { textOf } from "./render.js";

const QUIET = 2_000; // milliseconds of silence, after which the page says what is waited for

export class Answer {
  /** `asked` is when its question was. */
  constructor(parent, asked = null) {
    this.asked = asked;
    this.body = element("div", { class: "body" });
    this.calls = new Map();
    this.text = null;
    this.thought = null;
    this.label = element("h2", { class: "label" }, "Answer");
    this.article = element("article", { class: "answer" }, this.label, this.body);
    parent.append(this.article);
  }

  /** The article shows this stored message. */
  addId({ id, model, created_at: at, usage, role }) {
    this.article.dataset.ids = [this.article.dataset.ids, id].filter(Boolean).join(" ");
    if (role !== "assistant") return;
    if (model) this.article.dataset.model = model;
    if (at) this.article.dataset.at = at;
    if (at && this.asked) this.article.dataset.seconds = (Date.parse(at) - Date.parse(this.asked)) / 1000;
    if (usage) this.article.dataset.tokens = usage.completion_tokens ?? "";
  }

  addMessage(message) {
    const { role, content, reasoning, name, tool_call_id: answers, tool_calls: calls, is_error: failed } = message;
    this.addId(message);
    if (role === "assistant" && reasoning) this.body.append(new Thought(textOf(reasoning)).node);
    if (role === "tool") {
      this.addResult({ id: answers, name, result: textOf(content), failed });
      this.body.append(drawParts(content));
    } else if (content) this.write(textOf(content));
    this.finish();
    for (const { id, function: called } of calls ?? []) this.addCall({ id, ...called });
  }

  /** Reasoning that comes live: it is open until something else comes. */
  think(words) {
    if (!this.thought) {
      this.finish();
      this.thought = new Thought("", true);
      this.body.append(this.thought.node);
    }
    this.thought.write(words);
  }

  write(words) {
    if (this.thought) this.finish();
    this.text ??= new GrowingText(this.body);
    this.text.write(words);
  }

  addCall({ id, name, arguments: given = "" }) {
    this.finish();
    const summary = element("summary", {}, element("span", { class: "tool-name" }, name ?? "tool"));
    summary.append(" ", element("code", {}, brief(textOf(given))), " ", element("code", { class: "outcome" }));
    const tool = element("details", { class: "tool" }, summary, element("pre", { tabindex: "0" }, textOf(given)));
    this.body.append(tool);
    this.calls.set(id, tool);
    return tool;
  }

  /** A result whose call is not shown, since that is on an earlier page, stands for itself and is marked as `lost`. */
  addResult({ id, name, result, error, failed = error !== undefined }) {
    const words = result ?? `error: ${error}`; // as the model is told, and as it is stored
    const lost = !this.calls.has(id);
    const tool = lost ? this.addCall({ id, name }) : this.calls.get(id);
    tool.classList.toggle("lost", lost);
    tool.classList.toggle("failed", failed);
    tool.querySelector(".outcome").textContent = `→ ${brief(words)}`;
    tool.append(element("pre", { tabindex: "0" }, words));
  }

  finish() {
    this.text?.finish();
    this.text = null;
    this.thought?.finish();
    this.thought = null;
  }

  /** Says what is waited for, and for how long, where nothing has come for a while. */
  showWaiting({ words, since, heardAt }, now) {
    const quiet = words && now - heardAt >= (this.text || this.thought ? QUIET : 0);
    if (this.thought) this.thought.count();
    if (!quiet) return this.waiting?.remove();
    this.waiting ??= element("p", { class: "waiting" }, element("span"), element("span", { "aria-hidden": "true" }));
    const seconds = Math.round((now - since) / 1000);
    this.waiting.firstChild.textContent = words;
    this.waiting.lastChild.textContent = seconds >= 2 ? ` ${seconds} s` : "";
    if (this.waiting.parentNode !== this.body || this.waiting.nextSibling) this.body.append(this.waiting);
  }

  get words() {
    return [...this.body.querySelectorAll(":scope > .text")].map((text) => text.innerText).join("\n");
  }
}

/** What the model thought, folded. While it comes it is open and follows its end; then it says the seconds that it took. */
class Thought {
  constructor(words, live = false) {
    this.began = performance.now();
    this.title = element("summary", {}, live ? "Thinking …" : "Thinking");
    this.words = document.createTextNode(words);
    this.pre = element("pre", { tabindex: "0", dir: "auto" }, this.words);
    this.node = element("details", { class: "thinking" }, this.title, this.pre);
    this.node.open = live;
    this.isRead = false; // somebody reads it, so it does not move or fold by itself
    this.follows = true;
    const read = () => (this.isRead = true);
    this.pre.addEventListener("pointerdown", read);
    this.pre.addEventListener("wheel", read, { passive: true });
    this.pre.addEventListener("focus", read);
    this.title.addEventListener("click", read);
    this.pre.addEventListener("scroll", () => (this.follows = this.pre.scrollHeight - this.pre.scrollTop - this.pre.clientHeight < 8));
  }

  write(words) {
    this.words.appendData(words);
    if (this.follows) this.pre.scrollTop = this.pre.scrollHeight;
  }

  get seconds() {
    return Math.max(1, Math.round((performance.now() - this.began) / 1000));
  }

  count() {
    if (this.seconds > 1) this.title.textContent = `Thinking … ${this.seconds} s`;
  }

  finish() {
    this.title.textContent = `Thinking, ${this.seconds} s`;
    if (!this.isRead) this.node.open = false;
  }
}

/** One line for what a tool was given or gave: where that is an object of one text, the text. */
function brief(words) {
  let shown = words;
  try {
    const values = Object.values(JSON.parse(words));
    if (values.length === 1 && typeof values[0] === "string") shown = values[0];
  } catch {
    // Not JSON: shown as it is.
  }
  return shown.slice(0, 400).replace(/\s+/g, " ").slice(0, 200);
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** The direction of the first letter outside of code. The browser's own `auto` looks through all that is there with each block that comes. */
function directionOf(blocks) {
  for (const { node } of blocks) {
    const [letter] = (!node.dir && /\p{L}/u.exec(node.textContent)) || [];
    if (letter) return RIGHT_TO_LEFT.test(letter) ? "rtl" : "ltr";
  }
  return "";
}

/** Markdown that is drawn as it grows: once a frame at most, and only from the last block on, since those before cannot change any more. */
class GrowingText {
  constructor(parent) {
    this.node = element("div", { class: "text growing" });
    this.whole = "";
    this.open = "";
    this.settled = 0;
    this.waiting = false;
    this.rest = 0;
    parent.append(this.node);
  }

  write(words) {
    this.whole += words;
    this.open += words;
    if (this.waiting) return;
    this.waiting = true;
    setTimeout(() => requestAnimationFrame(() => this.waiting && this.draw()), this.rest);
  }

  finish() {
    if (this.waiting) this.draw();
    // A definition may stand behind what refers to it.
    if (NEEDS_WHOLE.test(this.whole)) {
      this.node.replaceChildren();
      fill(this.node, markdown(this.whole).map(({ node }) => node));
    }
    this.node.classList.remove("growing");
    renderLater(this.node, this.whole);
  }

  draw() {
    const begun = performance.now();
    const lines = this.open.split("\n");
    const blocks = markdown(this.open);
    while (this.node.childNodes.length > this.settled) this.node.lastChild.remove();
    fill(this.node, blocks.map(({ node }) => node));
    this.node.dir ||= directionOf(blocks);
    // A block that begins on the last line may still become part of the one before.
    const sure = blocks.length - (blocks.at(-1)?.line === lines.length - 1 ? 2 : 1);
    if (sure > 0) {
      this.open = lines.slice(blocks[sure].line).join("\n");
      this.settled += sure;
    }
    this.waiting = false;
    // One huge block takes longer each time: drawing it, layout included, may take a third of the time and no more.
    setTimeout(() => (this.rest = 2 * (performance.now() - begun)));
  }
}
