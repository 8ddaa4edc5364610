// Following one turn through any number of broken connections.
//
// A turn belongs to the server, not to the connection. The page may lose the connection at any moment and take the
// turn up again: after the last event that it has seen, or from the first.

import { sendable } from "./files.js";
import { ConnectionLost, json, readEvents, request } from "./http.js";
import { setUnreachable } from "./notices.js";
import { isShown } from "./view.js";

// Milliseconds without a byte, after which a connection counts as dead. The server sends something every 15 s.
export const SILENCE = 45_000;
const LOOK = 5_000; // milliseconds between looks from a tab that nobody sees

const ends = new Set();

/** Ends all pauses between two tries at once. */
export const hurry = () => ends.forEach((end) => end());

export function pause(milliseconds) {
  return new Promise((resolve) => {
    const end = () => {
      ends.delete(end);
      clearTimeout(timer);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    ends.add(end);
  });
}

/** Does something until it succeeds, or fails in a way that does not pass. */
export async function patiently(act, passes) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      return await act();
    } catch (error) {
      if (!passes(error)) throw error;
    }
    await pause(wait);
  }
}

/** A turn of a view. With a key it is asked for; without, the running turn is watched. `bubble` says whether its question is drawn with it. */
export function newTurn(view, asked = {}) {
  const { text = null } = asked;
  const whole = { text, content: text, key: null, bubble: false, continues: false, answers: null, ...asked };
  return {
    view,
    asked: whole, // what is remembered of it
    ...whole,
    answer: null,
    length: 0, // characters of text
    lastEvent: null,
    stopping: false,
    heardAt: 0,
    activity: { words: "Sending", since: Date.now(), heardAt: Date.now() },
    release() {}, // lets go of the connection
  };
}

/** Whether somebody still wants to see the turn, or must know that its message has arrived. */
const isWanted = (turn) => isShown(turn.view) || (turn.key !== null && !turn.lastEvent);

/** Asks for a turn, again with the same key if need be, until its first event. After that, watches it. */
async function openStream(turn, signal) {
  const path = `sessions/${turn.view.id}/run_stream`;
  if (turn.lastEvent) return request(path, { signal, headers: { "Last-Event-ID": turn.lastEvent } });
  if (turn.key === null) return request(turn.queuedAs ? `${path}?message=${turn.queuedAs}` : path, { signal });
  return request(path, { signal, method: "POST", body: await bodyOf(turn), headers: { "Idempotency-Key": turn.key } });
}

async function bodyOf({ content, replaces, after, continues, answers, model }) {
  const wish = continues ? { continue: true } : answers ? { answers } : { message: await sendable(content) };
  return { ...wish, ...(replaces && { replaces }), ...(after && { after }), ...(model && { model }) };
}

/** A tab that nobody sees holds no connection, of which a browser has six for a server. It looks now and then whether the turn has ended. */
async function waitUnseen(turn) {
  while (document.hidden && isWanted(turn)) {
    await pause(LOOK);
    const { running } = await json(`sessions/${turn.view.id}?limit=1`, { quiet: true });
    if (!running) return;
  }
}

/** Hands each event of a turn to `handleEvent`. Returns the last one, or null where the server no longer holds the events. */
export async function follow(turn, handleEvent) {
  for (let failures = 1; ; failures += 1) {
    const line = new AbortController();
    const heard = () => (turn.heardAt = Date.now());
    const watchdog = setInterval(() => Date.now() - turn.heardAt > SILENCE && line.abort(), 1000);
    let wait = Math.min(300 * 2 ** (failures - 1), 10_000);
    let released = false;
    turn.release = (unseen = false) => {
      released = unseen;
      line.abort();
    };
    heard();
    try {
      const response = await openStream(turn, line.signal);
      if (response.status === 204) return null;
      for await (const event of readEvents(response, heard)) {
        failures = 1;
        await handleEvent(turn, event);
        if (event.type === "stream_end" || event.type === "error") return event;
        if (!isWanted(turn)) throw new ConnectionLost();
      }
    } catch (error) {
      if (error.status === 410 || (error.status === 404 && turn.queuedAs)) return null; // gone, or taken back
      const passing = error instanceof ConnectionLost || (turn.lastEvent && error.status >= 500);
      if (!passing || !isWanted(turn)) throw error;
      wait = Math.max(wait, 1000 * (error.retryAfter ?? 0));
    } finally {
      clearInterval(watchdog);
      line.abort();
    }
    if (released) {
      failures = 0;
      await waitUnseen(turn).catch(() => {});
      continue;
    }
    if (failures > 1 && isShown(turn.view)) setUnreachable(true);
    await pause(wait);
    if (!isWanted(turn)) throw new ConnectionLost();
  }
}
