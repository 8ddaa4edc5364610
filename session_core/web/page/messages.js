// Drawing messages: questions, answers, and what became of them.

import { Answer } from "./answer.js";
import { element } from "./element.js";
import { drawParts } from "./files.js";
import { textOf } from "./render.js";

// After these the answer stands as the model gave it; any other reason is a failure.
const CUT_OFF = {
  length: "is cut off: it reached the model's limit of length.",
  content_filter: "is cut off: the model server's content filter stopped it.",
  no_finish_reason: "may be cut off: the model server did not say that it was complete.",
};

const INCOMPLETE = {
  model_timeout: "the model took too long.",
  model_error: "the model server failed.",
  model_rate_limited: "the model server refused more requests for now.",
  model_unauthorized: "the model server refused the key.",
  context_length_exceeded: "the conversation is too long for the model.",
  too_many_tool_rounds: "the model kept calling tools.",
  storage_unavailable: "the server could not store it.",
  shutting_down: "the server was stopped.",
  interrupted: "the server ended in the middle of it.",
};

/** One article for a question, and one for all that answers it; `next` is the message that is shown after these. */
export function drawMessages(messages, next = null) {
  const fragment = document.createDocumentFragment();
  let answer = null;
  let asked = null;
  messages.forEach((message, index) => {
    if (message.role === "user") {
      answer = null;
      asked = message.created_at;
      fragment.append(drawQuestion(message.content, message.id));
    } else {
      answer ??= new Answer(fragment, asked);
      answer.addMessage(message);
    }
    const following = messages[index + 1] ?? next;
    const end = following && (message.status || following.role === "user") ? outcome(message) : null;
    if (end) {
      fragment.append(drawNote(end));
      answer = null;
    }
  });
  return fragment;
}

/** What became of the answer that ends with this message: words where it is not simply there, and whether it failed. */
export function outcome({ role, status, reason, tool_calls: calls, content }) {
  if (status === "waiting") return null;
  if (status === "cancelled") return { words: "Stopped before the answer was complete.", failure: false };
  if (status) {
    const words = CUT_OFF[reason] ?? `is incomplete: ${INCOMPLETE[reason] ?? "something failed on the server."}`;
    return { words: `The answer ${words}`, failure: !(reason in CUT_OFF) };
  }
  if (role !== "assistant" || calls) return { words: "There is no answer: the turn failed or was interrupted.", failure: true };
  return content ? null : { words: "The answer is empty.", failure: false };
}

/** Whether the turn that ends with this message failed, so that it may be asked for again as the same turn. */
export function hasFailed({ role, status, reason, tool_calls: calls }) {
  if (status === "waiting") return false;
  return role !== "assistant" || Boolean(calls) || (status === "incomplete" && !(reason in CUT_OFF));
}

export const drawNote = ({ words, failure }) => element("p", { class: failure ? "note failure" : "note" }, words);

export function drawQuestion(content, id = null) {
  const body = element("div", { class: "body plain", dir: "auto" }, textOf(content), drawParts(content));
  return element("article", { class: "question", "data-ids": id }, element("h2", { class: "label" }, "You"), body);
}

