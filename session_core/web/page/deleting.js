// Deleting a session, with some seconds to think better of it.

import { $ } from "./element.js";
import { json } from "./http.js";
import { forgetSession } from "./kept.js";
import { announce, attempt } from "./notices.js";
import { drawList, refreshList, removeSession } from "./session_list.js";
import { state } from "./view.js";

const UNDO = 6_000; // milliseconds

let waiting = null; // the session that goes when its time is up

/** Takes the session out of the list now, and deletes it on the server when the time to undo that is over. */
export function deleteLater(id, title) {
  deleteAtOnce();
  waiting = { id, timer: setTimeout(deleteAtOnce, UNDO) };
  state.hidden.add(id);
  removeSession(id);
  drawList();
  $("deleted-name").textContent = title;
  $("deleted").hidden = false;
  announce("The session is deleted. Undo brings it back.");
}

export function undoDelete() {
  const id = endWaiting();
  if (!id) return;
  state.hidden.delete(id);
  location.hash = id;
  attempt(refreshList);
  announce("The session is back.");
}

/** Deletes now what is still to be deleted, also when the page is left. */
export function deleteAtOnce() {
  const id = endWaiting();
  if (!id) return;
  forgetSession(id);
  attempt(async () => {
    try {
      await json(`sessions/${id}`, { method: "DELETE", keepalive: true });
    } catch (error) {
      if (error.status !== 404) throw error;
    } finally {
      state.hidden.delete(id);
    }
  });
}

/** Nothing waits any more. Returns the session that did. */
function endWaiting() {
  const { id, timer } = waiting ?? {};
  clearTimeout(timer);
  waiting = null;
  $("deleted").hidden = true;
  return id;
}
