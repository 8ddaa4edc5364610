// Draws what is derived from the state: the header, the notice, the empty page, the buttons of the message box.
//
// Whoever changes a view calls `render()`. Messages and the list are too many to be drawn each time: `conversation.js`
// and `session_list.js` draw those when they change.

import { $, element, iconButton, textButton } from "./element.js";
import { box, isShown, shownMessages, state, touch } from "./view.js";

export function render() {
  const { view } = state;
  if (view.notice?.turn && view.notice.turn !== view.turn) view.notice = null;
  renderHeader(view);
  renderConversation(view);
  renderNotice(view);
  renderQueue(view);
  renderComposer(view);
}

/** A text on one line, without the marks of Markdown. */
export const plainWords = (text) =>
  text.replace(/^[#>\s]+|`+|(?<![\p{L}\p{N}*_])[*_]+(?=[\p{L}\p{N}])|(?<=[\p{L}\p{N}])[*_]+(?![\p{L}\p{N}*_])/gu, "").trim();

/** The title to show. A title of spaces and invisible characters counts as none. */
export function titleOf({ title, message_count: count }) {
  const words = plainWords(title ?? "");
  if (words.replace(/[\s\p{C}\p{M}]/gu, "")) return words;
  return count ? "Untitled session" : "Empty session";
}

/** What is known of a session: from the list, from the session itself, or from its first question. */
function detailsOf(view) {
  const listed = state.sessions.find(({ id }) => id === view.id);
  if (listed) return listed;
  const { title } = view.session;
  const first = view.next === null ? view.messages[0] : null;
  return { title: title ?? (first?.role === "user" ? firstLine(first.content) : ""), message_count: view.messages.length };
}

const firstLine = (content) => textOf(content).trim().split("\n")[0].slice(0, 80);

/** The text of a message's content, which may be a list of parts. */
export function textOf(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return JSON.stringify(content ?? "");
  return content.map(({ text }) => text).filter(Boolean).join("\n\n");
}

/** The time of today, or the day. */
export function shortTime(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short" });
}

const drawings = new WeakMap();

/** Whether a node is to be drawn anew, since what it shows is not what it was. */
export function isOutdated(node, ...shown) {
  const drawing = JSON.stringify(shown);
  if (drawings.get(node) === drawing) return false;
  drawings.set(node, drawing);
  return true;
}

function renderHeader(view) {
  const loading = view.phase === "loading" && !state.sessions.some(({ id }) => id === view.id);
  const title = !view.id ? "New session" : loading ? "Session" : titleOf(detailsOf(view));
  $("title").textContent = title.slice(0, 200);
  const done = view.unread ? "✓ " : "";
  document.title = view.id ? `${done}${title.slice(0, 60)} · session_server` : "session_server";
  for (const node of document.querySelectorAll("[data-with-session]")) node.hidden = !view.id;
  const { total_tokens: total, prompt_tokens: read = 0, completion_tokens: written = 0 } = view.session.usage ?? {};
  const tokens = total ?? read + written;
  $("tokens").textContent = tokens ? `${tokens.toLocaleString()} tokens` : "";
  $("earlier").hidden = !view.next || Boolean(view.earlier);
  $("user").textContent = state.user;
  for (const node of document.querySelectorAll("[data-with-token]")) node.hidden = !state.hasToken;
}

function renderConversation(view) {
  if (view.stored.parentNode !== $("talk")) $("talk").replaceChildren(view.stored, view.live);
  const loading = view.phase === "loading" && !view.turn;
  const empty = view.phase === "ready" && !view.turn && !shownMessages(view).length && !state.signedOut;
  $("conversation").setAttribute("aria-busy", String(Boolean(view.turn) || loading));
  $("loading").hidden = !loading || state.signedOut;
  $("failed").hidden = view.phase !== "failed";
  $("failure").textContent = view.failure;
  $("empty").hidden = !empty;
  document.body.classList.toggle("blank", empty);
  if (empty) renderWelcome();
}

const EXAMPLES = {
  calculator: ["What is 15 * 23?", "What is 84 * 1.15 / 4?", "What is 2**200?"],
  other: ["What can you do?", "Explain to me how tides come about.", "Help me to write a friendly reminder."],
};

function renderWelcome() {
  const tools = (state.tools ?? []).map(({ name }) => name);
  const demo = state.models?.default === "demo";
  if (!isOutdated($("examples"), tools, state.models)) return;
  const facts = [];
  if (demo) facts.push("This is the built-in demo. It is no real model: it only calculates.");
  else if (state.models) facts.push(`The model is ${state.models.default}.`);
  if (tools.length) facts.push(`It may use ${tools.length > 6 ? `${tools.length} tools` : tools.join(", ")}.`);
  $("facts").textContent = facts.join(" ");
  const examples = demo ? EXAMPLES.calculator : [...(tools.includes("calculator") ? EXAMPLES.calculator.slice(1, 2) : []), ...EXAMPLES.other];
  $("examples").replaceChildren(...examples.slice(0, 3).map((words) => element("li", {}, textButton(words, "example"))));
}

function renderNotice(view) {
  let { words = "", failure = false, action = null } = view.notice ?? {};
  if (state.signedOut) words = "This server wants to know who you are.";
  else if (state.unreachable) words = "The connection is lost. The page goes on trying.";
  if (state.signedOut || state.unreachable) action = failure = null;
  const node = $("notice");
  node.action = action?.[1];
  if (!isOutdated(node, words, action, failure)) return;
  node.classList.toggle("failure", Boolean(failure));
  node.replaceChildren(words);
  if (action) node.append(" ", textButton(action[0], "notice-action", () => node.action()));
  if (state.signedOut) node.append(" ", textButton("Give the token", "sign-in"));
}

/** What waits its turn, each with a button to take it back. */
function renderQueue({ session: { queued = [] } }) {
  $("queue").hidden = !queued.length;
  if (!isOutdated($("queue"), queued.map(({ id }) => id))) return;
  $("queue").replaceChildren(...queued.map(({ id, content }) => {
    const words = textOf(content).trim() || "A file";
    const back = iconButton("close", `Take back: ${words.slice(0, 40)}`, "take-back", () => {});
    back.dataset.id = id;
    return element("li", {}, element("bdi", {}, words.slice(0, 300)), back);
  }));
}

/** Draws what depends on what is in the message box. */
export function renderComposer(view) {
  const { turn } = view;
  const focused = document.activeElement;
  const queues = Boolean(turn && view.id);
  const canInterrupt = queues && Boolean(box.value.trim() || view.parts.length);
  for (const id of ["now", "instead"]) $(id).hidden = !canInterrupt;
  $("keys").textContent = queues ? "Enter puts the message in line." : "Enter sends, Shift+Enter begins a new line, Escape stops an answer.";
  $("send").hidden = Boolean(turn) && !queues;
  $("send").disabled = (view.phase !== "ready" && !turn) || view.compacting;
  $("stop").hidden = !turn && !view.compacting;
  $("stop").disabled = Boolean(turn?.stopping);
  const models = modelsFor(view);
  $("model-name").textContent = models[0] ?? "";
  $("model-name").hidden = models.length !== 1;
  $("model-choice").hidden = models.length < 2;
  if (isOutdated($("model-choice"), models)) $("model-choice").replaceChildren(...models.map((name) => new Option(name, name)));
  $("model-choice").value = modelOf(view);
  if (focused.matches("#composer button") && (focused.hidden || focused.disabled)) (touch.matches ? $("title") : box).focus();
}

export const modelOf = (view) => (view.id ? view.session.model : view.chosen.model) ?? state.models?.default ?? "";

/** The models that may be chosen in a session, its own one too. */
export function modelsFor(view) {
  const names = [...(state.models?.models ?? [])];
  const own = modelOf(view);
  return own && !names.includes(own) ? [...names, own] : names;
}

/** Draws again each second what counts seconds. */
export function renderClock() {
  const { turn } = state.view;
  if (!turn?.answer || !isShown(turn.view)) return;
  turn.answer.showWaiting(turn.activity, Date.now());
}
