// SPDX-License-Identifier: GPL-2.0-or-later
// Live calls: state, levels of both sides, cost, as they go on; and what the gateway is doing.

import { ask, clock, element, failed, may, money, parties, repeat, say, works } from "./base.js";

const LEAST = -54; // dBFS: an empty bar

/** A bar that shows how loud one side is. @param {string} who */
export function levelBar(who) {
  return element(`span.level.${who}`, { "aria-hidden": "true" }, element("i"));
}

/** @param {HTMLElement} bar @param {number | null | undefined} dbfs */
export function setLevel(bar, dbfs) {
  const part = dbfs === null || dbfs === undefined ? 0 : Math.max(0, Math.min(1, 1 - dbfs / LEAST));
  bar.style.setProperty("--level", part.toFixed(2));
}

/** A number and what it is. */
const tile = (what) => {
  const value = element("dd", {}, "–");
  return { node: element("div.tile", {}, element("dt", {}, what), value), value };
};

/** One call in the list. */
class Row {
  constructor(id) {
    this.state = element("span.state");
    this.who = element("a.who-calls", { href: `#/calls/${encodeURIComponent(id)}` });
    this.where = element("span.where");
    this.time = element("span.time");
    this.cost = element("span.cost");
    this.caller = levelBar("caller");
    this.agent = levelBar("agent");
    this.node = element(
      "li",
      {},
      this.state,
      this.who,
      this.where,
      element("span.levels", {}, this.caller, this.agent),
      this.time,
      this.cost,
    );
  }

  update(call) {
    say(this.state, call.state);
    this.state.dataset.state = call.state;
    say(this.who, parties(call));
    say(this.where, [call.route, call.trunk].filter(Boolean).join(" · "));
    say(this.time, clock((Date.now() - Date.parse(call.invited_at)) / 1000));
    say(this.cost, money(call.cost, call.currency));
  }
}

/** @type {import("./console.js").Page} */
export const page = {
  path: "live",
  title: "Live calls",
  show(main, session) {
    const [calls, trunks, cost] = [tile("calls"), tile("trunks up"), tile("cost today")];
    const note = element("p.note.warning", { hidden: true });
    const list = element("ul.rows", { "aria-label": "Calls in progress" });
    const none = element("p.note", { hidden: true }, "No call is in progress.");
    main.append(
      element("h1", {}, "Live calls"),
      element("dl.tiles", {}, calls.node, trunks.node, cost.node),
      note,
      element(
        "p.legend",
        { "aria-hidden": "true" },
        element("span.key.caller"),
        "caller ",
        element("span.key.agent"),
        "agent",
      ),
      list,
      none,
    );

    /** @type {Map<string, Row>} */
    const rows = new Map();
    const refresh = async () => {
      const { calls: found } = await ask("/calls?live=true&limit=500");
      works();
      const ids = new Set(found.map((call) => call.id));
      for (const [id, row] of rows) {
        if (ids.has(id)) continue;
        row.node.remove();
        rows.delete(id);
      }
      for (const call of found) {
        let row = rows.get(call.id);
        if (!row) rows.set(call.id, (row = new Row(call.id)));
        row.update(call);
      }
      // The newest first; what is in its place already keeps it, and the focus.
      found.forEach((call, place) => {
        const { node } = rows.get(call.id);
        if (list.children[place] !== node) list.insertBefore(node, list.children[place] ?? null);
      });
      none.hidden = found.length > 0;
      // The limit is this worker's, the calls are those of all.
      say(calls.value, limit >= found.length ? `${found.length} of ${limit}` : String(found.length));
    };
    let limit = 0;
    const look = async () => {
      const status = await ask("/status");
      limit = status.max_calls ?? 0;
      const up = status.trunks.filter((one) => one.state === "registered" || one.state === "static");
      say(trunks.value, status.trunks.length ? `${up.length} of ${status.trunks.length}` : "none");
      trunks.node.classList.toggle("bad", up.length < status.trunks.length);
      say(cost.value, money(Number(status.cost?.total ?? 0), status.cost?.currency) || `0 ${status.cost?.currency ?? ""}`);
      const wrong = Object.entries(status.health?.problems ?? {}).map(([part, text]) => `${part}: ${text}`);
      if (status.draining) wrong.push("The gateway drains: it takes no further calls.");
      say(note, wrong.join(" "));
      note.hidden = !wrong.length;
    };
    const listen = async () => {
      if (!rows.size) return;
      const { levels } = await ask("/levels");
      for (const [id, row] of rows) {
        const [caller, agent] = levels[id] ?? [null, null];
        setLevel(row.caller, caller);
        setLevel(row.agent, agent);
      }
    };
    const ends = [repeat(refresh, 1500), repeat(look, 5000), repeat(listen, 250)];
    // What happens shows at once; other workers' calls come with the next refresh.
    const events = new EventSource("/api/v1/events");
    for (const type of ["incoming", "answered", "ringing", "held", "resumed", "transferring", "ended"]) {
      events.addEventListener(`call.${type}`, () => refresh().catch(failed));
    }
    return () => {
      events.close();
      for (const end of ends) end();
    };
  },
};

/** @type {import("./console.js").Page} */
export const trunksPage = {
  path: "trunks",
  title: "Trunks",
  show(main, session) {
    const body = element("tbody");
    const none = element("p.note", { hidden: true }, "No trunk is configured.");
    const heads = ["Trunk", "State", "Since", "Renewed in", "OPTIONS", "Calls", "Last error", ""];
    main.append(
      element("h1", {}, "Trunks"),
      element(
        "div.scrolled",
        { tabIndex: 0, role: "region", "aria-label": "Trunks" },
        element(
          "table.plain.trunks",
          {},
          element("thead", {}, element("tr", {}, ...heads.map((text) => element(text ? "th" : "td", { scope: text ? "col" : undefined }, text)))),
          body,
        ),
      ),
      none,
    );
    const register = async (name) => {
      try {
        await ask(`/trunks/${encodeURIComponent(name)}/register`, { method: "POST" });
        await refresh();
      } catch (error) {
        failed(error);
      }
    };
    const refresh = async () => {
      const { trunks } = await ask("/trunks?limit=500");
      none.hidden = trunks.length > 0;
      const focused = document.activeElement?.getAttribute("data-trunk");
      body.replaceChildren(
        ...trunks.map((one) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, one.name),
            element("td", {}, element("span.state", { "data-state": one.state }, one.state)),
            element("td", { "data-label": "Since" }, one.state === "static" ? "" : clock(one.since_seconds ?? 0)),
            element("td", { "data-label": "Renewed in" }, one.expires_seconds === null ? "" : clock(one.expires_seconds)),
            element("td", { "data-label": "OPTIONS" }, one.options),
            element("td", { "data-label": "Calls" }, one.calls),
            element("td.error", {}, one.last_error),
            element(
              "td",
              {},
              may(session, "operator") &&
                one.state !== "static" &&
                element("button", { type: "button", "data-trunk": one.name, "aria-label": `Register ${one.name} now`, onclick: () => register(one.name) }, "Register"),
            ),
          ),
        ),
      );
      for (const button of focused ? body.querySelectorAll("button") : []) {
        if (button.dataset.trunk === focused) button.focus();
      }
    };
    return repeat(refresh, 3000);
  },
};
