// Who asks: the token that the server wants, the way to give it and to forget it.

import { deleteAtOnce } from "./deleting.js";
import { $ } from "./element.js";
import { forgetAll, keepToken, readToken } from "./kept.js";
import { render } from "./render.js";
import { box, state } from "./view.js";

let asking = null;

/** Whether there is another token now than the one that was refused. One dialog serves all who ask meanwhile. Who has closed it is asked again on a click alone. */
export function askToken(refused) {
  if (readToken() !== refused) return true;
  if (state.signedOut) return false;
  asking ??= showDialog(refused);
  return asking;
}

function showDialog(refused) {
  const dialog = $("token-dialog");
  const hint = refused ? "The server did not accept that token. Try once more." : "Whoever runs this server has it for you. It is kept in this tab only.";
  $("token-field").value = "";
  $("token-hint").textContent = hint;
  return new Promise((resolve) => {
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      // Nothing else can stand in a header, and a token that was pasted often ends in a line feed.
      const token = $("token-field").value.replace(/[^\x21-\x7e]/g, "");
      if (!token) return;
      keepToken(token);
      dialog.close("given");
    };
    dialog.onclose = () => {
      asking = null;
      const isGiven = dialog.returnValue === "given";
      state.signedOut = !isGiven;
      state.hasToken = isGiven;
      render();
      resolve(isGiven);
    };
    dialog.returnValue = "";
    dialog.showModal();
  });
}

/** Asks for the token after a dialog that was closed. Returns whether one was given. */
export async function signIn() {
  state.signedOut = false;
  return askToken(readToken());
}

/** Forgets the token, all that it has shown, and all that was written here. */
export async function signOut() {
  deleteAtOnce();
  keepToken(null);
  box.value = ""; // or it is kept as the page goes
  await forgetAll();
  location.replace(location.pathname + location.search);
  location.reload();
}

/** Takes from an answer whose token it was. */
export function readUser(response) {
  state.hasToken = Boolean(readToken());
  const user = response.headers.get("X-User") ?? "";
  if (!response.ok || user === state.user) return;
  state.user = user;
  render();
}
