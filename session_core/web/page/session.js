// The session that is shown: opened, kept up to date, renamed, left.

import { drawParts, setParts } from "./attachments.js";
import { drawEnd, giveBack, merge, readPage, restoreVersion, showEarlier, unsentMessage } from "./conversation.js";
import { deleteLater } from "./deleting.js";
import { $ } from "./element.js";
import { markIn, patternOf } from "./found.js";
import { hurry, newTurn, patiently } from "./follow.js";
import { ConnectionLost, json, Refused } from "./http.js";
import { forgetSession, keepDraft, readDraft, readDraftFiles, recall } from "./kept.js";
import { closeMenu, fitBox, focusBox, setDrawer, stay, toBottom } from "./layout.js";
import { announce, attempt, setUnreachable, showNotice } from "./notices.js";
import { render } from "./render.js";
import { drawList, findDetails, refreshList, updateSession } from "./session_list.js";
import { nextTurn, run } from "./turn.js";
import { box, isQuestion, isShown, newView, state } from "./view.js";

/** Shows a session, or a new one where there is no id; at the place of a message where one is given. */
export async function openSession(id, place = null) {
  const left = state.view;
  keepDraft(left.id, box.value);
  const view = (id && state.unsent.get(id)) || { ...newView(id), parts: readDraftFiles(id) };
  state.view = view;
  // A message that the server does not have yet is still on its way. All else is read again.
  if (left.id && left.turn?.key && !left.turn.lastEvent) state.unsent.set(left.id, left);
  else left.turn?.release();
  hurry();
  box.value = readDraft(id);
  drawParts(view);
  fitBox();
  announce("");
  markIn(null);
  closeMenu();
  if (!$("rename-form").hidden) closeRename();
  render();
  drawList();
  toBottom();
  if (id && !view.turn) await load(view);
  if (place && isShown(view)) await showPlace(view, place);
}

/** Reads a session until it is there, or the server says why it is not. */
export async function load(view) {
  view.phase = "loading";
  render();
  const passes = (error) => {
    if (!(error instanceof ConnectionLost) || !isShown(view)) return false;
    setUnreachable(true);
    showUnsent(view);
    return true;
  };
  await patiently(() => isShown(view) && !view.turn && refresh(view), passes).catch((error) => fail(view, error));
}

function fail(view, error) {
  if (!isShown(view)) return;
  if (error.status === 404) return void leaveLostSession(view);
  if (error.status === 401) return;
  view.phase = "failed";
  view.failure = error instanceof Refused ? error.words : "This session could not be shown.";
  render();
  if (!(error instanceof Refused)) throw error;
}

/** A message on its way is shown, and sent, also while the session itself cannot be read. */
function showUnsent(view) {
  const asked = view.turn ? null : unsentMessage(view);
  if (!asked) return;
  view.phase = "ready";
  attempt(() => run(newTurn(view, asked)));
}

/** Reads the newest messages and takes up the turn that runs, if one does. */
async function refresh(view) {
  const page = await readPage(view);
  if (!isShown(view) || view.turn) return;
  view.phase = "ready";
  if (page.running) {
    // What the running turn has stored comes again as events. Its question may not be stored yet; its first event
    // tells when it is.
    const asked = page.messages.findLastIndex(isQuestion);
    if (!view.messages.length) merge(view, { ...page, messages: page.messages.slice(0, asked + 1) });
    attempt(() => run(newTurn(view)));
    return;
  }
  merge(view, page);
  const next = nextTurn(view);
  if (next.queuedAs) return void attempt(() => run(newTurn(view, next))); // It begins when somebody looks.
  const asked = unsentMessage(view);
  if (asked) return void attempt(() => run(newTurn(view, asked)));
  drawEnd(view);
  // The title of a session that stands further down in the list is that of its first question, which is not read here.
  if (view.next && !view.session.title) attempt(() => findDetails(view.id));
  await restoreVersion(view);
}

async function showPlace(view, place) {
  const find = () => view.stored.querySelector(`article[data-ids~="${place}"]`);
  while (isShown(view) && view.next && !find()) await showEarlier();
  const article = isShown(view) && find();
  if (!article) return;
  const first = markIn(article, patternOf(state.filter));
  first?.startContainer.parentElement.closest("details")?.setAttribute("open", "");
  article.classList.add("found");
  stay();
  (first?.startContainer.parentElement ?? article).scrollIntoView({ block: "center" });
}

/** Looks whether another tab or program has changed this session. */
export async function poll() {
  const { view } = state;
  if (document.hidden || view.turn || view.compacting || !view.id || view.phase !== "ready" || state.signedOut) return;
  const { messages, running, queued, pending } = await json(`sessions/${view.id}?limit=1`, { quiet: true });
  if (!isShown(view) || view.turn || view.phase !== "ready") return;
  if (running || (queued && !pending) || messages.at(-1)?.id !== view.messages.at(-1)?.id) await refresh(view);
}

/** Has the model sum up now what is old. */
export async function compact() {
  const { view } = state;
  view.compacting = true;
  showNotice(view, "The model sums up what is old …");
  const { status } = await json(`sessions/${view.id}/compact`, { method: "POST", signal: null }).finally(() => (view.compacting = false));
  if (!isShown(view)) return;
  showNotice(view, status === "nothing_to_sum_up" ? "There is nothing to sum up yet." : "");
  if (!view.turn) merge(view, await readPage(view));
  view.stored.querySelector(".summary")?.scrollIntoView({ block: "center" });
}

export async function rename(title) {
  const { view } = state;
  const details = await json(`sessions/${view.id}`, { method: "PATCH", body: { title } });
  view.session.title = details.title;
  updateSession(details);
  if (isShown(view)) closeRename();
}

export function openRename() {
  const { view } = state;
  $("rename-text").value = state.sessions.find(({ id }) => id === view.id)?.title ?? view.session.title ?? "";
  $("rename-form").hidden = false;
  $("title").classList.add("unseen");
  $("menu").hidden = true;
  $("rename-text").select();
}

export function closeRename() {
  const focused = $("rename-form").contains(document.activeElement);
  $("rename-form").hidden = true;
  $("title").classList.remove("unseen");
  $("menu").hidden = false;
  render();
  if (focused) $("menu").focus();
}

/** Deletes the session that is shown, or another of the list. */
export function remove(id = state.view.id, title = $("title").textContent) {
  if (id === state.view.id) startNew();
  deleteLater(id, title);
}

export function startNew() {
  history.pushState(null, "", location.pathname + location.search);
  attempt(() => openSession(null));
  setDrawer(false);
  focusBox();
}

/** Leaves a session that the server no longer has, and saves the message that was on its way. */
export function leaveLostSession(lost) {
  const asked = recall(lost.id);
  const [draft, parts] = isShown(lost) ? [box.value, lost.parts] : ["", []];
  history.replaceState(null, "", location.pathname + location.search);
  openSession(null);
  box.value = draft || box.value;
  setParts(state.view, [...state.view.parts, ...parts]);
  if (asked) giveBack(state.view, asked);
  forgetSession(lost.id);
  showNotice(state.view, "That session is no longer on the server. Sessions in memory end when the server does.");
  attempt(refreshList);
}

/** Shows the session that the address names. */
export function showAddressed() {
  const [, id = null, place = null] = /^#(session-[0-9a-z-]{1,64})(?:\/(msg-[0-9a-z-]{1,64}))?$/.exec(location.hash) ?? [];
  setDrawer(false);
  if (id !== state.view.id) attempt(() => openSession(id, place));
  else if (place) attempt(() => showPlace(state.view, place));
  focusBox();
}
