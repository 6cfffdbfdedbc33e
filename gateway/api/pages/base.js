// SPDX-License-Identifier: GPL-2.0-or-later
// What all pages of the console share: elements, the API, words for figures.

/**
 * An element with properties and children. Texts become text, never markup.
 *
 * @param {string} tag with classes behind points: `p.note`
 * @param {Record<string, any>} [properties] `on…` are listeners, `aria-…`, `role` and the like attributes
 * @param {...(Node | string | number | null | undefined | false)} children
 * @returns {HTMLElement}
 */
export function element(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && !key.includes("-")) made[key] = value;
    else made.setAttribute(key, value);
  }
  add(made, ...children);
  return made;
}

/** An element of an SVG picture; see {@link element}. */
export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  add(made, ...children);
  return made;
}

/** Add children as {@link element} does. */
export function add(parent, ...children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
}

/** Set an element's text if it differs: a screen reader's place and a selection stay. */
export function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

/** An answer of the API that is no success. */
export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} message */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * Ask the API. Throws {@link ApiError}.
 *
 * @param {string} path below `/api/v1`, or a whole one
 * @param {{method?: string, body?: any, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<any>}
 */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const fields = { "X-Requested-With": "gateway-console", ...headers };
  if (body !== undefined) fields["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path.startsWith("/v1/") ? path : `/api/v1${path}`, {
      method,
      headers: fields,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "unreachable", "The gateway does not answer.");
  }
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  if (answer.status === 401) window.dispatchEvent(new Event("gateway-logged-out"));
  throw new ApiError(
    answer.status,
    told.error?.code ?? "",
    told.error?.message ?? `The gateway answered ${answer.status}.`,
  );
}

/** Address of a WebSocket of the API. @param {string} path below `/api/v1`, or a whole one */
export function socketAddress(path) {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  return `${scheme}//${location.host}${path.startsWith("/v1/") ? path : `/api/v1${path}`}`;
}

/**
 * Call a function again and again, with a pause, while the page is to be seen.
 *
 * @param {() => Promise<void>} work
 * @param {number} pause ms between the end of one call and the next
 * @returns {() => void} ends it
 */
export function repeat(work, pause) {
  let over = false;
  let timer = 0;
  const turn = async () => {
    window.clearTimeout(timer);
    if (over) return;
    if (!document.hidden) await work().catch(failed);
    if (!over) timer = window.setTimeout(turn, pause);
  };
  const seen = () => {
    if (!document.hidden) turn();
  };
  document.addEventListener("visibilitychange", seen);
  turn();
  return () => {
    over = true;
    window.clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
}

let telling = 0;

/** Say something in the status line, which screen readers read, for a while. @param {string} text */
export function tell(text) {
  window.clearTimeout(telling);
  say(document.getElementById("wrong"), "");
  say(document.getElementById("told"), text);
  telling = window.setTimeout(() => say(document.getElementById("told"), ""), 10_000);
}

/** Say that something failed. @param {unknown} error */
export function failed(error) {
  if (error instanceof ApiError && error.status === 401) return; // the log-in says so
  if (error instanceof DOMException && error.name === "AbortError") return;
  say(document.getElementById("told"), "");
  say(document.getElementById("wrong"), error instanceof Error ? error.message : String(error));
}

/** Take back what {@link failed} said, as it works again. */
export function works() {
  say(document.getElementById("wrong"), "");
}

const ORDER = ["readonly", "operator", "admin"];

/**
 * Whether a role may do what needs another.
 * @param {{role: string}} session @param {string} role
 */
export const may = (session, role) => ORDER.indexOf(session.role) >= ORDER.indexOf(role);

/** Seconds as `m:ss`. @param {number} seconds */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** An ISO time as the reader's clock shows it. @param {string | null} iso */
export const moment = (iso) =>
  iso ? new Date(iso).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }) : "";

/** A cost with its currency. @param {number | null | undefined} amount @param {string} currency */
export const money = (amount, currency) =>
  amount ? `${amount < 1 ? amount.toFixed(4) : amount.toFixed(2)} ${currency || "USD"}` : "";

/** Who calls whom: the caller's name, where their side gave one, and the numbers. */
export function parties(call) {
  const number = call.from_number || "unknown";
  const name = call.from_name && call.from_name !== number ? `${call.from_name} (${number})` : number;
  return `${name} → ${call.to_number || "unknown"}`;
}
