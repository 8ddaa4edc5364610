// Files that are dropped, pasted or chosen: text goes into the message box, pictures go with the message where the server takes them.

import { $, element, iconButton } from "./element.js";
import { knows } from "./http.js";
import { keepDraft } from "./kept.js";
import { fitBox } from "./layout.js";
import { showNotice } from "./notices.js";
import { box, state } from "./view.js";

const LONGEST_TEXT = 200_000; // bytes
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];

let parts = []; // what goes with the next message

/** The pictures and files that wait for the next message. They are taken. */
export function takeParts() {
  const taken = parts;
  parts = [];
  drawParts();
  return taken;
}

export async function addFiles(files) {
  const left = [];
  const takesFiles = files.some(({ type }) => isBinary(type)) && (await knows("media_type"));
  for (const file of files) {
    if (isBinary(file.type)) {
      if (takesFiles) parts.push(await binaryPart(file));
      else left.push(file.name);
    } else if (file.size > LONGEST_TEXT || !(await addText(file))) left.push(file.name);
  }
  drawParts();
  box.focus();
  if (left.length) showNotice(state.view, `This cannot be sent: ${left.join(", ")}. Text of up to ${LONGEST_TEXT / 1000} kB can${takesFiles ? "" : ", and this server takes no pictures"}.`);
}

const isBinary = (type) => PICTURES.includes(type) || type === "application/pdf";

async function binaryPart(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = "";
  for (let at = 0; at < bytes.length; at += 0x8000) binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  const data = btoa(binary);
  return { type: PICTURES.includes(file.type) ? "image" : "file", data, media_type: file.type, name: file.name };
}

/** Puts a file's text into the box, as code under its name. Returns whether it is text. */
async function addText(file) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    return false;
  }
  if (text.includes("\0")) return false;
  const longest = Math.max(2, ...[...text.matchAll(/`{3,}/g)].map(({ 0: run }) => run.length));
  const fence = "`".repeat(longest + 1);
  box.value = [box.value.trimEnd(), `${file.name}\n${fence}\n${text.trimEnd()}\n${fence}`].filter(Boolean).join("\n\n") + "\n\n";
  keepDraft(state.view.id, box.value);
  fitBox();
  return true;
}

function drawParts() {
  const remove = (part) => () => {
    parts = parts.filter((other) => other !== part);
    drawParts();
  };
  $("parts").hidden = !parts.length;
  $("parts").replaceChildren(...parts.map((part) => element("li", {}, part.name, iconButton("close", `Remove ${part.name}`, "remove-part", remove(part)))));
}
