// The chat page of session_server: a list of sessions, one conversation, the answer as it streams.
//
// What the server has stored is the truth. An answer is drawn live from its events, and when it has
// ended the page asks what was kept: either that is what it has drawn, or it draws it anew. A turn
// belongs to the server, not to the connection, so the page may lose it at any moment and take it up
// again: after the last event it has seen, or from the first.

import { element } from "./markdown.js";
import { Answer, drawn, hasFailed, note, outcome, question } from "./messages.js";
import { connection, ConnectionLost, json, newKey, readEvents, recall, Refused, remember, request } from "./server.js";

const PAGE = 50; // messages, or sessions, in one request
const POLL = 5_000; // ms between looks at what other tabs and programs have done
const SILENCE = 45_000; // ms without a byte after which a connection counts as dead; a live one says something every 15 s
const LATE = 60_000; // ms after which a message that the server does not have will not arrive any more

const $ = (id) => document.getElementById(id);
const box = $("message");
const scroller = $("scroller");
const touch = matchMedia("(hover: none) and (pointer: coarse)");
const narrow = matchMedia("(max-width: 46rem)");

// The session that is shown: its stored messages, the cursor for earlier ones, and the note under the last answer.
const newView = (id) => ({ id, messages: [], next: null, note: null, returned: null, details: null, loading: false, closed: false });
let view = newView(null);
let current = null; // the turn that is drawn live
let sessions = []; // the list, newest first
let nextSessions = null; // the cursor for more of it
const drafts = new Map(); // what was typed but not sent, by session

function say(words) {
  if ($("notice").textContent !== words) $("notice").textContent = words;
}

/** Says that the server cannot be reached, until it is. */
function sayUnreachable() {
  say("The connection is lost. The page goes on trying.");
  connection.addEventListener("reached", () => say(""), { once: true });
}

function announce(words) {
  $("announcer").textContent = words.length > 3000 ? `${words.slice(0, 3000)} … The rest is on the page.` : words;
}

/** Runs what a click or a timer asks for, and puts what goes wrong into words. */
async function attempt(action) {
  const here = view;
  try {
    await action();
  } catch (error) {
    if (here.closed) return;
    if (error instanceof ConnectionLost) sayUnreachable();
    else if (error instanceof Refused) {
      if (error.status === 404 && here.id) leaveLostSession(here);
      else say(error.words);
    } else {
      say("Something in this page went wrong. Reloading it may help.");
      throw error;
    }
  }
}

function leaveLostSession(lost) {
  const asked = recall(lost.id);
  remember(lost.id, null);
  history.replaceState(null, "", location.pathname + location.search);
  open(null);
  if (asked) giveBack(view, asked);
  say("That session is no longer on the server. Sessions in memory end when the server does.");
  attempt(refreshList);
}

// ---- Following a turn ----

let endPause = () => {};

function pause(milliseconds) {
  return new Promise((resolve) => {
    endPause = resolve;
    setTimeout(resolve, milliseconds);
  });
}

/** Before its first event a turn of ours is asked for, again with the same key if need be; after that, and where it is another's, it is watched. */
function openStream(turn, signal) {
  const path = `sessions/${turn.view.id}/run_stream`;
  if (turn.lastEvent) return request(path, { signal, headers: { "Last-Event-ID": turn.lastEvent } });
  if (turn.text === null) return request(path, { signal });
  return request(path, { signal, method: "POST", body: { message: turn.text }, headers: { "Idempotency-Key": turn.key } });
}

