// Putting text on the clipboard.

import { confirmButton } from "./element.js";

/** Copies the words and says so on the button for two seconds. `node` holds the same words, for browsers that copy only what is selected. */
export async function copyWithButton(button, words, node = null) {
  confirmButton(button, (await copied(words, node)) ? "Copied" : "Not copied");
}

async function copied(words, node) {
  try {
    await navigator.clipboard.writeText(words);
    return true;
  } catch {
    // The clipboard is for secure origins only; the older way copies what is selected.
    const selected = node ?? document.createElement("pre");
    if (!node) {
      selected.className = "unseen";
      selected.textContent = words;
      document.body.append(selected);
    }
    getSelection().selectAllChildren(selected);
    const done = document.execCommand("copy");
    if (!node) selected.remove();
    return done;
  }
}
