// Drawing messages: questions, answers with their tool calls, stored whole or while they come, and what became of them.

import { element, markdown } from "./markdown.js";

const REASONS = {
  length: "The answer is cut off: it reached the model's limit of length.",
  content_filter: "The answer is cut off: the model server's content filter stopped it.",
  no_finish_reason: "The answer may be cut off: the model server did not say that it was complete.",
  model_timeout: "The answer is incomplete: the model took too long.",
  model_error: "The answer is incomplete: the model server failed.",
  model_rate_limited: "The answer is incomplete: the model server refused more requests for now.",
  model_unauthorized: "The answer is incomplete: the model server refused the key.",
  context_length_exceeded: "The answer is incomplete: the conversation is too long for the model.",
  too_many_tool_rounds: "The answer is incomplete: the model kept calling tools.",
  storage_unavailable: "The answer is incomplete: the server could not store it.",
  shutting_down: "The answer is incomplete: the server was stopped.",
  interrupted: "The answer was interrupted: the server ended in the middle of it.",
};

// After these the answer stands as the model gave it; any other reason is a failure.
const STANDS = ["length", "content_filter", "no_finish_reason"];

const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value ?? ""));

/** One article for a question, and one for all that answers it; `next` is the message that is shown after these. */
export function drawn(messages, next = null) {
  const fragment = document.createDocumentFragment();
  let answer = null;
  messages.forEach((message, index) => {
    if (message.role === "user") {
      answer = null;
      fragment.append(question(asText(message.content), message.id));
    } else {
      answer ??= new Answer(fragment);
      answer.take(message);
    }
    const following = messages[index + 1] ?? next;
    const words = following && (message.status || following.role === "user") ? outcome(message) : "";
    if (words) {
      fragment.append(note(words));
      answer = null;
    }
  });
  return fragment.childNodes;
}

/** What became of the answer that ends with this message, in words where it is not simply there. */
export function outcome({ role, status, reason, tool_calls: calls, content }) {
  if (status === "cancelled") return "Stopped before the answer was complete.";
  if (status) return REASONS[reason] ?? "The answer is incomplete: something failed on the server.";
  if (role !== "assistant" || calls) return "There is no answer: the turn failed or was interrupted.";
  return content ? "" : "The answer is empty.";
}

/** Whether the turn that ends with this message failed, so that it may be asked for again as the same turn. */
export function hasFailed({ role, status, reason, tool_calls: calls }) {
  return role !== "assistant" || Boolean(calls) || (status === "incomplete" && !STANDS.includes(reason));
}

const label = (words) => element("h2", { class: "label" }, words);

export const note = (words) => element("p", { class: "note" }, words);

export function question(text, id = null) {
  const body = element("div", { class: "body plain", dir: "auto" }, text);
  return element("article", { class: "question", "data-ids": id }, label("You"), body);
}

/** An answer that is being drawn: reasoning, text and tool calls in the order in which they come. */
export class Answer {
  constructor(parent) {
    this.body = element("div", { class: "body" });
    this.calls = new Map();
    this.text = null;
    this.thought = null;
    this.article = element("article", { class: "answer" }, label("Answer"), this.body);
    parent.append(this.article);
  }

  /** The article shows this stored message. */
  shows({ id }) {
    this.article.dataset.ids = [this.article.dataset.ids, id].filter(Boolean).join(" ");
  }

  take(message) {
    const { role, content, reasoning, name, tool_call_id: answers, tool_calls: calls, is_error: failed } = message;
    this.shows(message);
    if (role === "assistant" && reasoning) this.body.append(new Thought(asText(reasoning)).node);
    if (role === "tool") this.result({ id: answers, name, result: asText(content), failed });
    else if (content) this.write(asText(content));
    this.finish();
    for (const { id, function: called } of calls ?? []) this.call({ id, ...called });
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

  call({ id, name, arguments: given = "" }) {
    this.finish();
    const summary = element("summary", {}, element("span", { class: "tool-name" }, name ?? "tool"));
    summary.append(" ", element("code", {}, brief(asText(given))), " ", element("code", { class: "outcome" }));
    const tool = element("details", { class: "tool" }, summary, element("pre", { tabindex: "0" }, asText(given)));
    this.body.append(tool);
    this.calls.set(id, tool);
    return tool;
  }

  /** A result whose call is not shown, since that is on an earlier page, stands for itself and is marked as `lost`. */
  result({ id, name, result, error, failed = error !== undefined }) {
    const words = result ?? `error: ${error}`; // as the model is told, and as it is stored
    const lost = !this.calls.has(id);
    const tool = lost ? this.call({ id, name }) : this.calls.get(id);
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

  get words() {
    return [...this.body.querySelectorAll(":scope > .text")].map((text) => text.innerText).join("\n");
  }
}

/** What the model thought, folded; open while it comes, and then with the seconds that it took. */
class Thought {
  constructor(words, live = false) {
    this.began = performance.now();
    this.title = element("summary", {}, live ? "Thinking …" : "Thinking");
    this.words = document.createTextNode(words);
    this.node = element("details", { class: "thinking" }, this.title, element("pre", { tabindex: "0", dir: "auto" }, this.words));
    this.node.open = live;
  }

  write(words) {
    this.words.appendData(words);
  }

  finish() {
    const seconds = Math.max(1, Math.round((performance.now() - this.began) / 1000));
    this.title.textContent = `Thinking, ${seconds} s`;
    this.node.open = false;
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
  return shown.replace(/\s+/g, " ").slice(0, 200);
}

/** Markdown that is drawn as it grows: once a frame at most, and only from the last block on, since those before cannot change any more. */
class GrowingText {
  constructor(parent) {
    this.node = element("div", { class: "text", dir: "auto" });
    this.open = "";
    this.settled = 0;
    this.waiting = false;
    this.rest = 0;
    parent.append(this.node);
  }

  write(words) {
    this.open += words;
    if (this.waiting) return;
    this.waiting = true;
    setTimeout(() => requestAnimationFrame(() => this.waiting && this.draw()), this.rest);
  }

  finish() {
    if (this.waiting) this.draw();
  }

  draw() {
    const begun = performance.now();
    const lines = this.open.split("\n");
    const blocks = markdown(this.open);
    while (this.node.childNodes.length > this.settled) this.node.lastChild.remove();
    this.node.append(...blocks.map(({ node }) => node));
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
