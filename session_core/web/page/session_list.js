// The list of sessions, and the header that names the one that is shown.

import { element } from "./markdown.js";
import { json } from "./server.js";
import { $, PAGE_SIZE, state } from "./state.js";

export async function refreshList() {
  const page = await json(`sessions?details=true&limit=${PAGE_SIZE}`);
  page.sessions = page.sessions.filter(({ id }) => !state.hidden.has(id));
  const ids = new Set(page.sessions.map(({ id }) => id));
  const oldest = page.sessions.at(-1)?.updated_at;
  // Sessions of further pages stay, unless they have moved up or are gone.
  const rest = page.next ? state.sessions.filter(({ id, updated_at: at }) => !ids.has(id) && at <= oldest) : [];
  if (!rest.length) state.nextSessions = page.next;
  state.sessions = [...page.sessions, ...rest];
  drawList();
}

export async function showMoreSessions() {
  const page = await json(`sessions?details=true&limit=${PAGE_SIZE}&after=${state.nextSessions}`).catch((error) => {
    if (error.status !== 400) throw error;
    return { sessions: [], next: null }; // The session that the cursor names was deleted.
  });
  const ids = new Set(state.sessions.map(({ id }) => id));
  const fresh = page.sessions.filter(({ id }) => !ids.has(id) && !state.hidden.has(id));
  state.sessions.push(...fresh);
  state.nextSessions = page.next;
  drawList();
  if (fresh.length) $("list").querySelector(`a[href="#${fresh[0].id}"]`).focus();
}

/** Shows only sessions whose titles have all these words. For that the whole list is read. */
export async function filterList(words) {
  state.filter = words;
  drawList();
  while (state.filter.trim() && state.nextSessions) {
    const page = await json(`sessions?details=true&limit=1000&after=${state.nextSessions}`);
    const ids = new Set(state.sessions.map(({ id }) => id));
    state.sessions.push(...page.sessions.filter(({ id }) => !ids.has(id) && !state.hidden.has(id)));
    state.nextSessions = page.next;
    drawList();
  }
}

/** Puts these details of a session in place of the older ones in the list. */
export function updateSession(details) {
  state.sessions = state.sessions.map((session) => (session.id === details.id ? details : session));
  drawList();
}

export function removeSession(id) {
  state.sessions = state.sessions.filter((session) => session.id !== id);
}

/** The title to show. A title of spaces and invisible characters counts as none. */
function titleOf({ title, message_count: count }) {
  if (title?.replace(/[\s\p{C}\p{M}]/gu, "")) return title;
  return count ? "Untitled session" : "Empty session";
}

function briefTime(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short" });
}

let drawnList = "";

export function drawList() {
  drawHeader();
  const words = state.filter.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const shown = state.sessions.filter((session) => words.every((word) => titleOf(session).toLocaleLowerCase().includes(word)));
  const drawing = JSON.stringify([shown, state.view.id, state.nextSessions, state.filter]);
  if (drawing === drawnList) return;
  drawnList = drawing;
  const focused = document.activeElement?.closest("#list a")?.hash;
  $("list").replaceChildren(...shown.map(sessionRow));
  $("more").hidden = !state.nextSessions || words.length > 0;
  $("no-match").hidden = shown.length > 0 || !words.length;
  if (focused) $("list").querySelector(`a[href="${focused}"]`)?.focus();
}

function sessionRow(session) {
  const facts = element("span", { class: "facts" }, element("time", { datetime: session.updated_at }, briefTime(session.updated_at)));
  facts.append(session.running ? ", answering" : `, ${session.message_count} message${session.message_count === 1 ? "" : "s"}`);
  const attributes = { href: `#${session.id}`, class: session.running ? "running" : null };
  const link = element("a", attributes, element("bdi", { class: "name" }, titleOf(session)), facts);
  if (session.id === state.view.id) link.setAttribute("aria-current", "page");
  return element("li", {}, link);
}

export function drawHeader() {
  const { view } = state;
  const session = state.sessions.find(({ id }) => id === view.id) ?? view.details;
  const title = session ? titleOf(session) : view.id ? "Session" : "New session";
  $("title").textContent = title.slice(0, 200);
  document.title = view.id ? `${title.slice(0, 60)} · session_server` : "session_server";
  $("actions").hidden = $("menu").hidden = !$("rename-form").hidden;
  for (const id of ["rename", "export", "delete"]) $(id).hidden = !view.id;
  const { total_tokens: total, prompt_tokens: read = 0, completion_tokens: written = 0 } = view.usage ?? {};
  const tokens = total ?? read + written;
  $("tokens").textContent = tokens ? `${tokens.toLocaleString()} tokens` : "";
  $("earlier").hidden = !view.next;
}
