// Live updates, copying and keys. Nothing needs this file: each page is whole without it.
"use strict";
(() => {
  const root = document.body.dataset.root;
  const LINES_MAX = 500;
  const REFRESH_EVERY_MS = 1500;

  const find = document.querySelector(".find input");
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    find.focus();
  });

  const atEnd = (log) => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const toEnd = (log) => { log.scrollTop = log.scrollHeight; };

  function addCopyButtons(within) {
    for (const block of within.querySelectorAll("pre.copy")) {
      if (!navigator.clipboard || block.parentNode.classList.contains("copied")) continue;
      const wrap = document.createElement("div");
      wrap.className = "copied";
      block.replaceWith(wrap);
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      wrap.append(block, button);
    }
  }
  // Live parts as the server has made them: what is the same is left alone, with its place and its focus.
  const made = new Map();
  for (const part of document.querySelectorAll("[data-live]")) made.set(part.id, part.innerHTML);
  addCopyButtons(document);

  const seconds = (total) => {
    const [hours, minutes] = [Math.floor(total / 3600), Math.floor(total / 60) % 60];
    if (hours > 0) return `${hours} h ${minutes} min`;
    return minutes > 0 ? `${minutes} min ${total % 60} s` : `${total} s`;
  };
  setInterval(() => {
    for (const clock of document.querySelectorAll(".clock[data-seconds]")) {
      clock.dataset.seconds = Number(clock.dataset.seconds) + 1;
      clock.textContent = seconds(Number(clock.dataset.seconds));
    }
  }, 1000);

  const live = document.querySelectorAll("[data-live]");
  const logs = () => [...document.querySelectorAll("[data-log]")];
  logs().forEach(toEnd);
  if (live.length === 0 && logs().length === 0) return;

  // Logs that this stream has sent lines of: the server's first lines take the place of what the page had.
  let begun = new Map();
  const draw = (log, lines) => {
    const follow = atEnd(log);
    log.textContent = lines.join("\n") + "\n";
    if (follow) toEnd(log);
  };

  // The page is rendered in one place, the server: its live parts are fetched anew.
  let refreshing = false, again = false;
  async function refresh() {
    if (refreshing) { again = true; return; }
    refreshing = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const part of document.querySelectorAll("[data-live]")) {
          const fresh = page.getElementById(part.id);
          if (!fresh || fresh.innerHTML === made.get(part.id)) continue;
          if (part.contains(document.activeElement)) continue;
          made.set(part.id, fresh.innerHTML);
          part.replaceChildren(...fresh.childNodes);
          addCopyButtons(part);
        }
        for (const log of logs()) {
          const lines = begun.get(log.dataset.log);
          if (lines) draw(log, lines);
          toEnd(log);
        }
      }
    } catch { /* The stream says when the server is back. */ }
    setTimeout(() => {
      refreshing = false;
      if (again) { again = false; refresh(); }
    }, REFRESH_EVERY_MS);
  }

  const only = document.body.querySelector("[data-only]");
  const query = only ? `?derivation=${encodeURIComponent(only.dataset.only)}` : "";
  const events = new EventSource(`${root}api/v1/events${query}`);
  events.addEventListener("open", () => { begun = new Map(); });
  // The first event, too: something may have changed since the page was made.
  events.addEventListener("queue", refresh);
  events.addEventListener("log", (event) => {
    const { derivation, lines } = JSON.parse(event.data);
    const kept = [...(begun.get(derivation) || []), ...lines].slice(-LINES_MAX);
    begun.set(derivation, kept);
    const log = logs().find((log) => log.dataset.log === derivation);
    if (log) draw(log, kept);
  });
})();
