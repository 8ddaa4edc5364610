// The conversation of a view: its stored messages, and what became of its last answer.
//
// What the server has stored is the truth. The messages on the page are made equal to it.

import { drawApproval } from "./approval.js";
import { setParts } from "./attachments.js";
import { element, textButton } from "./element.js";
import { partsOf } from "./files.js";
import { json } from "./http.js";
import { keepDraft, keepReturned, recall, remember } from "./kept.js";
import { fitBox, stay, toBottom } from "./layout.js";
import { markdown } from "./markdown.js";
import { drawMessages, drawNote, hasFailed, outcome } from "./messages.js";
import { render, textOf } from "./render.js";
import { box, isQuestion, isShown, PAGE_SIZE, scroller, shownMessages, state } from "./view.js";
import { addToVersions, keptVersion } from "./versions.js";

const LATE = 24 * 3600_000; // milliseconds, after which a message that the server does not have is not sent any more

let callbacks = { drawActions() {}, tellHidden() {} };

/** `drawActions` gives the messages of a view their buttons when they are on the page. `tellHidden` is called with questions that others have hidden. */
export const setConversationCallbacks = (given) => (callbacks = given);

/** The newest messages that are stored. What else the answer tells of the session is taken at once. */
export async function readPage(view, query = "", options = {}) {
  const { messages, next, ...session } = await json(`sessions/${view.id}?limit=${PAGE_SIZE}${query}`, options);
  view.session = session;
  return { messages, next, running: session.running };
}

/** Draws the messages of the view anew, or those of an earlier version that is shown. */
export function renderMessages(view) {
  view.note = null;
  view.stored.replaceChildren(drawMessages(shownMessages(view)));
  if (view.earlier) {
    const words = "This is an earlier version. What you send goes on from here. ";
    view.stored.append(element("p", { class: "note" }, words, textButton("Show the newest", "newest")));
  }
  finishDrawing(view);
}

function finishDrawing(view) {
  drawSummary(view);
  render();
  callbacks.drawActions(view);
}

/**
 * Shows the stored messages of a page that are not shown yet. Beside a running turn, which is drawn live, those are
 * the messages up to its question, and after it those that an earlier try at the same question has left. The time is
 * in whole seconds: it tells the question only where the turn was found running.
 */
export function merge(view, page, startedAt = null, question = null) {
  if (view.earlier) {
    view.earlier = null;
    renderMessages(view);
  }
  const known = page.messages.findIndex(({ id }) => id === view.messages.at(-1)?.id);
  const ids = new Set(page.messages.map(({ id }) => id));
  const common = view.messages.findLastIndex(({ id }) => ids.has(id));
  const hidden = known < 0 && view.session.replaced ? view.messages.slice(common + 1).filter(isQuestion) : [];
  if (known < 0) {
    Object.assign(view, { messages: [], next: page.next, note: null, all: null });
    view.stored.replaceChildren();
    toBottom();
  }
  const asked = page.messages.findLastIndex((one) => (question ? one.id === question : isQuestion(one) && one.created_at <= startedAt));
  const fresh = page.messages.filter(
    ({ created_at: at }, index) => index > known && (!startedAt || index <= asked || at < startedAt),
  );
  if (fresh.length) endNote(view, isQuestion(fresh[0]));
  addToVersions(view, fresh);
  view.messages.push(...fresh);
  view.stored.append(drawMessages(fresh));
  finishDrawing(view);
  if (hidden.length) callbacks.tellHidden(view, hidden);
}

/** Shows where the summary ends that the model gets in place of what is older, and what it says. */
function drawSummary(view) {
  view.stored.querySelector(".summary")?.remove();
  const { until, content } = view.session.compacted ?? {};
  const last = until && view.stored.querySelector(`article[data-ids~="${until}"]`);
  if (!last) return;
  const text = element("div", { class: "text" }, ...markdown(content).map(({ node }) => node));
  const words = "The model gets this summary in place of what stands above. Nothing of it is lost here.";
  last.after(element("details", { class: "summary" }, element("summary", {}, "What is older is summed up"), element("p", { class: "soft" }, words), text));
}

export async function showEarlier() {
  const { view } = state;
  const before = view.next;
  const page = await readPage(view, `&before=${before}`);
  if (!isShown(view) || view.next !== before) return;
  // A result belongs under its call, which may stand on the earlier page.
  const results = Math.max(0, view.messages.findIndex(({ role }) => role !== "tool"));
  if (results) view.stored.firstElementChild.querySelectorAll(".tool.lost").forEach((tool) => tool.remove());
  const height = scroller.scrollHeight - scroller.scrollTop;
  stay();
  view.stored.prepend(drawMessages([...page.messages, ...view.messages.slice(0, results)], view.messages[results]));
  view.messages.unshift(...page.messages);
  view.next = page.next;
  finishDrawing(view);
  scroller.scrollTop = scroller.scrollHeight - height;
  if (!view.next) scroller.focus({ preventScroll: true });
}

/**
 * Makes the page equal to what is stored, after a turn has ended or was lost from sight. Returns the words that say
 * what became of the answer.
 */
