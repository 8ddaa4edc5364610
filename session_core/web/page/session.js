// The session that is shown: opened, kept up to date, renamed, deleted, left.

import { drawRunning, run } from "./asking.js";
import { drawEnd, giveBack, merge, readPage } from "./conversation.js";
import { deleteLater } from "./deleting.js";
import { hurry, newTurn } from "./follow.js";
import { fitBox, focusBox, setDrawer, setMenu } from "./layout.js";
import { announce, attempt, say } from "./notices.js";
import { json, recall, remember } from "./server.js";
import { drawHeader, drawList, refreshList, updateSession } from "./session_list.js";
import { $, box, newView, state } from "./state.js";

const drafts = new Map(); // what was typed and not sent, by session

export async function open(id) {
  drafts.set(state.view.id, box.value);
  state.view.closed = true;
  state.turn?.reconnect();
  hurry();
  state.turn = null;
  const here = (state.view = newView(id));
  box.value = drafts.get(id) ?? "";
  drafts.delete(id);
  fitBox();
  $("stored").replaceChildren();
  $("live").replaceChildren();
  say("");
  announce("");
  setMenu(false);
  drawHeader();
  drawList();
  drawRunning();
  if (!id) return;
  here.loading = true;
  drawRunning();
  try {
    await refresh(here);
  } finally {
    here.loading = false;
    if (!here.closed) drawRunning();
  }
}

/** Reads the newest messages and takes up the turn that runs, if one does. */
async function refresh(of) {
  const page = await readPage(of);
  if (of.closed || state.turn) return;
  if (page.running) {
    // What the running turn has stored comes again as events. Its question may not be stored yet; its first event
    // tells when it is.
    const asked = page.messages.findLastIndex(({ role }) => role === "user");
    if (!of.messages.length) merge(of, { ...page, messages: page.messages.slice(0, asked + 1) });
    of.loading = false;
    attempt(() => run(newTurn(of)));
  } else {
    merge(of, page);
    drawEnd(of);
  }
}

/** Looks whether another tab or program has changed this session. */
export async function poll() {
  const here = state.view;
  if (document.hidden || state.turn || !here.id || here.loading) return;
  const { messages, running } = await json(`sessions/${here.id}?limit=1`, { quiet: true });
  if (here.closed || state.turn || here.loading) return;
  if (running || messages.at(-1)?.id !== here.messages.at(-1)?.id) await refresh(here);
}

export async function rename(title) {
  const here = state.view;
  const details = await json(`sessions/${here.id}`, { method: "PATCH", body: { title } });
  here.details = details;
  updateSession(details);
  if (!here.closed) closeRename();
}

export function openRename() {
  $("rename-text").value = state.sessions.find(({ id }) => id === state.view.id)?.title ?? "";
  $("rename-form").hidden = false;
  $("title").hidden = $("actions").hidden = true;
  $("rename-text").select();
}

export function closeRename() {
  const focused = $("rename-form").contains(document.activeElement);
  $("rename-form").hidden = true;
  $("title").hidden = false;
  drawHeader();
  if (focused) $("rename").focus();
}

export function remove() {
  const { id } = state.view;
  const title = $("title").textContent;
  startNew();
  deleteLater(id, title);
}

export function startNew() {
  history.pushState(null, "", location.pathname + location.search);
  attempt(() => open(null));
  setDrawer(false);
  focusBox();
}

/** Leaves a session that the server no longer has, and saves the message that was on its way. */
export function leaveLostSession(lost) {
  const asked = recall(lost.id);
  remember(lost.id, null);
  history.replaceState(null, "", location.pathname + location.search);
  open(null);
  if (asked) giveBack(state.view, asked);
  say("That session is no longer on the server. Sessions in memory end when the server does.");
  attempt(refreshList);
}

/** Shows the session that the address names. */
export function showAddressed() {
  const id = /^#(session-[0-9a-z-]{1,64})$/.exec(location.hash)?.[1] ?? null;
  setDrawer(false);
  if (!$("rename-form").hidden) closeRename();
  if (id !== state.view.id) attempt(() => open(id));
  focusBox();
}
