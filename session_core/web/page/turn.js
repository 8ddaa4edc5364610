// A turn on the page: sent, drawn from its events, stopped, settled.

import { Answer } from "./answer.js";
import { contentOf, setParts } from "./attachments.js";
import { endNote, giveBack, merge, readPage, renderMessages, settle } from "./conversation.js";
import { partsOf, sendable } from "./files.js";
import { follow, newTurn, patiently, pause } from "./follow.js";
import { ConnectionLost, json, newKey, Refused, request } from "./http.js";
import { keepDraft, keepFile, keepReturned, readDraft, readReturned, remember } from "./kept.js";
import { fitBox, focusBox, toBottom } from "./layout.js";
import { drawQuestion } from "./messages.js";
import { announce, attempt, setUnreachable, showNotice, tell } from "./notices.js";
import { render, textOf } from "./render.js";
import { refreshList } from "./session_list.js";
import { showVersion } from "./stepping.js";
import { keepVersion } from "./versions.js";
import { box, isQuestion, isShown, state } from "./view.js";

const BUSY = "An answer is being written. Stop it, or send this when it is complete.";

const cancel = (view) => json(`sessions/${view.id}/cancel`, { method: "POST" });

/** The key of a message. One that came back unsent, and is sent unchanged, is the same turn: the server may have it after all. */
const identify = (view, content) => readReturned(view.id, content) ?? { key: newKey() };

export async function send() {
  const { view } = state;
  if (view.phase !== "ready" || view.compacting) return;
  if (view.turn || view.session.queued?.length) return sendMeanwhile("queue");
  const text = box.value.trimEnd();
  if (!text.trim() && !view.parts.length) return;
  const after = view.earlier?.at(-1).id;
  const content = contentOf(text, view.parts);
  emptyBox(view);
  const { key, replaces } = identify(view, content);
  await ask(view, { text, content, key, bubble: true, replaces, after: replaces ? undefined : after });
}

/** Sends a message while an answer is written: it waits its turn (`queue`), goes into this one (`steer`), or takes its place (`interrupt`). */
export async function sendMeanwhile(how) {
  const { view } = state;
  const text = box.value.trimEnd();
  if (!text.trim() && !view.parts.length) return;
  if (!view.id) return showNotice(view, BUSY, { turn: view.turn });
  const content = contentOf(text, view.parts);
  const { key } = identify(view, content);
  keepReturned(view.id, { content, key });
  const sent = await sendable(content);
  const body = { message: sent, if_busy: how };
  const post = () => request(`sessions/${view.id}/run_stream`, { method: "POST", body, headers: { "Idempotency-Key": key } });
  const isInBox = () => state.view.id === view.id && box.value.trimEnd() === text;
  const response = await patiently(post, (error) => error instanceof ConnectionLost && isInBox() && (setUnreachable(true), true));
  keepReturned(view.id, null);
  // Somebody may have looked at another session meanwhile, or come back.
  const now = state.view.id === view.id ? state.view : view;
  if (isInBox() || (!isShown(now) && readDraft(now.id).trimEnd() === text)) emptyBox(now);
  if (response.status === 202) addToQueue(now, { id: (await response.json()).id, content: sent }, how);
  else response.body.cancel(); // Its turn has begun.
  if (isShown(now) && now.phase === "ready" && !now.turn) await run(newTurn(now, nextTurn(now)));
}

const MEANWHILE = { queue: "The message is in line.", steer: "The model gets the message next.", interrupt: "The message takes the place of this answer." };

function addToQueue(view, message, how) {
  // The server may have had it already.
  const queued = (view.session.queued ?? []).filter(({ id }) => id !== message.id);
  view.session.queued = how === "queue" ? [...queued, message] : [message, ...queued];
  announce(MEANWHILE[how]);
  render();
}

/** Takes a message that waits back into the box. */
export async function takeBack(id) {
  const { view } = state;
  const message = view.session.queued?.find((one) => one.id === id);
  await json(`sessions/${view.id}/queued/${id}`, { method: "DELETE" });
  view.session.queued = view.session.queued?.filter((one) => one.id !== id);
  if (view.turn?.queuedAs === id) view.turn.release();
  for (const part of partsOf(message.content)) if (part.data) await keepFile(part);
  giveBack(view, { text: textOf(message.content), content: message.content });
  focusBox();
  render();
}

