// SPDX-License-Identifier: GPL-2.0-or-later
// One call, live or past: state, words, timeline, ladder, sound, and what an operator may do.

import { ApiError, ask, clock, element, failed, may, moment, money, parties, repeat, say, tell, works } from "./base.js";
import { levelBar, setLevel } from "./live.js";
import { Ladder, Picture, stamp } from "./picture.js";
import { listening, recordingPlayer } from "./sound.js";

const QUIET_MS = 1500; // an entry whose words have not changed for so long is complete

/** The words of both sides, as they are said; what the caller did not hear is struck through. */
export class Transcript {
  constructor() {
    this.list = element("div.transcript", { role: "log", "aria-label": "Transcript", tabIndex: 0 });
    /** @type {Map<number, {node: HTMLElement, text: string, at: number}>} */
    this.entries = new Map();
  }

  /** @param {any[]} entries @param {number} first number of the first one @param {boolean} live */
  update(entries, first, live) {
    const now = Date.now();
    const atEnd = this.list.scrollTop + this.list.clientHeight >= this.list.scrollHeight - 30;
    entries.forEach((entry, place) => {
      const number = first + place;
      const text = JSON.stringify([entry.text, entry.heard]);
      let one = this.entries.get(number);
      if (!one) {
        const node = element("div.entry", { "data-who": entry.who, "aria-busy": String(live) });
        one = { node, text: "", at: now };
        this.entries.set(number, one);
        this.list.append(node);
      }
      if (one.text === text) return;
      Object.assign(one, { text, at: now });
      one.node.replaceChildren(...said(entry));
    });
    for (const one of this.entries.values()) {
      // A screen reader says an entry once, when it is complete.
      if (one.node.getAttribute("aria-busy") === "true" && (!live || now - one.at > QUIET_MS)) one.node.setAttribute("aria-busy", "false");
    }
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
  }
}

const WHO = { caller: "Caller", agent: "Agent", system: "System", call: "Tool", result: "Result" };

function said(entry) {
  const heard = entry.heard ?? entry.text;
  const rest = entry.text.slice(heard.length);
  return [
    element("span.meta", {}, element("b", {}, WHO[entry.who] ?? entry.who), " ", element("time", {}, stamp(entry.at_ms))),
    element(
      "p",
      {},
      heard || (entry.text ? "" : "…"),
      rest && element("s", {}, element("span.unseen", {}, " cut, not heard: "), rest),
      rest && element("span.cut-mark", { "aria-hidden": "true" }, " ✂"),
    ),
  ];
}

/** A dialog that asks; resolves with the form's fields, or null. */
function dialog(title, fields, action, danger = false) {
  return new Promise((resolve) => {
    const box = /** @type {HTMLDialogElement} */ (element("dialog", { "aria-label": title }));
    const form = /** @type {HTMLFormElement} */ (
      element(
        "form",
        { method: "dialog" },
        element("h2", {}, title),
        ...fields,
        element(
          "div.choices",
          {},
          element(danger ? "button.danger" : "button.main", { type: "submit" }, action),
          element("button", { type: "button", onclick: () => box.close() }, "Cancel"),
        ),
      )
    );
    let answer = null;
    form.addEventListener("submit", () => (answer = Object.fromEntries(new FormData(form))));
    box.addEventListener("close", () => {
      box.remove();
      resolve(answer);
    });
    form.addEventListener("keydown", (event) => {
      // Enter sends what was written, too; with Shift it is a new line.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || !(event.target instanceof HTMLTextAreaElement)) return;
      event.preventDefault();
      form.requestSubmit();
    });
    box.append(form);
    document.body.append(box);
    box.showModal();
    /** @type {HTMLElement | null} */ (form.querySelector("input, select, textarea, button.danger, button.main"))?.focus();
  });
}

const textField = (label, more = {}) =>
  element("label", {}, label, element("textarea", { name: "text", rows: 3, required: true, maxLength: 16000, ...more }));

