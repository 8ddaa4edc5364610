// Files that are dropped, pasted or chosen go with the message, where the server takes them. Where it does not, text goes into the message box.

import { $, element, iconButton } from "./element.js";
import { drawPart, toBase64 } from "./files.js";
import { knows } from "./http.js";
import { keepDraft } from "./kept.js";
import { fitBox } from "./layout.js";
import { announce, showNotice } from "./notices.js";
import { box, state } from "./view.js";

const LONGEST_TEXT = 200_000; // bytes of a text in the box
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/** The content of a message: its text, or a list of parts where pictures or files go with it. */
export const contentOf = (text, parts) => (parts.length ? [...(text.trim() ? [{ type: "text", text }] : []), ...parts] : text);

/** The pictures and files that wait for the next message of a view. They are taken. */
export function takeParts(view) {
  const taken = view.parts;
  view.parts = [];
  drawParts(view);
  return taken;
}

export async function addFiles(files) {
  const { view } = state;
  const takesFiles = await knows("media_type");
  const left = [];
  for (const file of files) {
    const isBinary = PICTURES.includes(file.type) || file.type === "application/pdf";
    const text = isBinary ? null : await textOfFile(file);
    if (!isBinary && text === null) left.push(file.name);
    else if (takesFiles) view.parts.push(await partOf(file));
    else if (isBinary || file.size > LONGEST_TEXT) left.push(file.name);
    else addText(file.name, text);
  }
  drawParts(view);
  box.focus();
  if (!left.length) return announce(files.length > 1 ? "The files go with the message." : "The file goes with the message.");
  const can = takesFiles ? "Pictures, PDF and text can." : `Text of up to ${LONGEST_TEXT / 1000} kB can, and this server takes no pictures.`;
  showNotice(view, `This cannot be sent: ${left.join(", ")}. ${can}`);
}

/** A text is a text whatever it is called: what it would be elsewhere, a page or a drawing, it is not here. */
async function partOf(file) {
  const data = await toBase64(file);
  if (PICTURES.includes(file.type)) return { type: "image", data, media_type: file.type };
  return { type: "file", data, media_type: file.type === "application/pdf" ? file.type : "text/plain", name: file.name };
}

/** The words of a file, or null where it is no text. */
async function textOfFile(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}

/** Puts a file's text into the box, as code under its name. */
function addText(name, text) {
  box.value = [box.value.trimEnd(), `${name}\n${fenced(text.trimEnd())}`].filter(Boolean).join("\n\n") + "\n\n";
  keepDraft(state.view.id, box.value);
  fitBox();
}

/** A text as a block of code that it cannot end. */
export function fenced(text) {
  const fence = "`".repeat(1 + Math.max(2, ...[...text.matchAll(/`{3,}/g)].map(({ 0: run }) => run.length)));
  return `${fence}\n${text}\n${fence}`;
}

/** Shows at the message box what goes with the next message. */
export function drawParts(view) {
  const remove = (part) => () => {
    view.parts = view.parts.filter((other) => other !== part);
    drawParts(view);
    box.focus();
  };
  $("parts").hidden = !view.parts.length;
  $("parts").replaceChildren(...view.parts.map((part) => {
    const name = part.name ?? "picture";
    return element("li", {}, drawPart(part, view.id), iconButton("close", `Remove ${name}`, "remove-part", remove(part)));
  }));
}
