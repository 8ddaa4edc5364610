// The chat page of session_server: what keys, clicks, timers and the browser's own events do.

import { drawActions } from "./actions.js";
import { setAnswerPending } from "./approval.js";
import { addFiles, setParts } from "./attachments.js";
import { giveBack, setConversationCallbacks, showEarlier } from "./conversation.js";
import { deleteAtOnce, undoDelete } from "./deleting.js";
import { $, drawIcons } from "./element.js";
import { hurry, SILENCE } from "./follow.js";
import { markIn } from "./found.js";
import { json, setHttpCallbacks } from "./http.js";
import { dropLeftFiles, keepDraft, keepReturned, readChoice, readDraft, readDraftFiles, recall, remember } from "./kept.js";
import { closeMenu, fitBox, focusBox, setDrawer, setTheme, toBottom, toggleList, toggleMenu } from "./layout.js";
import { attempt, setSessionLost, setUnreachable } from "./notices.js";
import { render, renderClock, renderComposer } from "./render.js";
import { closeRename, compact, leaveLostSession, load, openRename, openSession, poll, remove, rename, showAddressed, startNew } from "./session.js";
import { filterList, refreshList, setListCallbacks, showMoreSessions } from "./session_list.js";
import { chooseModel, followPrompt, openSettings, saveSettings } from "./settings.js";
import { leaveVersion } from "./stepping.js";
import { askToken, readUser, signIn, signOut } from "./token.js";
import { exportJson, exportMarkdown, importFile } from "./transfer.js";
import { answerPending, askAgain, continueTurn, send, sendMeanwhile, stop, takeBack, tellHidden } from "./turn.js";
import { box, narrow, state, touch } from "./view.js";

const POLL = 5_000; // milliseconds between looks at what other tabs and programs have done

setHttpCallbacks({
  askToken,
  onAnswer(response) {
    setUnreachable(false);
    readUser(response);
  },
});
setSessionLost(leaveLostSession);
setConversationCallbacks({ drawActions, tellHidden });
setAnswerPending(answerPending);
setListCallbacks({ remove, rename: async (id) => (id === state.view.id || (location.hash = id), await openForRename(id)) });

async function openForRename(id) {
  if (state.view.id !== id) await openSession(id);
  setDrawer(false);
  openRename();
}

function wakeUp() {
  hurry();
  if (document.hidden) return;
  if (state.view.unread) {
    state.view.unread = false;
    render();
  }
  attempt(poll);
  attempt(refreshList);
}

// ---- Keys ----

// Enter and Escape that end the composition of a character do nothing else. Safari tells of the key only after the
// composition's end, with the code 229.
document.addEventListener("keydown", (event) => {
  if (!["Enter", "Escape"].includes(event.key) || !(event.isComposing || event.keyCode === 229)) return;
  event.stopImmediatePropagation();
  if (!event.isComposing) event.preventDefault();
}, true);

box.addEventListener("input", () => {
  fitBox();
  renderComposer(state.view);
  keepDraft(state.view.id, box.value);
  // What is typed from now on is another message.
  if (!box.value) keepReturned(state.view.id, null);
});
box.addEventListener("keydown", (event) => {
  // A touch keyboard has no Shift+Enter.
  if (event.key !== "Enter" || event.shiftKey || touch.matches) return;
  event.preventDefault();
  attempt(send);
});

const isTyping = () => document.activeElement?.matches("input, textarea, select");

const SHORTCUTS = {
  k: () => (narrow.matches && setDrawer(true), $("filter").focus()),
  b: toggleList,
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape") escape();
  else if (command && !event.altKey && !event.shiftKey && event.key in SHORTCUTS) SHORTCUTS[event.key]();
  else if (command && event.shiftKey && event.key.toLowerCase() === "o") startNew();
  else if (event.key === "?" && !command && !isTyping()) $("shortcuts-dialog").showModal();
  else return;
  if (event.key !== "Escape") event.preventDefault();
});

function escape() {
  if (closeMenu({ refocus: true })) return;
  if (document.body.classList.contains("drawer")) {
    setDrawer(false);
    $("open-list").focus();
  } else if (!$("rename-form").hidden && $("rename-form").contains(document.activeElement)) closeRename();
  else attempt(stop);
}

// ---- Clicks ----

const onSubmit = (form, action) =>
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(action);
  });
const onClick = (id, action) => $(id).addEventListener("click", () => attempt(action));

