// Pictures and files of messages: small in the message, large or as text on a press, saved on request.

import { $, element } from "./element.js";
import { Refused, request } from "./http.js";
import { dataOf, readToken } from "./kept.js";
import { whenSeen } from "./layout.js";
import { announce, attempt } from "./notices.js";
import { state } from "./view.js";

const GONE = "This browser no longer has the files of this message. Remove them, and add them again.";
const LONGEST_SHOWN = 1 << 20; // bytes of a text in the dialog

const nameOf = ({ name, type }) => name ?? (type === "image" ? "Picture" : "File");
const isText = ({ media_type: mediaType }) => mediaType.startsWith("text/");

/** A size in bytes, in words. */
function sizeOf(bytes) {
  const [unit, name] = bytes < 1e3 ? [1, "bytes"] : bytes < 1e6 ? [1e3, "kB"] : [1e6, "MB"];
  return `${(bytes / unit).toLocaleString([], { maximumFractionDigits: 1 })} ${name}`;
}

/** The bytes of a part: those that the page has, or those that the server keeps. The token goes with the request, which an address in the document could not carry. Where one can sign out, the browser keeps none. */
async function bytesOf(part, session) {
  if (part.sha256) return (await request(`sessions/${session}/files/${part.sha256}`, { cache: readToken() ? "no-store" : "default" })).blob();
  await readKept(part);
  return new Blob([Uint8Array.from(atob(part.data), (letter) => letter.charCodeAt(0))]);
}

async function readKept(part) {
  if (!(await dataOf(part))) throw new Refused(new Response(null, { status: 422 }), { error: GONE });
}

/** The pictures and files of a message's content. */
export const partsOf = (content) => (Array.isArray(content) ? content.filter(({ type }) => type !== "text") : []);

/** A content as the server takes it: with the bytes that the browser keeps of its parts. */
export async function sendable(content) {
  for (const part of partsOf(content)) if (part.kept) await readKept(part);
  return Array.isArray(content) ? content.map(({ kept, ...part }) => part) : content;
}

/** A part with its bytes, for another session. */
export async function withData(part, session) {
  const { type, media_type, name } = part;
  return { type, data: await toBase64(await bytesOf(part, session)), media_type, name };
}

export async function toBase64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let binary = "";
  for (let at = 0; at < bytes.length; at += 0x8000) binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(binary);
}

/** The pictures and files of a message's content, or nothing. */
export function drawParts(content) {
  const parts = partsOf(content);
  return parts.length ? element("div", { class: "parts" }, ...parts.map((part) => drawPart(part))) : "";
}

/** A part of a message, as a button that shows all of it. */
export function drawPart(part, session = state.view.id) {
  const button = element("button", { type: "button", class: part.type === "image" ? "picture" : "attachment" });
  const open = () => bytesOf(part, session ?? state.view.id);
  button.onclick = () => attempt(() => show(part, open));
  if (part.type !== "image") {
    button.append(element("span", {}, nameOf(part)), part.size ? element("span", { class: "facts" }, sizeOf(part.size)) : "");
    return button;
  }
  const picture = element("img", { alt: nameOf(part) });
  button.append(picture);
  button.title = "Show it larger";
  if (part.data) drawPicture(picture, part, open);
  else whenSeen(button, () => drawPicture(picture, part, open));
  return button;
}

/** Fills an `img`. A picture of a kind that the browser runs or fetches for is none here. */
async function drawPicture(picture, { media_type: mediaType }, open) {
  try {
    picture.src = URL.createObjectURL(new Blob([await open()], { type: mediaType }));
    await picture.decode();
  } catch {
    picture.alt = "This picture cannot be shown";
  } finally {
    URL.revokeObjectURL(picture.src);
  }
}

async function show(part, open) {
  const bytes = await open();
  if (part.type !== "image" && (!isText(part) || bytes.size > LONGEST_SHOWN)) return saveBytes(bytes, nameOf(part));
  const shown = part.type === "image" ? element("img", { alt: nameOf(part) }) : element("pre", { tabindex: "0", dir: "auto" }, await bytes.text());
  $("file-title").textContent = nameOf(part);
  $("file-body").replaceChildren(shown);
  $("file-save").onclick = () => saveBytes(bytes, part.name ?? `picture.${part.media_type.split("/")[1]}`);
  if (part.type === "image") await drawPicture(shown, part, async () => bytes);
  $("file-dialog").showModal();
}

/** Saves bytes under a name. They bear no type, so that no browser opens them in place of that. */
export function saveBytes(bytes, name) {
  const link = element("a", { href: URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  announce(`${name} is saved.`);
}
