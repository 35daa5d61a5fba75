"use strict";
// The secret of a link is in the fragment, which no server sees, and is sent only when somebody
// acts: merely opening or rendering the page changes nothing.
const page = document.body.dataset.page;
const $ = (id) => document.getElementById(id);
let token = null, challenge = null;

// show makes one part of the page visible and puts the focus where the person goes on.
function show(part) {
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== part;
  $("error").hidden = true;
  $(part).querySelector("input:not([hidden]), [tabindex]")?.focus();
}

// fail says what went wrong, in the words of this page if it has some for the code.
function fail(problem) {
  const words = (code) => $("words").querySelector(`[data-code="${CSS.escape(code)}"]`)?.textContent;
  const labels = { new_password: "password", code: "code", username: "who", email: "who" };
  const lines = (problem.errors ?? []).map((e) => {
    const label = $(labels[e.field])?.labels[0].textContent;
    return words(`${e.field}.${e.code}`) ?? (label ? `${label}: ${e.detail}` : e.detail);
  });
  if (lines.length === 0) {
    lines.push(words(`${page}.${problem.code}`) ?? words(problem.code) ?? problem.detail ?? words("failed"));
  }
  if (problem.code === "invalid_code" && page === "reset") $("again").hidden = false; // also after a link
  $("error").replaceChildren(...lines.map((text) => {
    const p = document.createElement("p");
    p.textContent = text;
    return p;
  }));
  $("error").hidden = false;
  $("error").focus();
}

// post sends what was entered, relative to this page, so that it works below a path too.
async function post(path, body) {
  const buttons = [...document.querySelectorAll("button")];
  buttons.forEach((b) => { b.disabled = true; });
  $("error").hidden = true;
  let problem = { code: "unreachable" };
  try {
    const answer = await fetch("../api/v1/auth/" + path, {
      method: "POST", credentials: "same-origin", cache: "no-store", redirect: "error", referrerPolicy: "no-referrer",
      headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    const text = await answer.text();
    let data = {};
    try { data = text ? JSON.parse(text) : {}; } catch { /* not from the service */ }
    if (answer.ok) return data;
    problem = data.code ? data : { code: "failed" };
  } catch { /* no answer */ } finally {
    buttons.forEach((b) => { b.disabled = false; });
  }
  fail(problem);
  return null;
}

function on(id, event, act) {
  $(id)?.addEventListener(event, (e) => {
    e.preventDefault();
    act();
  });
}

on("forgot", "submit", async () => {
  const who = $("who").value.trim();
  const answer = await post("password/forgot", who.includes("@") ? { email: who } : { username: who });
  if (!answer) return;
  challenge = answer.challenge_id;
  show("enter");
});

on("enter-form", "submit", async () => {
  const password = $("password").value;
  const proof = token ? { token } : { challenge_id: challenge, code: $("code").value.trim() };
  if (await post("password/reset", { ...proof, new_password: password })) show("done");
});

$("show")?.addEventListener("change", () => {
  $("password").type = $("show").checked ? "text" : "password";
});

on("again", "click", () => {
  token = challenge = null;
  start("");
});

on("act", "click", async () => {
  if (await post(page === "verify" ? "verify" : "undo", { token })) show("done");
});

function start(fragment) {
  token = new URLSearchParams(fragment.slice(1)).get("token") || null;
  if (page === "reset") {
    const byCode = token === null;
    $("by-code").hidden = $("again").hidden = !byCode;
    $("code").required = byCode;
    $("code").hidden = !byCode;
    show(byCode ? "ask" : "enter");
  } else {
    show(token ? "ready" : "incomplete");
  }
}

// The secret does not stay in the address, the history or a bookmark.
function arrive() {
  const fragment = location.hash;
  if (fragment) history.replaceState(null, "", location.pathname + location.search);
  start(fragment);
}
addEventListener("hashchange", () => location.hash && arrive());
arrive();
