// Files that are dropped, pasted or chosen, and go with the message.

import { $, element, iconButton } from "./element.js";
import { drawPart, toBase64 } from "./files.js";
import { keepDraftFiles, keepFile } from "./kept.js";
import { announce, showNotice } from "./notices.js";
import { box, isShown, state } from "./view.js";

const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const UNKEPT = "This browser keeps no files for a page that is closed or loaded again. Leave it open until they are sent.";

/** The content of a message: its text, or a list of parts where pictures or files go with it. */
export const contentOf = (text, parts) => (parts.length ? [...(text.trim() ? [{ type: "text", text }] : []), ...parts] : text);

/** Sets what waits for the next message, and keeps it over a reload. */
export function setParts(view, parts) {
  view.parts = parts;
  keepDraftFiles(view.id, parts);
  if (isShown(view)) drawParts(view);
}

export async function addFiles(files) {
  const { view } = state;
  const left = [];
  let isKept = true;
  for (const file of files) {
    if (PICTURES.includes(file.type) || file.type === "application/pdf" || (await isText(file))) {
      const part = await partOf(file);
      isKept = (await keepFile(part)) && isKept;
      setParts(view, [...view.parts, part]);
    } else left.push(file.name);
  }
  box.focus();
  if (left.length) showNotice(view, `This cannot be sent: ${left.join(", ")}. Pictures, PDF and text can.`);
  else if (!isKept) showNotice(view, UNKEPT);
  else announce(files.length > 1 ? "The files go with the message." : "The file goes with the message.");
}

/** A text is a text whatever it is called: what it would be elsewhere, a page or a drawing, it is not here. */
async function partOf(file) {
  const data = await toBase64(file);
  if (PICTURES.includes(file.type)) return { type: "image", data, media_type: file.type };
  return { type: "file", data, media_type: file.type === "application/pdf" ? file.type : "text/plain", name: file.name };
}

async function isText(file) {
  try {
    return !new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()).includes("\0");
  } catch {
    return false;
  }
}

/** Shows at the message box what goes with the next message. */
export function drawParts(view) {
  const remove = (part) => () => {
    setParts(view, view.parts.filter((other) => other !== part));
    box.focus();
  };
  $("parts").hidden = !view.parts.length;
  $("parts").replaceChildren(...view.parts.map((part) => {
    const name = part.name ?? "picture";
    return element("li", {}, drawPart(part, view.id), iconButton("close", `Remove ${name}`, "remove-part", remove(part)));
  }));
}
