// The conversation that is shown: the stored messages of a session, and what became of its last answer.
//
// What the server has stored is the truth. The messages on the page are made equal to it.

import { fitBox, stay, toBottom } from "./layout.js";
import { element } from "./markdown.js";
import { drawn, hasFailed, note, outcome } from "./messages.js";
import { json, newKey, recall, remember } from "./server.js";
import { drawHeader } from "./session_list.js";
import { $, box, PAGE_SIZE, scroller, state } from "./state.js";

const LATE = 60_000; // milliseconds, after which a message that the server does not have will not arrive any more

/** The newest messages that are stored. What else the answer tells of the session is shown at once. */
export async function readPage(of, query = "") {
  const page = await json(`sessions/${of.id}?limit=${PAGE_SIZE}${query}`);
  of.usage = page.usage;
  return page;
}

/** The stored messages are on the page: `actions.js` gives them their buttons. */
const drawnNow = (of) => document.dispatchEvent(new CustomEvent("drawn", { detail: of }));

/** Draws the messages of the view anew, or those of an older version that is shown. */
export function redraw(of) {
  of.note = null;
  $("stored").replaceChildren(...drawn(of.older ?? of.messages));
  if (of.older) {
    const back = element("button", { type: "button" }, "Show the newest");
    back.onclick = () => ((of.older = null), redraw(of), drawEnd(of));
    $("stored").append(element("p", { class: "note" }, "This is an earlier version. What you send goes on from the newest.", " ", back));
  }
  drawHeader();
  drawnNow(of);
}

/**
 * Shows the stored messages of a page that are not shown yet. Beside a running turn, which is drawn live, those are
 * the messages up to its question, and after it those that an earlier try at the same question has left.
 */
export function merge(of, page, startedAt = null) {
  if (of.closed) return;
  if (of.older) {
    of.older = null;
    redraw(of);
  }
  const known = page.messages.findIndex(({ id }) => id === of.messages.at(-1)?.id);
  if (known < 0) {
    Object.assign(of, { messages: [], next: page.next, note: null });
    $("stored").replaceChildren();
    toBottom();
  }
  const asked = page.messages.findLastIndex(({ role, created_at: at }) => role === "user" && at <= startedAt);
  const fresh = page.messages.filter(
    ({ created_at: at }, index) => index > known && (!startedAt || index <= asked || at < startedAt),
  );
  if (fresh.length) endNote(of, fresh[0].role === "user");
  of.messages.push(...fresh);
  $("stored").append(...drawn(fresh));
  drawHeader();
  drawnNow(of);
}

export async function showEarlier() {
  const here = state.view;
  const before = here.next;
  const page = await readPage(here, `&before=${before}`);
  if (here.closed || here.next !== before) return;
  // A result belongs under its call, which may stand on the earlier page.
  const results = Math.max(0, here.messages.findIndex(({ role }) => role !== "tool"));
  if (results) $("stored").firstElementChild.querySelectorAll(".tool.lost").forEach((tool) => tool.remove());
  const height = scroller.scrollHeight - scroller.scrollTop;
  stay();
  $("stored").prepend(...drawn([...page.messages, ...here.messages.slice(0, results)], here.messages[results]));
  here.messages.unshift(...page.messages);
  here.next = page.next;
  drawHeader();
  drawnNow(here);
  scroller.scrollTop = scroller.scrollHeight - height;
  if (!here.next) scroller.focus({ preventScroll: true });
}

/**
 * Makes the page equal to what is stored, after a turn has ended or was lost from sight. Gives the words that say what
 * became of the answer.
 */
export function settle(turn, last, page) {
  const here = turn.view;
  if (here.closed) return "";
  const known = page.messages.findIndex(({ id }) => id === here.messages.at(-1)?.id);
  const fresh = page.messages.slice(known + 1);
  const questions = fresh.filter(({ role }) => role === "user").length;
  const seen =
    last &&
    turn.length === (last.data.complete_text?.length ?? turn.length) &&
    questions === Number(turn.bubble) &&
    (known >= 0 || !here.messages.length) &&
    !fresh.slice(0, -1).some(({ status }) => status);
  if (seen) {
    here.messages.push(...fresh);
    if (turn.bubble) $("live").querySelector(".question").dataset.ids = fresh[0].id;
    for (const message of fresh.slice(questions)) turn.answer.shows(message);
    $("stored").append(...$("live").childNodes);
    drawnNow(here);
  } else {
    $("live").replaceChildren();
    if (!page.running) merge(here, page);
  }
  return page.running ? "" : drawEnd(here, last?.type === "error" ? last.data.error : "");
}

/** Says under the last message what became of the answer, with a button to ask again. Gives the words. */
export function drawEnd(of, failure = "") {
  const last = of.messages.at(-1);
  const asked = recall(of.id);
  const questions = of.messages.filter(({ role }) => role === "user");
  const latest = questions.at(-1);
  const again = asked && !of.older && last && hasFailed(last) && asked.text === latest?.content;
  const arrived = asked && questions.some(({ content }) => content === asked.text);
  if (asked && !again && (arrived || Date.now() - asked.at > LATE)) {
    remember(of.id, null);
    if (!arrived) giveBack(of, asked);
  }
  const words = failure || (last ? outcome(last) : "");
  if (words && !of.note) {
    of.note = note(words);
    // A failed turn is asked for again as the same turn. In place of an answer that was cut off or stopped comes a new
    // one.
    of.again = again ? { ...asked, bubble: false } : { text: latest?.content, replaces: latest?.id };
    if (latest) of.note.append(" ", element("button", { type: "button", class: "retry" }, "Try again"));
    if (latest && last !== latest && words) of.note.append(" ", element("button", { type: "button", class: "continue" }, "Continue"));
    $("stored").append(of.note);
  }
  return words;
}

/** Puts a message that the server does not have back into the box. */
export function giveBack(of, { text, key, replaces }) {
  of.returned = { text, key, replaces };
  if (box.value !== text) box.value = [text, box.value].filter(Boolean).join("\n\n");
  fitBox();
}

/** The conversation goes on: the note stays without its button. It goes where the answer to its question still comes. */
export function endNote(of, newQuestion) {
  of.note?.querySelectorAll("button").forEach((button) => button.remove());
  if (!newQuestion && !of.messages.at(-1)?.status) of.note?.remove();
  of.note = null;
}
