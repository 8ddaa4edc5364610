// What the page says beside the conversation: problems in words, and announcements for screen readers.

import { $ } from "./element.js";
import { ConnectionLost, Refused } from "./http.js";
import { render } from "./render.js";
import { isShown, state } from "./view.js";

/** Says something above the message box. It goes with the next message, or with the turn that it is about. `failure` colours it; `action` is a button: its words, and what it does. */
export function showNotice(view, words, { failure = false, turn = null, action = null } = {}) {
  view.notice = words ? { words, failure, turn, action } : null;
  render();
}

/** Says that the server cannot be reached, until it can. */
export function setUnreachable(unreachable) {
  if (state.unreachable === unreachable) return;
  state.unreachable = unreachable;
  render();
}

export function announce(words) {
  $("announcer").textContent = words.length > 3000 ? `${words.slice(0, 3000)} … The rest is on the page.` : words;
}

let onSessionLost = () => {};

/** Sets what happens when the server no longer has the session of a view. */
export const setSessionLost = (callback) => (onSessionLost = callback);

/** Runs what a click or a timer asks for, and says what goes wrong. */
export async function attempt(action) {
  const { view } = state;
  try {
    await action();
  } catch (error) {
    tell(view, error);
  }
}

/** Says what went wrong in a view. */
export function tell(view, error) {
  if (error instanceof ConnectionLost) return setUnreachable(true);
  if (!isShown(view)) return;
  if (error instanceof Refused) {
    if (error.status === 401) return; // The dialog, or the notice in its place, has said so.
    if (error.status === 404 && error.code === "session_not_found" && view.id) onSessionLost(view);
    else showNotice(view, error.words, { failure: true });
  } else {
    showNotice(view, "Something in this page went wrong. Reloading it may help.", { failure: true });
    throw error;
  }
}