/** What is to be watched next: the turn of a question that is not shown yet, or else of the first message that waits. While somebody is asked, none begins. */
export function nextTurn({ messages, session: { queued = [], pending = [] } }, page = { messages: [], waited: [] }) {
  const isNew = (one) => isQuestion(one) && !messages.some(({ id }) => id === one.id);
  const next = page.messages.findLast(isNew) ?? page.waited.find(isNew) ?? queued[0];
  return next && !pending.length ? { queuedAs: next.id } : {};
}

function emptyBox(view) {
  setParts(view, []);
  keepDraft(view.id, "");
  if (!isShown(view)) return;
  box.value = "";
  fitBox();
}

/** Asks for a turn, in a session that is made first where there is none. `bubble` says whether its question is still to be drawn. */
export function ask(view, asked) {
  const { replaces, after } = asked;
  if (after) Object.assign(view, { messages: view.earlier, all: null });
  if (view.earlier) {
    view.earlier = null;
    renderMessages(view);
  }
  if (view.id) keepVersion(view);
  const before = replaces ? view.messages.findIndex(({ id }) => id === replaces) : view.messages.length;
  const last = view.messages.slice(0, before < 0 ? undefined : before).at(-1)?.id;
  view.notice = null;
  keepReturned(view.id, null);
  endNote(view, asked.bubble);
  if (isShown(view)) toBottom();
  return run(newTurn(view, { ...asked, last }));
}

/** Asks in the place of a question that is there, and of all behind it. */
export async function askInPlace(view, id, content, model) {
  if (view.turn) return showNotice(view, BUSY, { turn: view.turn });
  const shown = view.earlier ?? view.messages;
  const index = shown.findIndex((message) => message.id === id);
  const hidden = shown.slice(index + 1).filter(isQuestion);
  Object.assign(view, { earlier: null, all: null, messages: shown.slice(0, index) });
  renderMessages(view);
  const done = ask(view, { text: textOf(content), content, key: newKey(), bubble: true, replaces: id, model });
  tellHidden(view, hidden, id);
  return done;
}

/** Says that others stand in the place of questions, and shows them again on request: the version that has this one. */
export function tellHidden(view, hidden, id = hidden[0]?.id) {
  if (!hidden.length) return;
  const words = hidden.length > 1 ? `${hidden.length} later questions are hidden now.` : "A later question is hidden now.";
  showNotice(view, words, { action: ["Undo", () => attempt(() => undoReplace(view, id))] });
}

/** Goes back to what was shown before a question was asked anew. */
async function undoReplace(view, id) {
  view.notice = null;
  if (view.turn) await cancel(view);
  while (view.turn) await pause(50);
  await showVersion(view, id);
}

/** Asks for the turn that the note under the last answer offers. */
export function askAgain() {
  const { view } = state;
  focusBox();
  if (view.retry.key) return ask(view, view.retry);
  return askInPlace(view, view.retry.replaces, view.retry.content);
}

/** Goes on with the last turn, which did not complete. */
export function continueTurn() {
  const { view } = state;
  focusBox();
  return ask(view, { key: newKey(), continues: true });
}

/** Goes on with a turn that waited, with the answers to its calls. */
export function answerPending(view, answers) {
  focusBox();
  return ask(view, { key: newKey(), answers });
}

export async function stop() {
  const { turn, compacting } = state.view;
  if (compacting) return cancel(state.view);
  if (!turn || turn.stopping) return;
  turn.stopping = true; // A turn that has not started is cancelled when it does.
  render();
  if (!turn.view.id) return;
  try {
    await cancel(turn.view);
  } catch (error) {
    turn.stopping = false;
    render();
    throw error;
  }
}

/** Draws a turn from its beginning, or from where it is, to its end, and then settles what was stored of it. */
export async function run(turn) {
  const { view } = turn;
  view.turn = turn;
  if (turn.bubble) drawTurn(turn);
  render();
  announce("Waiting for the answer.");
  let page = null;
  try {
    page = await runToEnd(turn);
  } catch (error) {
    // What is no longer looked at is read again when it is.
    if (isShown(view) || !(error instanceof ConnectionLost)) tell(view, error);
  } finally {
    state.unsent.delete(view.id);
    if (view.turn === turn) view.turn = null;
    view.live.replaceChildren();
    render();
  }
  if (!isShown(view) || !page) return;
  attempt(refreshList);
  const next = nextTurn(view, page);
  if (next.queuedAs || (page.running && turn.key !== null)) await run(newTurn(view, next));
}

