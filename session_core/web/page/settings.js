// The settings of a session: its model and its instructions.

import { $ } from "./element.js";
import { json, Refused } from "./http.js";
import { modelOf, modelsFor, render } from "./render.js";
import { state } from "./view.js";

let opened = null; // the view whose settings the dialog shows

export async function openSettings() {
  const { view } = state;
  state.models ??= await json("models");
  const set = view.id ? await json(`sessions/${view.id}?limit=1`) : view.chosen;
  if (state.view !== view) return;
  opened = view;
  const names = modelsFor(view);
  $("model-row").hidden = names.length < 2;
  $("model").replaceChildren(...names.map((name) => new Option(name === state.models.default ? `${name} (the server's)` : name, name)));
  $("model").value = set.model ?? state.models.default;
  $("own-prompt").checked = set.system_prompt !== undefined;
  $("system-prompt").value = set.system_prompt ?? "";
  $("system-prompt").disabled = !$("own-prompt").checked;
  $("settings-error").textContent = "";
  $("settings-dialog").showModal();
}

/** Has the text area follow the box that says whether the session has instructions of its own. */
export function followPrompt() {
  $("system-prompt").disabled = !$("own-prompt").checked;
  if ($("own-prompt").checked) $("system-prompt").focus();
}

/** Sets the session's model to the one that is chosen at the message box. */
export async function chooseModel(name) {
  const { view } = state;
  await change(view, { model: name === state.models?.default ? null : name }).finally(render);
}

export async function saveSettings() {
  const model = $("model").value;
  const wanted = { system_prompt: $("own-prompt").checked ? $("system-prompt").value : null };
  if (model !== modelOf(opened)) wanted.model = model === state.models.default ? null : model;
  try {
    await change(opened, wanted);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("settings-error").textContent = error.words; // What stands behind the dialog cannot be read.
    return;
  }
  $("settings-dialog").close();
}

async function change(view, wanted) {
  const target = view.id ? view.session : view.chosen;
  if (view.id) await json(`sessions/${view.id}`, { method: "PATCH", body: wanted });
  for (const [key, value] of Object.entries(wanted)) {
    if (value === null) delete target[key];
    else target[key] = value;
  }
  render();
}