/** What an operator may do with a call in progress. */
class Buttons {
  /** @param {string} id */
  constructor(id) {
    this.id = id;
    this.record = null;
    const button = (text, work, kind = "button") => element(kind, { type: "button", onclick: work }, text);
    this.hold = button("Hold", () => this.act(this.isHeld ? "unhold" : "hold"));
    this.mute = button("Mute caller", () => this.act(this.isMuted ? "unmute" : "mute"));
    this.hold.setAttribute("aria-pressed", "false");
    this.mute.setAttribute("aria-pressed", "false");
    this.recording = button("Pause recording", () => this.act("recording", { action: this.recordingAction }));
    this.node = element(
      "div.buttons",
      { role: "group", "aria-label": "What to do with the call" },
      button("Say…", () => this.ask("Have the agent say", [textField("Words")], "Say", "say")),
      button("Tell the model…", () => this.message()),
      button("Stop speaking", () => this.act("responses/cancel")),
      this.hold,
      this.mute,
      button("Keys…", () => this.ask("Send DTMF to the caller's side", [element("label", {}, "Digits", element("input", { name: "digits", required: true, pattern: "[0-9A-Da-d*#wW,]{1,64}", inputMode: "tel", autocomplete: "off" }))], "Send", "dtmf")),
      this.recording,
      button("Disposition…", () => this.ask("How the call went", [element("label", {}, "Disposition", element("input", { name: "disposition", required: true, maxLength: 64, value: this.record?.disposition ?? "" }))], "Note", "disposition")),
      button("Keep black box", () => this.act("black_box")),
      button("Transfer…", () => this.transfer()),
      button("Hang up", () => this.hangUp(), "button.danger"),
    );
  }

  /** @param {any} record */
  update(record) {
    this.record = record;
    const last = (names) => record.timeline.findLast((mark) => names.includes(mark.event))?.event;
    this.isHeld = last(["holding", "hold_ended"]) === "holding";
    this.isMuted = last(["muted", "unmuted"]) === "muted";
    this.hold.setAttribute("aria-pressed", String(this.isHeld));
    this.mute.setAttribute("aria-pressed", String(this.isMuted));
    const state = record.recording?.state ?? "";
    this.recordingAction = { recording: "pause", paused: "resume" }[state] ?? "start";
    say(this.recording, { recording: "Pause recording", paused: "Resume recording" }[state] ?? "Record");
  }

  async act(path, body, done = "Done.") {
    try {
      const answer = await ask(`/calls/${encodeURIComponent(this.id)}/${path}`, { method: "POST", body });
      tell(done);
      return answer;
    } catch (error) {
      failed(error);
      return null;
    }
  }

  async ask(title, fields, action, path) {
    const answer = await dialog(title, fields, action);
    if (answer) await this.act(path, answer);
  }

  async message() {
    const respond = element("label.check", {}, element("input", { name: "respond", type: "checkbox" }), " and have it respond");
    const answer = await dialog("A message to the model, not heard by the caller", [textField("Message"), respond], "Send");
    if (answer) await this.act("messages", { text: answer.text, respond: answer.respond === "on" });
  }

  async hangUp() {
    const answer = await dialog("End this call?", [element("p", {}, "The caller is hung up on at once.")], "Hang up", true);
    if (answer) await this.act("hangup", undefined, "The call is being ended.");
  }