export function settle(turn, last, page) {
  const { view } = turn;
  const known = page.messages.findIndex(({ id }) => id === view.messages.at(-1)?.id);
  const isOther = known < 0 && view.messages.length > 0;
  const later = page.messages.slice(known + 1);
  const id = last?.data.message_id;
  const at = later.findIndex((message) => message.id === id); // -1 where it was read with what came before
  const end = later.findIndex((one, index) => !isOther && isQuestion(one) && index > Math.max(at, turn.bubble - 1));
  const fresh = end < 0 ? later : later.slice(0, end); // Behind the answer stand later turns.
  const own = { ...page, messages: page.messages.slice(0, known + 1 + fresh.length) };
  const questions = fresh.filter(isQuestion).length;
  const seen =
    last &&
    !isOther &&
    (at >= 0 || !id) &&
    turn.length === (last.data.complete_text?.length ?? turn.length) &&
    questions === Number(turn.bubble) &&
    !turn.answers &&
    !fresh.slice(0, -1).some(({ status }) => status) &&
    !fresh.some(({ role, content }) => role === "tool" && Array.isArray(content)); // Their pictures come with what is stored.
  const isWhole = seen || at >= 0 || !page.running;
  if (seen) {
    addToVersions(view, fresh);
    view.messages.push(...fresh);
    if (turn.bubble) view.live.querySelector(".question").dataset.ids = fresh[0].id;
    turn.answer.asked = view.messages.findLast(isQuestion)?.created_at;
    for (const message of fresh.slice(questions)) turn.answer.addId(message);
    view.stored.append(...view.live.childNodes);
    finishDrawing(view);
  } else {
    view.live.replaceChildren();
    // The answer to what waited belongs to the message that asked for it.
    if (turn.answers && known >= 0) {
      view.messages.splice(-1, 1, ...own.messages.slice(known));
      renderMessages(view);
    } else if (isWhole) merge(view, own);
  }
  const words = isWhole ? drawEnd(view, last?.type === "error" ? last.data.error : "") : "";
  if (end < 0 || page.running) return words;
  merge(view, page);
  return drawEnd(view);
}

/** Whether the server has the message, or the other wish, that was on its way. */
function hasArrived(view, asked) {
  const before = view.messages.findLastIndex(({ id }) => id === asked.last);
  const later = view.messages.slice(before + 1);
  if (!asked.bubble || asked.text === null) return later.length > 0;
  return later.some((one) => isQuestion(one) && textOf(one.content) === asked.text);
}

/** A message of this session that the server does not have yet, if there is one. */
export function unsentMessage(view) {
  const asked = recall(view.id);
  if (!asked || hasArrived(view, asked)) return null;
  if (Date.now() - asked.at < LATE) return asked;
  giveBack(view, asked);
  remember(view.id, null);
  return null;
}

/** Says under the last message what became of the answer, with a button to ask again. Returns the words. */
export function drawEnd(view, error = "") {
  const last = view.messages.at(-1);
  const asked = recall(view.id);
  const question = view.messages.findLast(isQuestion);
  const sameTurn = asked && !view.earlier && last && hasFailed(last) && (asked.text === null || asked.text === textOf(question?.content));
  if (asked && !sameTurn && hasArrived(view, asked)) remember(view.id, null);
  const stored = last ? outcome(last) : null;
  const failure = error || (stored?.failure && !last.status && view.session.last_error?.error) || "";
  const end = failure ? { words: failure, failure: true } : stored;
  if (end && !view.note && !view.earlier) {
    view.note = drawNote(end);
    // A failed turn is asked for again as the same turn. In place of an answer that was cut off or stopped comes a new
    // one.
    view.retry = sameTurn ? { ...asked, bubble: false } : { content: question?.content, replaces: question?.id };
    if (question) view.note.append(" ", textButton("Try again", "retry"));
    if (question && last !== question) view.note.append(" ", textButton("Continue", "continue"));
    view.stored.append(view.note);
  }
  drawApproval(view);
  return end?.words ?? "";
}

/** Puts a message that the server does not have back into the box. */
export function giveBack(view, { text, content = text, key, replaces, after }) {
  if (!content) return;
  keepReturned(view.id, key ? { content, key, replaces, after } : null);
  setParts(view, [...view.parts, ...partsOf(content)]);
  if (!isShown(view)) return keepDraft(view.id, text);
  if (box.value !== text) box.value = [text, box.value].filter(Boolean).join("\n\n");
  keepDraft(view.id, box.value);
  fitBox();
}

/** The conversation goes on: the note stays without its button. It goes where the answer to its question still comes. */
export function endNote(view, newQuestion) {
  view.note?.querySelectorAll("button").forEach((button) => button.remove());
  if (!newQuestion && !view.messages.at(-1)?.status) view.note?.remove();
  view.note = null;
  view.stored.querySelector(".approval")?.remove();
}

/** Shows the version that was looked at last, where that is not the newest. */
export async function restoreVersion(view) {
  const earlier = await keptVersion(view);
  if (!earlier || view.turn || !isShown(view)) return;
  view.earlier = earlier;
  renderMessages(view);
}
