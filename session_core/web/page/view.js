// What the page shows, as data: the view of a session, and what all views share. `render.js` draws both.

import { $, element } from "./element.js";

export const box = $("message");
export const scroller = $("scroller");
export const touch = matchMedia("(hover: none) and (pointer: coarse)");
export const narrow = matchMedia("(max-width: 46rem)");

export const PAGE_SIZE = 50; // messages, or sessions, in one request

/** The view of a session. It outlives its being shown as long as something is on its way. */
export const newView = (id) => ({
  id,
  phase: id ? "loading" : "ready", // or "failed", with `failure`
  failure: "",
  stored: element("div", { id: "stored" }), // the nodes of stored messages
  live: element("div", { id: "live" }), // the nodes of the running turn
  session: {}, // what the server tells of it beside its messages
  messages: [],
  next: null, // the cursor for earlier messages
  turn: null, // the turn that is drawn live
  compacting: false, // the model sums up what is old
  earlier: null, // the messages of an earlier version, while one is shown
  all: null, // all messages, those too that others have replaced, once they were needed
  note: null, // the words under the last answer, as a node
  retry: null, // the turn that "Try again" asks for
  notice: null, // what is said above the box: words, kind, the turn that it is about, a button
  parts: [], // pictures and files that go with the next message
  chosen: {}, // settings, until the session is made
});

export const state = {
  view: newView(null),
  unsent: new Map(), // views that are not shown, whose message the server does not have yet
  sessions: [], // the list, newest first
  nextSessions: null, // the cursor for more of the list
  hidden: new Set(), // sessions that are deleted as soon as their time to be brought back is over
  filter: "",
  found: null, // sessions that have the words of the filter in their texts
  nextFound: null, // the cursor for more of them
  models: null, // what the server offers
  tools: null,
  user: "", // who the token belongs to
  unreachable: false,
  signedOut: false,
};

export const isQuestion = ({ role }) => role === "user";
export const isShown = (view) => state.view === view;
export const shownMessages = (view) => view.earlier ?? view.messages;