/** The last event of a turn, through any number of broken connections; null where the server no longer holds its events. */
async function follow(turn) {
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

function newTurn(of, { text = null, key = null, bubble = false } = {}) {
  return { view: of, text, key, bubble, answer: null, length: 0, lastEvent: null, stopping: false, heardAt: 0, reconnect() {} };
}

/** Draws one event of the running turn. */
async function take(turn, { type, id, created_at: startedAt, data }) {
  if (type === "stream_start") {
    drawTurn(turn);
    // Only now is it sure that the turn's question is stored, and which messages are older than the turn.
    if (!turn.bubble) {
      merge(turn.view, await readPage(turn.view), startedAt);
      endNote(turn.view, false);
    }
    if (turn.stopping) await cancel(turn.view);
    attempt(refreshList);
  } else if (type === "stream_chunk") {
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

/** Draws a turn from its beginning or where it is, to its end, and then settles what was stored of it. */
async function run(turn) {
  const here = turn.view;
  let problem = null;
  let page = null;
  current = turn;
  drawRunning();
  announce("Waiting for the answer.");
  if (turn.bubble) drawTurn(turn);
  try {
    const last = await follow(turn).catch((error) => {
      // One that could not be watched is tried again by `poll`; of our own we must know whether it was stored.
      if (here.closed || turn.text === null || !(error instanceof Refused) || error.status === 404) throw error;
      problem = error;
      if (turn.bubble) giveBack(here, turn);
      return null;
    });
    turn.answer?.finish();
    page = await readPatiently(here);
    settle(turn, last, page);
  } finally {
    if (current === turn) {
      current = null;
      $("live").replaceChildren();
      drawRunning();
    }
  }
  if (here.closed) return;
  if (problem?.status === 422) here.returned = null;
  if (problem?.status === 409) say("Another message is being answered in this session. Yours was not sent and is back in the box.");
  else if (problem) say(problem.words);
  attempt(refreshList);
  if (page.running && turn.text !== null) await run(newTurn(here));
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

/** Makes what is shown equal to what is stored, after a turn has ended or was lost from sight. */
function settle(turn, last, page) {
  const here = turn.view;
  if (here.closed) return;
  const known = page.messages.findIndex(({ id }) => id === here.messages.at(-1)?.id);
  const fresh = page.messages.slice(known + 1);
  const questions = fresh.filter(({ role }) => role === "user").length;
  const seen =
    last &&
    turn.length === (last.data.complete_text?.length ?? turn.length) &&
    questions === Number(turn.bubble) &&
    (known >= 0 || !here.messages.length) &&
    !fresh.slice(0, -1).some(({ status }) => status);
  if (seen) {
    here.messages.push(...fresh);
    $("stored").append(...$("live").childNodes);
  } else {
    $("live").replaceChildren();
    if (!page.running) merge(here, page);
  }
  const words = page.running ? "" : drawEnd(here, last?.type === "error" ? last.data.error : "");
  announce([last && turn.answer.words, words].filter(Boolean).join(" "));
}

async function send() {
  const here = view;
  const text = box.value.trimEnd();
  if (!text.trim() || here.loading) return;
  if (current) return say("An answer is being written. Stop it, or send this when it is complete.");
  if (!here.id) {
    here.loading = true;
    drawRunning();
    try {
      here.id = (await json("sessions", { method: "POST" })).id;
    } finally {
      here.loading = false;
      if (!here.closed) drawRunning();
    }
    if (here.closed) return;
    history.pushState(null, "", `#${here.id}`);
  }
  box.value = "";
  fitBox();
  // What came back unsent, and is sent as it was, is the same turn: should it have arrived after all, it is not asked twice.
  const key = here.returned?.text === text ? here.returned.key : newKey();
  await ask(here, { text, key, bubble: true });
}

function ask(of, { text, key, bubble }) {
  remember(of.id, { text, key, at: Date.now() });
  of.returned = null;
  say("");
  endNote(of, bubble);
  toBottom();
  return run(newTurn(of, { text, key, bubble }));
}

const readPage = (of, query = "") => json(`sessions/${of.id}?limit=${PAGE}${query}`);
const cancel = (of) => json(`sessions/${of.id}/cancel`, { method: "POST" });

async function stop() {
  const turn = current;
  if (!turn || turn.stopping) return;
  turn.stopping = true; // A turn that has not begun is cancelled when it does.
  drawRunning();
  try {
    await cancel(turn.view);
  } catch (error) {
    turn.stopping = false;
    drawRunning();
    throw error;
  }
}

// ---- The session that is shown ----

async function open(id) {
  drafts.set(view.id, box.value);
  view.closed = true;
  current?.reconnect();
  endPause();
  current = null;
  const here = (view = newView(id));
  box.value = drafts.get(id) ?? "";
  drafts.delete(id);
  fitBox();
  $("stored").replaceChildren();
  $("live").replaceChildren();
  say("");
  announce("");
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
  if (of.closed || current) return;
  if (page.running) {
    // What the running turn has stored comes again as events. Its question may not be stored yet; `take` sees to that.
    const asked = page.messages.findLastIndex(({ role }) => role === "user");
    if (!of.messages.length) merge(of, { ...page, messages: page.messages.slice(0, asked + 1) });
    of.loading = false;
    attempt(() => run(newTurn(of)));
  } else {
    merge(of, page);
    drawEnd(of);
  }
}

/**
 * Shows the stored messages of a page that are not shown yet. Beside a running turn, drawn live, those are
 * the ones up to its question, and after it what an earlier try at the same question has left.
 */
function merge(of, page, startedAt = null) {
  if (of.closed) return;
  const known = page.messages.findIndex(({ id }) => id === of.messages.at(-1)?.id);
  if (known < 0) {
    Object.assign(of, { messages: [], next: page.next, note: null });
    $("stored").replaceChildren();
    toBottom();
  }
  const asked = page.messages.findLastIndex(({ role, created_at: at }) => role === "user" && at <= startedAt);
  const fresh = page.messages.filter(
    ({ created_at: at }, index) => index > known && (!startedAt || index <= asked || at < startedAt),
  );
  if (fresh.length) endNote(of, fresh[0].role === "user");
  of.messages.push(...fresh);
  $("stored").append(...drawn(fresh));
  drawHeader();
}

async function showEarlier() {
  const here = view;
  const before = here.next;
  const page = await readPage(here, `&before=${before}`);
  if (here.closed || here.next !== before) return;
  // A result belongs under its call, which may stand on the earlier page.
  const results = Math.max(0, here.messages.findIndex(({ role }) => role !== "tool"));
  if (results) $("stored").firstElementChild.querySelectorAll(".tool.lost").forEach((tool) => tool.remove());
  const height = scroller.scrollHeight - scroller.scrollTop;
  atBottom = false;
  $("stored").prepend(...drawn([...page.messages, ...here.messages.slice(0, results)], here.messages[results]));
  here.messages.unshift(...page.messages);
  here.next = page.next;
  drawHeader();
  scroller.scrollTop = scroller.scrollHeight - height;
  if (!here.next) scroller.focus({ preventScroll: true });
}

/** Under the last message: what became of the answer, in words, with a way to ask again. Returns the words. */
function drawEnd(of, failure = "") {
  const last = of.messages.at(-1);
  const asked = recall(of.id);
  const questions = of.messages.filter(({ role }) => role === "user");
  const latest = questions.at(-1);
  const again = asked && last && hasFailed(last) && asked.text === latest?.content;
  const arrived = asked && questions.some(({ content }) => content === asked.text);
  if (asked && !again && (arrived || Date.now() - asked.at > LATE)) {
    remember(of.id, null);
    if (!arrived) giveBack(of, asked);
  }
  const words = failure || (last ? outcome(last) : "");
  if (words && !of.note) {
    of.note = note(words);
    const retry = element("button", { type: "button", class: "retry" }, "Try again");
    // A failed turn is asked again as the same turn. An answer that was cut short or stopped stands, and a new turn follows it.
    const turn = again ? { ...asked, bubble: false } : { text: latest?.content, key: newKey(), bubble: true };
    retry.onclick = () => attempt(() => (focusBox(), ask(of, turn)));
    if (latest) of.note.append(" ", retry);
    $("stored").append(of.note);
  }
  return words;
}

/** Puts a message that the server does not have back into the box. */
function giveBack(of, { text, key }) {
  of.returned = { text, key };
  if (box.value !== text) box.value = [text, box.value].filter(Boolean).join("\n\n");
  fitBox();
}

/** The conversation goes on: the note remains without its button, or goes, where the answer to that question is still to come. */
function endNote(of, newQuestion) {
  of.note?.querySelector("button")?.remove();
  if (!newQuestion && !of.messages.at(-1)?.status) of.note?.remove();
  of.note = null;
}

/** Looks whether another tab or program has changed this session. */
async function poll() {
  const here = view;
  if (document.hidden || current || !here.id || here.loading) return;
  const { messages, running } = await json(`sessions/${here.id}?limit=1`, { quiet: true });
  if (here.closed || current || here.loading) return;
  if (running || messages.at(-1)?.id !== here.messages.at(-1)?.id) await refresh(here);
}

async function rename(title) {
  const here = view;
  const details = await json(`sessions/${here.id}`, { method: "PATCH", body: { title } });
  here.details = details;
  sessions = sessions.map((session) => (session.id === details.id ? details : session));
  drawList();
  if (!here.closed) closeRename();
}

async function remove() {
  const here = view;
  await json(`sessions/${here.id}`, { method: "DELETE" });
  remember(here.id, null);
  sessions = sessions.filter(({ id }) => id !== here.id);
  if (here.closed) return drawList();
  startNew();
  announce("The session is deleted.");
}

function startNew() {
  history.pushState(null, "", location.pathname + location.search);
  attempt(() => open(null));
  setDrawer(false);
  focusBox();
}

// ---- The list of sessions ----

async function refreshList() {
  const page = await json(`sessions?details=true&limit=${PAGE}`);
  const ids = new Set(page.sessions.map(({ id }) => id));
  const oldest = page.sessions.at(-1)?.updated_at;
  // What was paged in further down stays, unless it has moved up or is gone.
  const rest = page.next ? sessions.filter(({ id, updated_at: at }) => !ids.has(id) && at <= oldest) : [];
  if (!rest.length) nextSessions = page.next;
  sessions = [...page.sessions, ...rest];
  drawList();
}

async function showMoreSessions() {
  const page = await json(`sessions?details=true&limit=${PAGE}&after=${nextSessions}`).catch((error) => {
    if (error.status !== 400) throw error;
    return { sessions: [], next: null }; // The session that the cursor names was deleted.
  });
  const ids = new Set(sessions.map(({ id }) => id));
  const fresh = page.sessions.filter(({ id }) => !ids.has(id));
  sessions.push(...fresh);
  nextSessions = page.next;
  drawList();
  if (fresh.length) $("list").querySelector(`a[href="#${fresh[0].id}"]`).focus();
}

/** A title that shows: one of spaces and invisible characters is none. */
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

function drawList() {
  drawHeader();
  const state = JSON.stringify([sessions, view.id, nextSessions]);
  if (state === drawnList) return;
  drawnList = state;
  const focused = document.activeElement?.closest("#list a")?.hash;
  $("list").replaceChildren(...sessions.map(sessionRow));
  $("more").hidden = !nextSessions;
  if (focused) $("list").querySelector(`a[href="${focused}"]`)?.focus();
}

function sessionRow(session) {
  const facts = element("span", { class: "facts" }, element("time", { datetime: session.updated_at }, briefTime(session.updated_at)));
  facts.append(session.running ? ", answering" : `, ${session.message_count} message${session.message_count === 1 ? "" : "s"}`);
  const attributes = { href: `#${session.id}`, class: session.running ? "running" : null };
  const link = element("a", attributes, element("bdi", { class: "name" }, titleOf(session)), facts);
  if (session.id === view.id) link.setAttribute("aria-current", "page");
  return element("li", {}, link);
}

function drawHeader() {
  const session = sessions.find(({ id }) => id === view.id) ?? view.details;
  const title = session ? titleOf(session) : view.id ? "Session" : "New session";
  $("title").textContent = title.slice(0, 200);
  document.title = view.id ? `${title.slice(0, 60)} · session_server` : "session_server";
  $("actions").hidden = !view.id || !$("rename-form").hidden;
  $("earlier").hidden = !view.next;
}

function drawRunning() {
  const focusLost = document.activeElement === (current ? $("send") : $("stop"));
  $("conversation").setAttribute("aria-busy", String(Boolean(current) || view.loading));
  $("send").hidden = Boolean(current);
  $("stop").hidden = !current;
  $("stop").disabled = Boolean(current?.stopping);
  $("stop").textContent = current?.stopping ? "Stopping" : "Stop";
  $("empty").hidden = Boolean(current || view.loading || view.messages.length);
  if (focusLost) focusBox();
}

// ---- The page itself ----

let atBottom = true;
let lastTop = 0;

function toBottom() {
  atBottom = true;
  $("latest").hidden = true;
  scroller.scrollTop = scroller.scrollHeight;
}

scroller.addEventListener("scroll", () => {
  // Only moving up lets go of the end: growing text alone must not.
  const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (left < 40) atBottom = true;
  else if (scroller.scrollTop < lastTop) atBottom = false;
  lastTop = scroller.scrollTop;
  $("latest").hidden = atBottom;
});

const resized = new ResizeObserver(() => atBottom && toBottom());
resized.observe($("conversation"));
resized.observe(scroller);

/** On a phone the focus must not bring up the keyboard. */
function focusBox() {
  (touch.matches ? $("title") : box).focus();
}

function fitBox() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

function setDrawer(open) {
  document.body.classList.toggle("drawer", open);
  $("open-list").setAttribute("aria-expanded", String(open));
  $("sessions").inert = narrow.matches && !open;
  $("main").inert = narrow.matches && open;
}

function closeRename() {
  const focused = $("rename-form").contains(document.activeElement);
  $("rename-form").hidden = true;
  $("title").hidden = false;
  drawHeader();
  if (focused) $("rename").focus();
}

function showAddressed() {
  const id = /^#(session-[0-9a-z-]{1,64})$/.exec(location.hash)?.[1] ?? null;
  setDrawer(false);
  if (!$("rename-form").hidden) closeRename();
  if (id !== view.id) attempt(() => open(id));
  focusBox();
}

function wakeUp() {
  endPause();
  if (document.hidden) return;
  attempt(poll);
  attempt(refreshList);
}

box.addEventListener("input", fitBox);
box.addEventListener("keydown", (event) => {
  // A touch keyboard has no Shift+Enter, and Enter may also end the composition of a character.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  attempt(send);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("drawer")) {
    setDrawer(false);
    $("open-list").focus();
  } else if (!$("rename-form").hidden && $("rename-form").contains(document.activeElement)) closeRename();
  else attempt(stop);
});

const onSubmit = (form, action) =>
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(action);
  });
const onClick = (id, action) => $(id).addEventListener("click", () => attempt(action));

onSubmit("composer", send);
onClick("stop", stop);
onClick("new", startNew);
onClick("more", showMoreSessions);
onClick("earlier", showEarlier);
onClick("latest", () => (toBottom(), focusBox()));
onClick("skip", () => box.focus());
onClick("open-list", () => (setDrawer(true), $("new").focus()));
onClick("close-list", () => (setDrawer(false), $("open-list").focus()));
onClick("shade", () => setDrawer(false));
onClick("rename", () => {
  $("rename-text").value = sessions.find(({ id }) => id === view.id)?.title ?? "";
  $("rename-form").hidden = false;
  $("title").hidden = $("actions").hidden = true;
  $("rename-text").select();
});
onClick("rename-cancel", closeRename);
onSubmit("rename-form", () => rename($("rename-text").value));
onClick("delete", () => {
  $("delete-name").textContent = $("title").textContent;
  $("delete-dialog").showModal();
});
onClick("delete-cancel", () => $("delete-dialog").close());
onSubmit("delete-form", () => ($("delete-dialog").close(), remove()));

addEventListener("hashchange", showAddressed);
addEventListener("focus", wakeUp);
addEventListener("online", () => {
  // The old connection may be dead without having said so.
  current?.reconnect();
  wakeUp();
});
document.addEventListener("visibilitychange", () => {
  if (current && Date.now() - current.heardAt > SILENCE / 2) current.reconnect();
  wakeUp();
});
narrow.addEventListener("change", () => setDrawer(false));
$("list").addEventListener("click", (event) => event.target.closest("a")?.hash === location.hash && showAddressed());

let ticks = 0;
setInterval(() => {
  attempt(poll);
  ticks += 1;
  if (ticks % 6 === 0 && !document.hidden) attempt(refreshList);
}, POLL);

drawRunning();
attempt(refreshList);
showAddressed();
