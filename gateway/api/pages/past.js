// SPDX-License-Identifier: GPL-2.0-or-later
// Past calls: search, and a page after the other.

import { ask, clock, element, failed, moment, money, parties, works } from "./base.js";

const PAGE = 50;
const OUTCOMES = ["", "completed", "transferred", "busy", "no_answer", "cancelled", "refused", "failed", "crashed"];

/** @type {import("./console.js").Page} */
export const page = {
  path: "past",
  title: "Past calls",
  show(main) {
    const field = (label, name, more = {}) =>
      element("label", {}, label, element("input", { name, type: "search", autocomplete: "off", ...more }));
    const form = /** @type {HTMLFormElement} */ (
      element(
        "form.search",
        { role: "search", "aria-label": "Past calls" },
        field("Number", "number", { inputMode: "tel" }),
        field("Route", "route"),
        field("Trunk", "trunk"),
        element("label", {}, "Outcome", element("select", { name: "outcome" }, ...OUTCOMES.map((one) => element("option", { value: one }, one.replace("_", " ") || "any")))),
        field("From", "since", { type: "datetime-local" }),
        field("To", "until", { type: "datetime-local" }),
        field("Call-ID", "sip_call_id"),
        element("button.main", { type: "submit" }, "Search"),
      )
    );
    const list = element("ul.rows.past", { "aria-label": "Past calls" });
    const count = element("p.note", { role: "status" });
    const more = /** @type {HTMLButtonElement} */ (element("button", { type: "button", hidden: true }, "Show more"));
    main.append(element("h1", {}, "Past calls"), form, count, list, more);

    let after = "";
    let asking = new AbortController();
    const search = async (/** @type {boolean} */ fresh) => {
      asking.abort();
      asking = new AbortController();
      const wanted = new URLSearchParams({ live: "false", limit: String(PAGE) });
      for (const [name, value] of new FormData(form)) {
        const text = String(value).trim();
        if (!text) continue;
        wanted.set(name, name === "since" || name === "until" ? new Date(text).toISOString() : text);
      }
      if (!fresh) wanted.set("after", after);
      try {
        const { calls, next } = await ask(`/calls?${wanted}`, { signal: asking.signal });
        works();
        if (fresh) list.replaceChildren();
        list.append(...calls.map(row));
        after = next ?? "";
        more.hidden = !next;
        const shown = list.children.length;
        const none = [...new FormData(form).values()].some((text) => String(text).trim())
          ? "No call fits."
          : "No past calls yet. They are kept with records.folder or records.database.";
        count.textContent = shown ? `${shown}${next ? " or more" : ""} ${shown === 1 ? "call" : "calls"}` : none;
      } catch (error) {
        failed(error);
      }
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      search(true);
    });
    more.addEventListener("click", async () => {
      const place = list.children.length;
      await search(false);
      list.children[place]?.querySelector("a")?.focus();
    });
    search(true);
    return () => asking.abort();
  },
};

function row(call) {
  return element(
    "li",
    {},
    element("span.state", { "data-state": call.outcome }, call.outcome.replace("_", " ")),
    element(
      "a.who-calls",
      { href: `#/calls/${encodeURIComponent(call.id)}` },
      parties(call),
    ),
    element("span.where", {}, [call.route, call.trunk, call.disposition].filter(Boolean).join(" · ")),
    element("span.moment", {}, moment(call.invited_at)),
    element("span.time", {}, clock(call.talk_seconds ?? 0)),
    element("span.cost", {}, money(call.cost, call.currency)),
    element("span.why", {}, call.why ? `${call.why.replaceAll("_", " ")}${call.why === call.ended_by ? "" : ` (${call.ended_by})`}` : ""),
  );
}