async function runToEnd(turn) {
  const { view } = turn;
  let problem = null;
  const isNew = !view.id;
  if (isNew) await makeSession(turn);
  if (turn.key !== null) remember(view.id, { ...turn.asked, at: Date.now() });
  if (isNew) remember("new", null);
  const last = await follow(turn, handleEvent).catch((error) => {
    // A watched turn is tried again by `poll`. Of one that we asked for we must know whether it was stored.
    if (turn.key === null || !(error instanceof Refused) || error.status === 404) throw error;
    problem = error;
    if (turn.bubble) giveBack(view, turn);
    remember(view.id, null);
    return null;
  });
  if (!isShown(view)) return null;
  turn.answer?.finish();
  const { queued: waited = [] } = view.session;
  const passes = (error) => isShown(view) && (error instanceof ConnectionLost || error.status >= 500);
  const page = { ...(await patiently(() => readPage(view), passes)), waited };
  view.turn = null;
  const words = settle(turn, last, page);
  announce([last && turn.answer.words, words].filter(Boolean).join(" "));
  if (document.hidden) view.unread = true;
  if (problem) sayProblem(turn, problem);
  return page;
}

function sayProblem({ view, bubble }, problem) {
  if (problem.status === 422) keepReturned(view.id, null);
  const busy = problem.code === "session_busy" && bubble;
  if (busy) showNotice(view, "Another message is being answered in this session. Yours was not sent and is back in the box.");
  else showNotice(view, problem.words, { failure: true });
}

/** Makes the session of a new view, however long that takes. */
async function makeSession(turn) {
  const { view } = turn;
  remember("new", turn.asked);
  const make = () => json("sessions", { method: "POST", body: view.chosen });
  const made = await patiently(make, (error) => {
    if (error instanceof ConnectionLost) return setUnreachable(true), true;
    giveBack(view, turn);
    remember("new", null);
  });
  view.id = made.id;
  view.session = { ...view.chosen };
  if (isShown(view)) history.pushState(null, "", `#${view.id}`);
  else state.unsent.set(view.id, view);
  render();
}

const MODEL_IS_NEXT = ["stream_start", "stream_tool_result", "stream_chunk", "stream_reasoning"]; // what it goes on after

/** Draws one event of the running turn. */
async function handleEvent(turn, { type, id, created_at: startedAt, data }) {
  const { view } = turn;
  if (type === "stream_start") {
    drawTurn(turn);
    // From now on the turn's question is stored, and older messages can be told from those of the turn.
    if (!turn.bubble && !turn.answers) {
      merge(view, await readPage(view), startedAt, turn.queuedAs);
      endNote(view, false);
    }
    if (turn.stopping) await cancel(view);
    attempt(refreshList);
  } else if (type === "stream_reasoning") turn.answer.think(data.content);
  else if (type === "stream_chunk") {
    turn.length += data.content.length;
    turn.answer.write(data.content);
  } else if (type === "stream_tool_call") turn.answer.addCall(data);
  else if (type === "stream_tool_result") addResult(turn, data);
  else if (type === "stream_message") addMessage(turn, data);
  const next = type === "stream_tool_call" ? data.name : MODEL_IS_NEXT.includes(type) && "the model";
  setActivity(turn, next ? `Waiting for ${next}` : "");
  turn.lastEvent = id;
}

function setActivity(turn, words) {
  const now = Date.now();
  turn.activity = words === turn.activity.words && !turn.answer?.text ? { ...turn.activity, heardAt: now } : { words, since: now, heardAt: now };
  turn.answer?.showWaiting(turn.activity, now);
}

/** The result of a call that waited stands under that call, which is stored already. */
function addResult({ answer, answers }, data) {
  if (!answers?.[data.id]) return answer.addResult(data);
  answer.addCall({ id: data.id, name: data.name });
  answer.addResult(data);
}

/** A message that came in between, while the answer was written. */
function addMessage(turn, { content, message_id: id }) {
  const { view } = turn;
  turn.answer.finish();
  turn.length = NaN; // All is drawn again from what is stored.
  view.live.append(drawQuestion(content, id));
  turn.answer = new Answer(view.live);
  view.session.queued = view.session.queued?.filter((one) => one.id !== id);
  render();
}

function drawTurn(turn) {
  turn.length = 0;
  turn.view.live.replaceChildren();
  if (turn.bubble) turn.view.live.append(drawQuestion(turn.content));
  turn.answer = new Answer(turn.view.live);
  turn.answer.showWaiting(turn.activity, Date.now());
}