  async transfer() {
    const names = this.record?.destinations ?? [];
    const known = names.map((one) => element("option", { value: one }, one));
    const fields = [
      element("label", {}, "To", element("select", { name: "name" }, ...known, element("option", { value: "" }, "a number…"))),
      element("label", {}, "Number, where the route allows one", element("input", { name: "number", inputMode: "tel", autocomplete: "off" })),
    ];
    const answer = await dialog("Transfer this call", fields, "Transfer");
    if (!answer) return;
    const asked = await this.act("transfer", { destination: answer.number.trim() || answer.name }, "The transfer begins.");
    if (!asked) return;
    // What became of it is said when it is known.
    const until = Date.now() + asked.seconds * 1000;
    const look = async () => {
      try {
        const outcome = await ask(`/calls/${encodeURIComponent(this.id)}/transfers/${asked.transfer}`);
        if (outcome.over) tell(`${outcome.done ? "Transferred" : "Not transferred"}: ${outcome.outcome.replaceAll("_", " ")}.`);
        else if (Date.now() < until) window.setTimeout(look, 1000);
      } catch (error) {
        failed(error);
      }
    };
    look();
  }
}

function facts(call, record) {
  const rows = [];
  const add = (name, value, kind = "div") => value !== "" && value !== null && value !== undefined && rows.push(element(kind, {}, element("dt", {}, name), element("dd", {}, value)));
  const ms = (value) => (value === null || value === undefined ? "" : `${Math.round(value)} ms`);
  add("Call", call.id);
  add("SIP Call-ID", call.sip_call_id);
  add("From", [call.from_name, call.from_uri].filter(Boolean).join(" "));
  add("To", call.to_uri);
  add("Source", [call.source, call.transport, call.security].filter(Boolean).join(", "));
  add("Codec", call.codec);
  add("Session", call.session_id);
  add("Began", moment(call.invited_at));
  add("Answered after", ms(record?.times_ms?.answered));
  add("Caller waits for the agent", call.response_p50_ms ? `${ms(call.response_p50_ms)} (p50), ${ms(call.response_p95_ms)} (p95)` : "");
  add("Interruptions", call.interruptions || "");
  add("Cost", money(call.cost, call.currency));
  add("Sound", call.mos ? `MOS ${call.mos.toFixed(1)}` : "");
  const rx = record?.quality?.rx;
  add("From the caller", rx ? `${rx.lost_percent} % lost, jitter ${Math.round(rx.jitter_ms?.mean ?? 0)} ms` : "");
  add("Underruns", record?.underruns || "");
  add("Disposition", call.disposition);
  add("Recording", record?.recording?.state);
  add("Ended by", call.ended_by ? `${call.ended_by === call.why ? "" : `${call.ended_by}: `}${call.why.replaceAll("_", " ")}${call.sip_code ? ` (${call.sip_code})` : ""}` : "");
  add("Detail", call.detail);
  add("Why", (call.explanation ?? []).join("; "), "div.wide");
  return rows;
}

