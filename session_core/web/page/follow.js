// Following one turn through any number of broken connections.
//
// A turn belongs to the server, not to the connection. The page may lose the connection at any moment and take the
// turn up again: after the last event that it has seen, or from the first.

import { sayUnreachable } from "./notices.js";
import { ConnectionLost, readEvents, request } from "./server.js";

// Milliseconds without a byte, after which a connection counts as dead. The server sends something every 15 s.
export const SILENCE = 45_000;

let endPause = () => {};

/** Ends the pause between two tries at once. */
export const hurry = () => endPause();

export function pause(milliseconds) {
  return new Promise((resolve) => {
    endPause = resolve;
    setTimeout(resolve, milliseconds);
  });
}

/** A turn of the view `of`. With a text and a key it is asked for; without, the running turn is watched. */
export function newTurn(of, { text = null, key = null, bubble = false, replaces = null, continues = false } = {}) {
  const asked = { text, key, bubble, replaces, continues };
  return { view: of, ...asked, answer: null, length: 0, lastEvent: null, stopping: false, heardAt: 0, reconnect() {} };
}

/** Asks for a turn, again with the same key if need be, until its first event. After that, watches it. */
function openStream(turn, signal) {
  const path = `sessions/${turn.view.id}/run_stream`;
  if (turn.lastEvent) return request(path, { signal, headers: { "Last-Event-ID": turn.lastEvent } });
  if (turn.text === null) return request(path, { signal });
  const question = { message: turn.text, ...(turn.replaces && { replaces: turn.replaces }) };
  const body = turn.continues ? { continue: true } : question;
  return request(path, { signal, method: "POST", body, headers: { "Idempotency-Key": turn.key } });
}

/** Hands each event of a turn to `take`. Gives the last one, or null where the server no longer holds the events. */
export async function follow(turn, take) {
  for (let failures = 1; ; failures += 1) {
    const line = new AbortController();
    const heard = () => (turn.heardAt = Date.now());
    const watchdog = setInterval(() => Date.now() - turn.heardAt > SILENCE && line.abort(), 1000);
    let wait = Math.min(300 * 2 ** (failures - 1), 10_000);
    turn.reconnect = () => line.abort();
    heard();
    try {
      const response = await openStream(turn, line.signal);
      if (response.status === 204) return null;
      for await (const event of readEvents(response, heard)) {
        failures = 1;
        await take(turn, event);
        if (event.type === "stream_end" || event.type === "error") return event;
      }
    } catch (error) {
      if (error.status === 410) return null;
      const passing = error instanceof ConnectionLost || (turn.lastEvent && error.status >= 500);
      if (!passing || turn.view.closed) throw error;
      wait = Math.max(wait, 1000 * (error.retryAfter ?? 0));
    } finally {
      clearInterval(watchdog);
      line.abort();
    }
    if (failures > 1) sayUnreachable();
    await pause(wait);
    if (turn.view.closed) throw new ConnectionLost();
  }
}
