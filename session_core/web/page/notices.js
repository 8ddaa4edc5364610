// What the page says beside the conversation: problems in words, and announcements for screen readers.

import { connection, ConnectionLost, Refused } from "./server.js";
import { $, state } from "./state.js";

export function say(words) {
  if ($("notice").textContent !== words) $("notice").textContent = words;
}

/** Says that the server cannot be reached, until it can. */
export function sayUnreachable() {
  say("The connection is lost. The page goes on trying.");
  connection.addEventListener("reached", () => say(""), { once: true });
}

export function announce(words) {
  $("announcer").textContent = words.length > 3000 ? `${words.slice(0, 3000)} … The rest is on the page.` : words;
}

/** Runs what a click or a timer asks for, and says what goes wrong. A session that is gone is an event `session-lost`. */
export async function attempt(action) {
  const here = state.view;
  try {
    await action();
  } catch (error) {
    if (here.closed) return;
    if (error instanceof ConnectionLost) sayUnreachable();
    else if (error instanceof Refused) {
      if (error.status === 404 && here.id) document.dispatchEvent(new CustomEvent("session-lost", { detail: here }));
      else say(error.words);
    } else {
      say("Something in this page went wrong. Reloading it may help.");
      throw error;
    }
  }
}
