// The chat page of session_server: what keys, clicks, timers and the browser's own events do.

import { drawActions } from "./actions.js";
import { askAgain, drawRunning, goOn, send, stop } from "./asking.js";
import { showEarlier } from "./conversation.js";
import { deleteAtOnce, undoDelete } from "./deleting.js";
import { hurry, SILENCE } from "./follow.js";
import { fitBox, focusBox, setDrawer, setMenu, toBottom } from "./layout.js";
import { attempt } from "./notices.js";
import { closeRename, leaveLostSession, openRename, poll, remove, rename, showAddressed, startNew } from "./session.js";
import { filterList, refreshList, showMoreSessions } from "./session_list.js";
import { exportSession, followPrompt, openSettings, saveSettings } from "./settings.js";
import { $, box, narrow, state, touch } from "./state.js";

const POLL = 5_000; // milliseconds between looks at what other tabs and programs have done

function wakeUp() {
  hurry();
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
onClick("rename", openRename);
onClick("rename-cancel", closeRename);
onSubmit("rename-form", () => rename($("rename-text").value));
onClick("delete", remove);
onClick("undo", undoDelete);
onClick("export", exportSession);
onClick("settings", openSettings);
onClick("settings-cancel", () => $("settings-dialog").close());
onSubmit("settings-form", saveSettings);
$("own-prompt").addEventListener("change", followPrompt);
onClick("menu", () => setMenu($("actions").classList.contains("closed")));
$("actions").addEventListener("click", () => setMenu(false));
$("filter").addEventListener("input", () => attempt(() => filterList($("filter").value)));
$("stored").addEventListener("click", (event) => {
  if (event.target.closest(".retry")) attempt(askAgain);
  else if (event.target.closest(".continue")) attempt(goOn);
});
document.addEventListener("drawn", (event) => drawActions(event.detail));
addEventListener("pagehide", deleteAtOnce);
$("list").addEventListener("click", (event) => event.target.closest("a")?.hash === location.hash && showAddressed());

document.addEventListener("session-lost", (event) => leaveLostSession(event.detail));
addEventListener("hashchange", showAddressed);
addEventListener("focus", wakeUp);
addEventListener("online", () => {
  state.turn?.reconnect(); // The old connection may be dead without having said so.
  wakeUp();
});
document.addEventListener("visibilitychange", () => {
  if (state.turn && Date.now() - state.turn.heardAt > SILENCE / 2) state.turn.reconnect();
  wakeUp();
});
narrow.addEventListener("change", () => setDrawer(false));

let ticks = 0;
setInterval(() => {
  attempt(poll);
  ticks += 1;
  if (ticks % 6 === 0 && !document.hidden) attempt(refreshList);
}, POLL);

drawRunning();
attempt(refreshList);
showAddressed();
