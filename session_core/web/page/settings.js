// The settings of a session: its model and its instructions. And the session as a file.

import { say } from "./notices.js";
import { json, request } from "./server.js";
import { $, state } from "./state.js";

let models = null; // what the server offers

export async function openSettings() {
  const here = state.view;
  models ??= await json("models");
  const set = here.id ? await json(`sessions/${here.id}?limit=1`) : here.chosen;
  if (here.closed) return;
  const names = [...models.models];
  if (set.model && !names.includes(set.model)) names.push(set.model);
  $("model-row").hidden = names.length < 2;
  $("model").replaceChildren(...names.map((name) => new Option(name === models.default ? `${name} (the server's)` : name, name)));
  $("model").value = set.model ?? models.default;
  $("own-prompt").checked = set.system_prompt !== undefined;
  $("system-prompt").value = set.system_prompt ?? "";
  $("system-prompt").disabled = !$("own-prompt").checked;
  $("settings-dialog").showModal();
}

/** Has the text area follow the box that says whether the session has instructions of its own. */
export function followPrompt() {
  $("system-prompt").disabled = !$("own-prompt").checked;
  if ($("own-prompt").checked) $("system-prompt").focus();
}

export async function saveSettings() {
  const here = state.view;
  const model = $("model").value;
  const wanted = {
    model: model === models.default ? null : model,
    system_prompt: $("own-prompt").checked ? $("system-prompt").value : null,
  };
  if (here.id) await json(`sessions/${here.id}`, { method: "PATCH", body: wanted });
  else here.chosen = Object.fromEntries(Object.entries(wanted).filter(([, value]) => value !== null));
  $("settings-dialog").close();
  say("");
}

/** Saves the conversation as a Markdown file. */
export async function exportSession() {
  const here = state.view;
  const response = await request(`sessions/${here.id}`, { headers: { Accept: "text/markdown" } });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([await response.text()], { type: "text/markdown" }));
  const name = $("title").textContent.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  link.download = `${name || "session"}.md`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