/** @type {import("./console.js").Page} */
export const page = {
  path: "calls",
  title: "Call",
  hidden: true,
  show(main, session, id) {
    const operator = may(session, "operator");
    const heading = element("h1", {}, "Call");
    const state = element("span.state");
    const time = element("span.time");
    const bars = [levelBar("caller"), levelBar("agent")];
    const levels = element("span.levels", { hidden: true }, ...bars);
    const controls = element("div.controls");
    const words = new Transcript();
    const picture = new Picture();
    const ladder = new Ladder();
    const list = element("dl.facts");
    const sound = element("div.sound");
    main.append(
      element("p.back", {}, element("a", { href: "#/live" }, "Live calls"), " · ", element("a", { href: "#/past" }, "Past calls")),
      element("div.call-head", {}, heading, state, time, levels),
      controls,
      sound,
    );
    const section = (title, ...content) => element("section.panel", {}, element("h2", {}, title), ...content);
    const details = section("Facts", list);
    if (operator) main.append(section("Timeline", picture.node), element("div.columns", {}, section("Transcript", words.list), section("SIP and session", ladder.node)), details);
    else main.append(details, element("p.note", {}, "Words, timeline and sound of a call are for operators."));

    /** @type {Buttons | null} */
    let buttons = null;
    /** @type {{node: HTMLElement, end: () => void} | null} */
    let listener = null;
    /** @type {ReturnType<typeof recordingPlayer> | null} */
    let player = null;
    let record = { timeline: [] };
    let row = null;
    let over = false;
    let [place, spoken] = [0, 0];
    let [reading, drawn] = [0, -1000];

    const headline = (call) => {
      say(heading, parties(call));
      const text = call.state === "ended" ? call.outcome.replace("_", " ") : call.state;
      say(state, text);
      state.dataset.state = call.state === "ended" ? call.outcome : call.state;
      const now = call.ended_at ? Date.parse(call.ended_at) : Date.now();
      say(time, clock((now - Date.parse(call.invited_at)) / 1000));
    };
    const liveTools = () => {
      levels.hidden = false;
      if (!operator || buttons) return;
      buttons = new Buttons(id);
      listener = listening(id);
      controls.append(listener.node, buttons.node);
    };
    const ended = () => {
      over = true;
      levels.hidden = true;
      listener?.end();
      const lost = controls.contains(document.activeElement);
      controls.replaceChildren();
      if (lost) main.focus();
    };
    const showPast = async () => {
      const call = await ask(`/calls/${encodeURIComponent(id)}`);
      row = call;
      works();
      headline(call);
      if (call.state !== "ended") {
        list.replaceChildren(...facts(call, call.record));
        if (!operator) liveTools();
        return;
      }
      if (!call.record && reading++ < 20) return; // it is on its way to the database
      ended();
      list.replaceChildren(...facts(call, call.record));
      if (!operator || !call.record) return;
      record = call.record;
      const end = record.times_ms?.end ?? 0;
      picture.draw(record, end, false);
      ladder.draw(record, Boolean(place));
      words.update(record.transcript ?? [], record.transcript_dropped ?? 0, false);
      const kept = record.recording;
      if (!kept?.file || player) return;
      player = recordingPlayer(id, kept, (peaks) => {
        picture.sound = { ...peaks, from: kept.began_ms ?? 0 };
        picture.draw(record, end, false);
      });
      const audio = player.player;
      audio?.addEventListener("timeupdate", () => picture.playing((kept.began_ms ?? 0) + audio.currentTime * 1000));
      picture.frame.addEventListener("click", (event) => {
        if (audio) audio.currentTime = Math.max(0, (picture.timeAt(event) - (kept.began_ms ?? 0)) / 1000);
      });
      sound.replaceChildren(player.node);
    };
    const follow = async () => {
      if (over) return;
      if (!operator) return showPast();
      try {
        const { call } = await ask(`/calls/${encodeURIComponent(id)}/progress?place=${place}&spoken=${spoken}`);
        works();
        liveTools();
        record = { ...call, timeline: [...record.timeline, ...call.timeline] };
        place = call.place;
        words.update(call.transcript, call.spoken, true);
        // The words of the latest entries may still change, or be cut.
        spoken = Math.max(0, call.spoken + call.transcript.length - 8);
        ladder.draw(record, true);
        buttons?.update(record);
        if (row) headline({ ...row, state: call.state });
        const now = Date.now() - Date.parse(call.started_at);
        if (call.timeline.length || now - drawn >= 1000) picture.draw(record, (drawn = now), true);
      } catch (error) {
        if (!(error instanceof ApiError) || error.status !== 404) throw error;
        await showPast();
      }
    };
    const look = async () => {
      if (over || !operator) return;
      const { calls } = await ask("/calls?live=true&limit=1000");
      row = calls.find((call) => call.id === id) ?? row;
      if (!row) return;
      headline(row);
      list.replaceChildren(...facts(row, record));
    };
    const hear = async () => {
      if (over || levels.hidden) return;
      const found = (await ask("/levels")).levels[id] ?? [null, null];
      bars.forEach((bar, side) => setLevel(bar, found[side]));
    };
    const ends = [repeat(look, 3000), repeat(follow, operator ? 500 : 2000), repeat(hear, 250)];
    return () => {
      over = true;
      listener?.end();
      player?.end();
      for (const end of ends) end();
    };
  },
};