onSubmit("composer", send);
onClick("stop", stop);
onClick("now", () => sendMeanwhile("steer"));
onClick("instead", () => sendMeanwhile("interrupt"));
onClick("compact", compact);
for (const id of ["new", "new-here"]) onClick(id, startNew);
onClick("more", showMoreSessions);
onClick("earlier", showEarlier);
onClick("latest", () => (toBottom(), focusBox()));
onClick("skip", () => box.focus());
onClick("open-list", toggleList);
onClick("close-list", () => (setDrawer(false), $("open-list").focus()));
onClick("shade", () => setDrawer(false));
onClick("menu", () => toggleMenu($("menu"), $("actions")));
onClick("page-menu", () => toggleMenu($("page-menu"), $("page-actions")));
onClick("rename", openRename);
onClick("rename-cancel", closeRename);
onSubmit("rename-form", () => rename($("rename-text").value));
onClick("delete", () => remove());
onClick("undo", undoDelete);
onClick("export", exportMarkdown);
onClick("export-json", exportJson);
onClick("print", () => print());
onClick("import", () => $("import-file").click());
onClick("shortcuts", () => $("shortcuts-dialog").showModal());
onClick("sign-out", signOut);
onClick("settings", openSettings);
onSubmit("settings-form", saveSettings);
onClick("attach", () => $("attach-files").click());
onClick("reopen", () => load(state.view));
$("own-prompt").addEventListener("change", followPrompt);
$("model-choice").addEventListener("change", () => attempt(() => chooseModel($("model-choice").value)));
$("import-file").addEventListener("change", () => takeFiles($("import-file"), ([file]) => importFile(file)));
$("attach-files").addEventListener("change", () => takeFiles($("attach-files"), addFiles));
for (const button of document.querySelectorAll("dialog [id$=close], dialog [id$=cancel]")) button.onclick = () => button.closest("dialog").close();
for (const button of document.querySelectorAll("[data-theme-name]")) button.onclick = () => setTheme(button.dataset.themeName);
const search = () => attempt(() => filterList($("filter").value));
$("filter").addEventListener("input", search);
$("filter").addEventListener("keydown", (event) => {
  if (event.key === "Enter") $("list").querySelector("a")?.click();
  else if (event.key !== "Escape" || !$("filter").value) return;
  event.stopPropagation();
  if (event.key === "Enter") return;
  $("filter").value = "";
  markIn(null);
  search();
});
$("list").addEventListener("click", (event) => event.target.closest("a")?.hash === location.hash && showAddressed());

const DELEGATED = {
  ".retry": askAgain,
  ".continue": continueTurn,
  ".newest": () => leaveVersion(state.view),
  ".take-back": (button) => takeBack(button.dataset.id),
  ".sign-in": async () => (await signIn()) && (refreshAll(), state.view.id && (await load(state.view))),
};

$("main").addEventListener("click", (event) => {
  for (const [selector, action] of Object.entries(DELEGATED)) {
    const button = event.target.closest(selector);
    if (button) attempt(() => action(button));
  }
  const example = event.target.closest(".example");
  if (!example) return;
  box.value = example.textContent;
  attempt(send);
});

// ---- Files ----

function takeFiles(field, action) {
  const files = [...field.files];
  field.value = "";
  if (files.length) attempt(() => action(files));
}

const setDropping = (dropping) => document.body.classList.toggle("dropping", dropping);

addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  setDropping(true);
});
addEventListener("dragleave", (event) => event.relatedTarget || setDropping(false));
addEventListener("drop", (event) => {
  setDropping(false);
  const files = [...event.dataTransfer.files];
  if (!files.length) return;
  event.preventDefault();
  attempt(() => addFiles(files));
});
box.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length || event.clipboardData.types.includes("text/plain")) return;
  event.preventDefault();
  attempt(() => addFiles(files));
});

// ---- What the browser tells ----

addEventListener("pagehide", () => {
  keepDraft(state.view.id, box.value);
  deleteAtOnce();
});
addEventListener("hashchange", showAddressed);
addEventListener("focus", wakeUp);
addEventListener("online", () => {
  state.view.turn?.release(); // The old connection may be dead without having said so.
  wakeUp();
});
document.addEventListener("visibilitychange", () => {
  const { turn } = state.view;
  if (document.hidden && turn?.lastEvent) turn.release(true);
  else if (turn && Date.now() - turn.heardAt > SILENCE / 2) turn.release();
  wakeUp();
});
narrow.addEventListener("change", () => setDrawer(false));

let ticks = 0;
setInterval(() => {
  attempt(poll);
  ticks += 1;
  if (ticks % 6 === 0 && !document.hidden) attempt(refreshList);
}, POLL);
setInterval(renderClock, 1000);

// ---- The beginning ----

/** What the server offers, and the list. */
function refreshAll() {
  attempt(refreshList);
  attempt(async () => {
    [state.models, { tools: state.tools }] = await Promise.all([json("models"), json("tools")]);
    render();
  });
}

drawIcons();
setTheme(readChoice("theme") ?? "auto");
setDrawer(false);
box.value = readDraft(null);
setParts(state.view, readDraftFiles(null));
giveBack(state.view, recall("new") ?? {});
remember("new", null);
dropLeftFiles();
fitBox();
render();
refreshAll();
showAddressed();
