// Light or dark as it was chosen, before anything is drawn.
try {
  document.documentElement.dataset.theme = localStorage.getItem("session_server.theme") ?? "auto";
  if (localStorage.getItem("session_server.folded")) document.documentElement.dataset.folded = "";
} catch {
  document.documentElement.dataset.theme = "auto";
}
