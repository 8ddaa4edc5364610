// A turn on the page: sent, drawn from its events, stopped, settled.

import { endNote, giveBack, merge, readPage, redraw, settle } from "./conversation.js";
import { follow, newTurn, pause } from "./follow.js";
import { fitBox, focusBox, toBottom } from "./layout.js";
import { Answer, question } from "./messages.js";
import { announce, attempt, say } from "./notices.js";
import { ConnectionLost, json, newKey, Refused, remember } from "./server.js";
import { refreshList } from "./session_list.js";
import { $, box, state } from "./state.js";

const cancel = (of) => json(`sessions/${of.id}/cancel`, { method: "POST" });

export async function send() {
  const here = state.view;
  const text = box.value.trimEnd();
  if (!text.trim() || here.loading) return;
  if (state.turn) return say("An answer is being written. Stop it, or send this when it is complete.");
  if (!here.id) {
    here.loading = true;
    drawRunning();
    try {
      here.id = (await json("sessions", { method: "POST", body: here.chosen })).id;
    } finally {
      here.loading = false;
      if (!here.closed) drawRunning();
    }
    if (here.closed) return;
    history.pushState(null, "", `#${here.id}`);
  }
  box.value = "";
  fitBox();
  // A message that came back unsent, and is sent unchanged, is the same turn. The server may have it after all.
  const { key, replaces } = here.returned?.text === text ? here.returned : { key: newKey() };
  await ask(here, { text, key, bubble: true, replaces });
}

/** Asks for a turn. `bubble` says whether its question is still to be drawn. */
export function ask(of, asked) {
  remember(of.id, { ...asked, at: Date.now() });
  of.returned = null;
  if (of.older) {
    of.older = null;
    redraw(of);
  }
  say("");
  endNote(of, asked.bubble);
  toBottom();
  return run(newTurn(of, asked));
}

/** Asks in the place of a question that is there, and of all behind it. */
export function askInPlace(of, id, text) {
  if (state.turn) return say("An answer is being written. Stop it, or do this when it is complete.");
  of.messages = of.messages.slice(0, of.messages.findIndex((message) => message.id === id));
  redraw(of);
  return ask(of, { text, key: newKey(), bubble: true, replaces: id });
}

/** Asks for the turn that the note under the last answer offers. */
export function askAgain() {
  const { view } = state;
  focusBox();
  if (view.again.key) return ask(view, view.again);
  return askInPlace(view, view.again.replaces, view.again.text);
}

/** Goes on with the last turn, which did not complete. */
export function goOn() {
  const { view } = state;
  const { content } = view.messages.findLast(({ role }) => role === "user");
  focusBox();
  return ask(view, { text: content, key: newKey(), bubble: false, continues: true });
}

export async function stop() {
  const { turn } = state;
  if (!turn || turn.stopping) return;
  turn.stopping = true; // A turn that has not started is cancelled when it does.
  drawRunning();
  try {
    await cancel(turn.view);
  } catch (error) {
    turn.stopping = false;
    drawRunning();
    throw error;
  }
}

/** Draws a turn from its beginning, or from where it is, to its end, and then settles what was stored of it. */
export async function run(turn) {
  const here = turn.view;
  let problem = null;
  let page = null;
  state.turn = turn;
  drawRunning();
  announce("Waiting for the answer.");
  if (turn.bubble) drawTurn(turn);
  try {
    const last = await follow(turn, take).catch((error) => {
      // A watched turn is tried again by `poll`. Of one that we asked for we must know whether it was stored.
      if (here.closed || turn.text === null || !(error instanceof Refused) || error.status === 404) throw error;
      problem = error;
      if (turn.bubble) giveBack(here, turn);
      return null;
    });
    turn.answer?.finish();
    page = await readPatiently(here);
    const words = settle(turn, last, page);
    if (!here.closed) announce([last && turn.answer.words, words].filter(Boolean).join(" "));
  } finally {
    if (state.turn === turn) {
      state.turn = null;
      $("live").replaceChildren();
      drawRunning();
    }
  }
  if (here.closed) return;
  if (problem?.status === 422) here.returned = null;
  if (problem?.code === "session_busy" && turn.bubble) say("Another message is being answered in this session. Yours was not sent and is back in the box.");
  else if (problem) say(problem.words);
  attempt(refreshList);
  if (page.running && turn.text !== null) await run(newTurn(here));
}

/** Draws one event of the running turn. */
async function take(turn, { type, id, created_at: startedAt, data }) {
  if (type === "stream_start") {
    drawTurn(turn);
    // From now on the turn's question is stored, and older messages can be told from those of the turn.
    if (!turn.bubble) {
      merge(turn.view, await readPage(turn.view), startedAt);
      endNote(turn.view, false);
    }
    if (turn.stopping) await cancel(turn.view);
    attempt(refreshList);
  } else if (type === "stream_reasoning") turn.answer.think(data.content);
  else if (type === "stream_chunk") {
    turn.length += data.content.length;
    turn.answer.write(data.content);
  } else if (type === "stream_tool_call") turn.answer.call(data);
  else if (type === "stream_tool_result") turn.answer.result(data);
  turn.lastEvent = id;
}

function drawTurn(turn) {
  turn.length = 0;
  $("live").replaceChildren();
  if (turn.bubble) $("live").append(question(turn.text));
  turn.answer = new Answer($("live"));
}

async function readPatiently(of) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      return await readPage(of);
    } catch (error) {
      if (of.closed || !(error instanceof ConnectionLost || error.status >= 500)) throw error;
    }
    await pause(wait);
  }
}

/** Shows whether an answer is being written: the buttons, and what screen readers are told of it. */
export function drawRunning() {
  const { turn, view } = state;
  const focusLost = document.activeElement === (turn ? $("send") : $("stop"));
  $("conversation").setAttribute("aria-busy", String(Boolean(turn) || view.loading));
  $("send").hidden = Boolean(turn);
  $("stop").hidden = !turn;
  $("stop").disabled = Boolean(turn?.stopping);
  $("stop").textContent = turn?.stopping ? "Stopping" : "Stop";
  $("empty").hidden = Boolean(turn || view.loading || view.messages.length);
  if (focusLost) focusBox();
}
