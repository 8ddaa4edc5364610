// The list of sessions: by day, filtered by words of titles and texts, with a menu for each.

import { $, element } from "./element.js";
import { marked, patternOf, wordsOf } from "./found.js";
import { json } from "./http.js";
import { menuButton } from "./layout.js";
import { announce, attempt } from "./notices.js";
import { isOutdated, plainWords, render, shortTime, titleOf } from "./render.js";
import { PAGE_SIZE, state } from "./view.js";

let callbacks = { rename() {}, remove() {} };

/** What the menu of a session does. */
export const setListCallbacks = (given) => (callbacks = given);

export async function refreshList() {
  if (state.signedOut) return;
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

function addSessions(page) {
  const ids = new Set(state.sessions.map(({ id }) => id));
  const fresh = page.sessions.filter(({ id }) => !ids.has(id) && !state.hidden.has(id));
  state.sessions.push(...fresh);
  state.nextSessions = page.next;
  drawList();
  return fresh;
}

export async function showMoreSessions() {
  if (state.found) return readFound(state.filter, state.nextFound);
  const page = await json(`sessions?details=true&limit=${PAGE_SIZE}&after=${state.nextSessions}`).catch((error) => {
    if (error.status !== 400) throw error;
    return { sessions: [], next: null }; // The session that the cursor names was deleted.
  });
  const [first] = addSessions(page);
  if (first) $("list").querySelector(`a[href="#${first.id}"]`).focus();
}

/** Shows only sessions that have all these words, at once those of the list that have them in their titles. */
export async function filterList(words) {
  Object.assign(state, { filter: words, found: null, nextFound: null });
  drawList();
  await new Promise((resolve) => setTimeout(resolve, 200)); // Somebody may still be typing.
  if (state.filter === words && wordsOf(words).length) await readFound(words, "");
}

/** Adds sessions that have the words. The search stops after a while, and tells from where it goes on. */
async function readFound(words, after) {
  const { sessions, next } = await json(`sessions?details=true&limit=${PAGE_SIZE}&q=${encodeURIComponent(words)}${after && `&after=${after}`}`);
  if (state.filter !== words) return;
  const fresh = sessions.filter(({ id }) => !state.hidden.has(id));
  state.found = after ? [...state.found, ...fresh] : fresh;
  state.nextFound = next;
  drawList();
  if (!after) announce(fresh.length ? `${fresh.length}${next ? " or more" : ""} found.` : "Nothing is found.");
}

/** Puts these details of a session in place of the older ones in the list. */
export function updateSession(details) {
  state.sessions = state.sessions.map((session) => (session.id === details.id ? details : session));
  drawList();
}

export function removeSession(id) {
  state.sessions = state.sessions.filter((session) => session.id !== id);
}

/** What is known of a session that stands further down in the list, for its title. */
export async function findDetails(id) {
  while (!state.sessions.some((session) => session.id === id) && state.nextSessions)
    addSessions(await json(`sessions?details=true&limit=1000&after=${state.nextSessions}`));
}

export function drawList() {
  render();
  const words = wordsOf(state.filter.toLocaleLowerCase());
  const titled = state.sessions.filter((session) => words.every((word) => titleOf(session).toLocaleLowerCase().includes(word)));
  const shown = state.found ?? titled;
  if (!isOutdated($("list"), shown, state.view.id, state.nextSessions, Boolean(state.found), state.nextFound, state.filter, new Date().getDate())) return;
  const focused = document.activeElement?.closest("#list a")?.hash;
  let day = "";
  $("list").replaceChildren(...shown.map((session) => {
    const row = sessionRow(session);
    const its = dayOf(session.updated_at);
    if (its !== day) row.prepend(element("p", { class: "day" }, (day = its)));
    return row;
  }));
  $("more").hidden = !(state.found ? state.nextFound : state.nextSessions && !words.length);
  $("more").textContent = state.found ? "Search further" : "More sessions";
  $("no-match").hidden = !state.found || shown.length > 0 || !$("more").hidden;
  if (focused) $("list").querySelector(`a[href="${focused}"]`)?.focus();
}

const DAY = 86_400_000; // milliseconds

function dayOf(time) {
  const date = new Date(time);
  const midnight = (of) => new Date(of.getFullYear(), of.getMonth(), of.getDate());
  const days = Math.round((midnight(new Date()) - midnight(date)) / DAY);
  if (days < 1) return "Today";
  if (days < 2) return "Yesterday";
  if (days < 7) return "Last seven days";
  return date.toLocaleString([], { month: "long", year: "numeric" });
}

function sessionRow(session) {
  const { id, message_id: place, snippet } = session;
  const facts = element("span", { class: "facts" }, element("time", { datetime: session.updated_at }, shortTime(session.updated_at)));
  facts.append(session.running ? ", answering" : `, ${session.message_count} message${session.message_count === 1 ? "" : "s"}`);
  const link = element("a", { href: place ? `#${id}/${place}` : `#${id}`, class: session.running ? "running" : null });
  const pattern = patternOf(state.filter);
  link.append(element("bdi", { class: "name" }, ...marked(titleOf(session), pattern)), snippet ? element("span", { class: "snippet" }, ...marked(plainWords(snippet), pattern)) : facts);
  if (id === state.view.id) link.setAttribute("aria-current", "page");
  return element("li", {}, link, rowMenu(session));
}

function rowMenu(session) {
  const title = titleOf(session);
  return menuButton("more", `Actions of ${title}`, "row-menu", () => [
    ["Rename", "plain", () => attempt(() => callbacks.rename(session.id))],
    ["Delete", "plain danger", () => attempt(() => callbacks.remove(session.id, title))],
  ]);
}
