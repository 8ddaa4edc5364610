// Calls that wait: a person allows or denies each of them, and then the turn goes on.

import { element, textButton } from "./element.js";
import { announce, attempt } from "./notices.js";

let answerPending = () => {};

/** Sets what gets the answers when each call has one: the view, and approvals by the ids of the calls. */
export const setAnswerPending = (callback) => (answerPending = callback);

/** Shows what waits under the last answer, with two buttons for each call. */
export function drawApproval(view) {
  view.stored.querySelector(".approval")?.remove();
  const pending = view.session.pending ?? [];
  if (!pending.length || view.earlier || view.turn) return;
  const answers = {};
  const others = pending.filter(({ for: whom }) => whom === "client").length;
  const items = pending.filter(({ for: whom }) => whom !== "client").map((call) => drawCall(call, answers, () => {
    if (Object.keys(answers).length === pending.length) attempt(() => answerPending(view, answers));
  }));
  const words = items.length ? "The model asks before it does this:" : "This turn waits for the program that asked.";
  const card = element("section", { class: "approval", "aria-label": "What waits for you" }, element("p", {}, words), ...items);
  if (items.length && others) card.append(element("p", { class: "soft" }, "Other calls wait for the program that asked."));
  view.stored.append(card);
  announce(words);
}

function drawCall({ id, name, arguments: given }, answers, whenAnswered) {
  const item = element("div", { class: "pending" });
  const choose = (approve) => {
    answers[id] = { approve };
    item.dataset.chosen = approve ? "allowed" : "denied";
    for (const button of item.querySelectorAll("button")) button.setAttribute("aria-pressed", String((button.className === "allow") === approve));
    whenAnswered();
  };
  const buttons = element("div", { class: "actions" }, textButton("Allow", "allow", () => choose(true)), textButton("Deny", "deny", () => choose(false)));
  item.append(element("p", { class: "tool-name" }, name), element("pre", { tabindex: "0" }, pretty(given)), buttons);
  return item;
}

function pretty(given) {
  try {
    return JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    return String(given);
  }
}
