// SPDX-License-Identifier: GPL-2.0-or-later
// The console: log-in, navigation, and which page is shown.
//
// A page is a module with `page`: see Page below. To add one, import it and put it into PAGES.

import { ApiError, ask, element, failed, may, say, tell } from "./base.js";
import { page as call } from "./call.js";
import { page as live, trunksPage as trunks } from "./live.js";
import { page as past } from "./past.js";
import { page as watch } from "./watch.js";

/**
 * @typedef {object} Session who has logged in
 * @property {string} name
 * @property {"readonly" | "operator" | "admin"} role
 *
 * @typedef {object} Page
 * @property {string} path of the address, behind `#/`
 * @property {string} title
 * @property {string} [role] the least that sees it; readonly by default
 * @property {boolean} [hidden] from the navigation
 * @property {(main: HTMLElement, session: Session, argument: string) => (() => void) | void} show
 *   fills `main`; `argument` is the rest of the address. What it returns is called when another
 *   page is shown.
 */

/** @type {Page[]} */
const PAGES = [live, past, trunks, call, watch];

const main = document.getElementById("main");
const navigation = document.querySelector("nav");
const who = /** @type {HTMLElement} */ (document.querySelector(".who"));

/** @type {Session | null} */
let session = null;
/** @type {(() => void) | void} */
let leave;
let shown = "";

function empty() {
  leave?.();
  leave = undefined;
  shown = "";
  main.replaceChildren();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody typed it
  }
}

function show() {
  if (!session) return;
  const [path, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const argument = decoded(rest.join("/"));
  const visible = PAGES.filter((one) => may(session, one.role ?? "readonly"));
  const page = visible.find((one) => one.path === path) ?? visible[0];
  if (shown === `${page.path}/${argument}`) return;
  const first = !shown;
  empty();
  tell("");
  shown = `${page.path}/${argument}`;
  document.title = `${page.title} – Gateway console`;
  for (const link of navigation.querySelectorAll("a")) {
    if (link.hash === `#/${page.path}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave = page.show(main, session, argument);
  if (!first) main.focus();
}

/** @param {Session} found */
function enter(found) {
  session = found;
  const links = PAGES.filter((one) => !one.hidden && may(found, one.role ?? "readonly"));
  navigation.replaceChildren(
    element("ul", {}, ...links.map((one) => element("li", {}, element("a", { href: `#/${one.path}` }, one.title)))),
  );
  say(document.getElementById("who"), `${found.name} (${found.role})`);
  navigation.hidden = who.hidden = false;
  empty();
  show();
}

function logIn() {
  session = null;
  navigation.hidden = who.hidden = true;
  empty();
  document.title = "Log in – Gateway console";
  const token = /** @type {HTMLInputElement} */ (
    element("input", { id: "token", type: "password", autocomplete: "current-password", required: true, spellcheck: false })
  );
  const button = /** @type {HTMLButtonElement} */ (element("button.main", { type: "submit" }, "Log in"));
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const headers = { Authorization: `Bearer ${token.value.trim()}` };
      const found = await ask("/session", { method: "POST", headers });
      tell("");
      enter(found);
      main.focus();
    } catch (error) {
      const unknown = error instanceof ApiError && (error.status === 401 || error.status === 403);
      failed(unknown ? new Error("This token is not known, or may not use the console.") : error);
      button.disabled = false;
      token.select();
    }
  };
  main.append(
    element(
      "form.login",
      { method: "post", onsubmit: send },
      element("h1", {}, "Log in"),
      element("label", { htmlFor: "token" }, "Token"),
      token,
      element("p.note", {}, "One of [[api.token]], made with “gateway token create”. It is kept by the browser only as a cookie for this page."),
      button,
    ),
  );
  token.focus();
}

document.getElementById("leave").addEventListener("click", async () => {
  await ask("/session", { method: "DELETE" }).catch(failed);
  logIn();
});
window.addEventListener("hashchange", show);
window.addEventListener("gateway-logged-out", () => {
  if (session) {
    logIn();
    tell("You are logged out.");
  }
});

// An address #/key/TOKEN/PAGE logs in by itself; the token leaves the address bar and the history.
const [, key, rest] = /^#\/key\/([\w-]+)\/?(.*)$/.exec(location.hash) ?? [];
if (key) history.replaceState(null, "", `#/${rest}`);
const known = key
  ? ask("/session", { method: "POST", headers: { Authorization: `Bearer ${key}` } })
  : ask("/session");
known.then(enter, (error) => {
  logIn();
  failed(error);
});
