// SPDX-License-Identifier: GPL-2.0-or-later
// One call as a picture, as `gateway timeline` draws it, and as a ladder of SIP and session.

import { add, drawn, element } from "./base.js";
import { BIN_MS } from "./sound.js";

/** Milliseconds as `m:ss.mmm`. @param {number} ms */
export function stamp(ms) {
  const seconds = Math.max(0, ms) / 1000;
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(3).padStart(6, "0")}`;
}

const SESSION_ENDS = new Set(["session_lost", "session_released", "handed_over"]);

/**
 * Turns of both sides, cuts, keys and the rest of a call's timeline.
 *
 * @param {any} record @param {number} now ms since the INVITE, for what is not over
 */
export function storyOf(record, now) {
  const story = { caller: [], agent: [], keys: [], notes: [], end: now };
  let [speaking, hearing, session] = [null, null, 0];
  for (const mark of record.timeline) {
    const at = mark.t_ms;
    if (SESSION_ENDS.has(mark.event)) session += 1; // the next one may use the ids of items again
    switch (mark.event) {
      case "agent_speech_started":
        if (speaking) speaking.to = at;
        story.agent.push((speaking = { from: at, to: now, item: mark.item_id, session, text: "", cut: null }));
        break;
      case "agent_speech_stopped":
        if (speaking) speaking.to = at;
        speaking = null;
        break;
      case "agent_transcript": {
        // Where it was heard in pieces, its words stand in the longest.
        const isOfIt = (one) => one.item === mark.item_id && one.session === session;
        const pieces = story.agent.filter(isOfIt);
        const turn = pieces.length ? pieces.reduce((best, one) => (one.to - one.from > best.to - best.from ? one : best)) : speaking;
        if (turn) turn.text = turn.text && !isOfIt(turn) ? `${turn.text} ${mark.text}` : mark.text;
        break;
      }
      case "caller_speech_started":
        story.caller.push((hearing = { from: at, to: now, text: "" }));
        break;
      case "caller_speech_stopped":
        if (hearing) hearing.to = at;
        hearing = null;
        break;
      case "caller_transcript":
        if (story.caller.length) story.caller.at(-1).text = mark.text;
        break;
      case "dtmf":
        story.keys.push({ at, key: mark.digit });
        break;
      case "interruption": {
        const turn = story.agent.findLast((one) => one.item === mark.item_id && one.from <= at + 1);
        if (turn) Object.assign(turn, { cut: mark, to: Math.min(turn.to, Math.max(at, turn.from)) });
        break;
      }
      default:
        if (!ON_LANES.has(mark.event)) story.notes.push(mark);
    }
  }
  return story;
}

const ON_LANES = new Set(["invite", "ringing", "session_up", "answered", "confirmed", "end", "response", "truncated", "dtmf_collected"]);

const [TOP, LANE, GAP] = [22, 56, 12];
const MARGIN = 52; // left of the first second: whose lane it is
const LAST = 34; // right of the last one: the label of the axis that stands there
const [CALLER, AGENT] = [TOP, TOP + LANE + GAP];
const [FLAGS, AXIS] = [AGENT + LANE + 16, AGENT + LANE + 30];
const HEIGHT = AXIS + 22;
const WIDEST = 24_000; // pixels

/** The picture of one call, in a region that scrolls; the newest stays in sight while it grows. */
export class Picture {
  constructor() {
    this.scale = 28; // pixels a second, at least: a short call fills the frame until somebody zooms
    this.zoomed = false;
    this.sound = null;
    this.at = null;
    this.frame = element("div.picture", { tabIndex: 0, role: "region", "aria-label": "Picture of the call; the list below it says the same" });
    const zoom = (by) => () => {
      this.scale = Math.max(4, Math.min(160, (this.zoomed ? this.scale : this.drawn) * by));
      this.zoomed = true;
      if (this.record) this.draw(this.record, this.now, this.live);
    };
    this.node = element(
      "div",
      {},
      element(
        "div.zoom",
        {},
        element("button", { type: "button", "aria-label": "Zoom out", onclick: zoom(1 / 1.5) }, "−"),
        element("button", { type: "button", "aria-label": "Zoom in", onclick: zoom(1.5) }, "+"),
      ),
      this.frame,
    );
  }

  /** @param {any} record @param {number} now ms since the INVITE @param {boolean} live */
  draw(record, now, live) {
    Object.assign(this, { record, now, live });
    const story = storyOf(record, now);
    const seconds = Math.max(now / 1000 + 1, 8);
    // In steps of a quarter of a minute, so that a call that goes on does not shrink all the time.
    const fitting = (this.frame.clientWidth - MARGIN - LAST) / (live ? Math.ceil(seconds / 15) * 15 : seconds);
    const scale = Math.min(this.zoomed ? this.scale : Math.max(this.scale, Math.min(fitting, 100)), WIDEST / seconds);
    this.drawn = scale;
    const width = Math.max(MARGIN + seconds * scale + LAST, 320);
    const x = (ms) => MARGIN + (ms / 1000) * scale;
    const { scrollLeft, scrollWidth, clientWidth } = this.frame;
    const atEnd = scrollLeft + clientWidth >= scrollWidth - 40;

    const svg = drawn("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    svg.append(
      drawn("defs", {}, drawn("pattern", { id: "cut", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, drawn("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatch" }))),
      drawn("rect", { class: "lane", x: MARGIN, y: CALLER, width, height: LANE }),
      drawn("rect", { class: "lane", x: MARGIN, y: AGENT, width, height: LANE }),
    );
    const every = [1, 2, 5, 10, 30, 60, 300].find((one) => one * scale >= 60) ?? 600;
    for (let at = 0; at <= seconds; at += every) {
      const words = at < 60 ? `${at} s` : `${Math.floor(at / 60)}:${String(at % 60).padStart(2, "0")}`;
      svg.append(
        drawn("line", { class: "tick", x1: x(1000 * at), x2: x(1000 * at), y1: TOP, y2: AXIS }),
        drawn("text", { class: "soft", x: x(1000 * at) + 3, y: AXIS + 14 }, words),
      );
    }
    for (const turn of story.caller) svg.append(...this.turn(turn, "caller", CALLER, x));
    for (const [number, turn] of story.agent.entries()) {
      svg.append(...this.turn(turn, "agent", AGENT, x));
      if (!turn.cut) continue;
      const next = story.agent[number + 1]?.from ?? Infinity;
      const dropped = x(Math.min(turn.from + turn.cut.received_ms, next)) - x(turn.to);
      svg.append(
        drawn("rect", { class: "dropped", fill: "url(#cut)", x: x(turn.to), y: AGENT + 4, width: Math.max(0, Math.min(dropped, width - x(turn.to))), height: LANE - 8 }),
        drawn("line", { class: "cut", x1: x(turn.to), x2: x(turn.to), y1: AGENT - 3, y2: AGENT + LANE + 3 }),
        drawn("text", { class: "cut-words", x: x(turn.to) + 4, y: AGENT + LANE + 12 }, `✂ ${turn.cut.played_ms} of ${turn.cut.received_ms} ms heard`),
      );
    }
    if (this.sound) svg.append(this.wave("caller", CALLER, x), this.wave("agent", AGENT, x));
    for (const { at, key } of story.keys) {
      svg.append(
        drawn("rect", { class: "dtmf", x: x(at) - 7, y: 3, width: 15, height: 17, rx: 3 }),
        drawn("text", { class: "dtmf-words", x: x(at), y: 16, "text-anchor": "middle" }, key),
      );
    }
    const times = record.times_ms ?? {};
    const flags = [["answered", times.answered], ["end", times.end], ...story.notes.map((mark) => [mark.event, mark.t_ms])];
    for (const [event, at] of flags) {
      if (at === null || at === undefined) continue;
      svg.append(drawn("path", { class: `flag ${event === "end" ? "bad" : ""}`, d: `M${x(at)} ${FLAGS} l-4 8 h8 z` }, drawn("title", {}, `${stamp(at)} ${String(event).replaceAll("_", " ")}`)));
    }
    svg.append(drawn("text", { class: "who", x: 4, y: CALLER + LANE / 2 + 4 }, "caller"), drawn("text", { class: "who", x: 4, y: AGENT + LANE / 2 + 4 }, "agent"));
    this.head = drawn("line", { class: "head", y1: 0, y2: AXIS, x1: 0, x2: 0, visibility: "hidden" });
    svg.append(this.head);
    this.x = x;
    this.frame.replaceChildren(svg);
    if (live && atEnd) this.frame.scrollLeft = this.frame.scrollWidth;
  }

  *turn(turn, who, top, x) {
    const width = Math.max(2, x(turn.to) - x(turn.from));
    const title = `${stamp(turn.from)}, ${((turn.to - turn.from) / 1000).toFixed(1)} s${turn.text ? `: ${turn.text}` : ""}`;
    yield drawn("rect", { class: `turn ${who}`, x: x(turn.from), y: top + 4, width, height: LANE - 8, rx: 4 }, drawn("title", {}, title));
    const letters = Math.floor((width - 8) / 6.2);
    if (turn.text && letters > 4) {
      const words = turn.text.length > letters ? `${turn.text.slice(0, letters - 1)}…` : turn.text;
      yield drawn("text", { class: `words ${who}`, x: x(turn.from) + 5, y: top + 17 }, words);
    }
  }

  wave(side, top, x) {
    const peaks = this.sound[side];
    const middle = top + 4 + (LANE - 8) * 0.64;
    const from = this.sound.from;
    const step = Math.max(1, Math.floor(1 / (x(BIN_MS) - x(0))));
    const parts = [];
    for (let bin = 0; bin < peaks.length; bin += step) {
      let peak = 0;
      for (let one = bin; one < Math.min(bin + step, peaks.length); one++) peak = Math.max(peak, peaks[one]);
      if (peak < 0.004) continue;
      const half = Math.sqrt(peak) * (LANE - 8) * 0.34;
      parts.push(`M${x(from + bin * BIN_MS).toFixed(1)} ${(middle - half).toFixed(1)}v${(2 * half).toFixed(1)}`);
    }
    return drawn("path", { class: `wave ${side}`, d: parts.join("") });
  }

  /** The time (ms since the INVITE) at a place on the screen. @param {MouseEvent} event */
  timeAt(event) {
    const from = this.frame.getBoundingClientRect().left - this.frame.scrollLeft;
    return ((event.clientX - from - this.x(0)) / (this.x(1000) - this.x(0))) * 1000;
  }

  /** Show where the player is. @param {number} ms since the INVITE */
  playing(ms) {
    const at = String(this.x(ms));
    this.head.setAttribute("x1", at);
    this.head.setAttribute("x2", at);
    this.head.setAttribute("visibility", "visible");
    const { scrollLeft, clientWidth } = this.frame;
    if (this.x(ms) < scrollLeft || this.x(ms) > scrollLeft + clientWidth - 20) this.frame.scrollLeft = this.x(ms) - clientWidth / 3;
  }
}

const [CALLER_SIDE, GATEWAY, MODEL, OTHER] = ["caller", "gateway", "model", "other leg"];

/** A step that a Live session does in its own way, as `step` says it; null: as any session. */
function liveStep(mark) {
  switch (mark.event) {
    case "session_up": return [MODEL, GATEWAY, "session.started"];
    // The gateway measures by their loudness when both speak: the session has no turns.
    case "caller_speech_started": return [CALLER_SIDE, GATEWAY, "speech begins"];
    case "caller_speech_stopped": return [CALLER_SIDE, GATEWAY, "speech ends"];
    case "agent_speech_started": return [GATEWAY, CALLER_SIDE, "first frame of speech"];
    case "agent_speech_stopped": return [GATEWAY, CALLER_SIDE, mark.cut ? "the speech stops: cut" : "last frame of speech"];
    case "response": return String(mark.response_id).startsWith("speech_") ? [MODEL, GATEWAY, `speech ends: ${words(mark.status)}`] : null;
    default: return null;
  }
}

/** Ids of Live sessions begin with this. */
const LIVE = "live_";

/**
 * Who told whom what, for the ladder.
 *
 * @param {any} mark of the timeline @param {any} record
 * @returns {[string, string, string] | null} from, to, and what; null where it is told elsewhere
 */
function step(mark, record) {
  const out = record.direction === "outbound";
  const [near, far] = out ? [GATEWAY, CALLER_SIDE] : [CALLER_SIDE, GATEWAY];
  switch (mark.event) {
    case "invite": return [near, far, "INVITE"];
    case "dialing": return [GATEWAY, CALLER_SIDE, "INVITE"];
    case "ringing": return [far, near, "180 Ringing"];
    case "early_media": return [far, near, "183 Session Progress"];
    case "session_up": return [MODEL, GATEWAY, "session.updated"];
    case "answered": return [far, near, "200 OK"];
    case "confirmed": return [near, far, "ACK"];
    case "caller_speech_started": return [MODEL, GATEWAY, "speech_started"];
    case "caller_speech_stopped": return [MODEL, GATEWAY, "speech_stopped"];
    case "caller_transcript": return [MODEL, GATEWAY, `transcript of the caller: “${mark.text}”`];
    case "agent_speech_started": return [GATEWAY, CALLER_SIDE, "first frame of a response"];
    case "agent_speech_stopped": return [GATEWAY, CALLER_SIDE, mark.cut ? "the response stops: cut" : "last frame of the response"];
    case "agent_transcript": return [MODEL, GATEWAY, `“${mark.text}”`];
    case "response": return [MODEL, GATEWAY, `response.done: ${mark.status}${mark.reason ? `, ${mark.reason}` : ""}`];
    case "interruption": return [GATEWAY, MODEL, mark.action === "none" ? `interrupted (${mark.trigger})` : `item.${mark.action}: ${mark.played_ms} of ${mark.received_ms} ms were heard`];
    case "truncated": return [MODEL, GATEWAY, `item.truncated at ${mark.audio_end_ms} ms`];
    case "dtmf": return [CALLER_SIDE, GATEWAY, `DTMF ${mark.digit}`];
    case "dtmf_collected": return [GATEWAY, MODEL, `digits ${mark.digits}`];
    case "dtmf_sent": return [GATEWAY, CALLER_SIDE, `DTMF ${mark.digits ?? ""}`];
    case "tool": return [MODEL, GATEWAY, `function call: ${mark.name}`];
    case "tool_done": return [GATEWAY, MODEL, `result of ${mark.name}: ${mark.outcome}`];
    case "held": return [CALLER_SIDE, GATEWAY, "re-INVITE: hold"];
    case "resumed": return [CALLER_SIDE, GATEWAY, "re-INVITE: resumed"];
    case "codec_changed": return [CALLER_SIDE, GATEWAY, "re-INVITE: another codec"];
    case "transfer": return [GATEWAY, mark.mode === "blind" ? CALLER_SIDE : OTHER, `${mark.mode === "blind" ? "REFER" : "INVITE"} ${mark.to ?? mark.destination ?? ""}`];
    case "transfer_ringing": return [OTHER, GATEWAY, "180 Ringing"];
    case "transfer_progress": return [CALLER_SIDE, GATEWAY, `NOTIFY ${mark.code ?? mark.sip_code ?? ""}`];
    case "transfer_answered": return [OTHER, GATEWAY, "200 OK"];
    case "transfer_failed": return [OTHER, GATEWAY, `the transfer failed: ${words(mark.outcome ?? mark.sip_code ?? mark.code)}`];
    case "command": return [GATEWAY, GATEWAY, `command: ${apart(mark.command)}`];
    case "session_lost": return [MODEL, GATEWAY, `session lost: ${mark.why ?? ""}`];
    case "end": {
      const answered = (record.times_ms?.answered ?? null) !== null;
      const code = record.ending?.sip_code ?? "";
      if (mark.by === "caller") return [CALLER_SIDE, GATEWAY, `${answered ? "BYE" : "CANCEL"}: ${words(mark.why)}`];
      return [GATEWAY, CALLER_SIDE, `${answered ? "BYE" : code}: ${words(mark.why)}${mark.by === mark.why ? "" : ` (${mark.by})`}`];
    }
    default: {
      const { t_ms: _at, event, ...rest } = mark;
      const facts = Object.entries(rest).map(([key, value]) => `${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
      return [GATEWAY, GATEWAY, [words(event), ...facts].join(", ")];
    }
  }
}

const words = (text) => String(text ?? "").replaceAll("_", " ");

/** The words of a name such as OperatorTransfer. @param {string} name */
const apart = (name) => name.replace(/(?<=[a-z])(?=[A-Z])/g, " ").toLowerCase();

/** The ladder of one call: a list, which grows. */
export class Ladder {
  constructor() {
    this.list = element("ol.ladder", { "aria-label": "SIP and session" });
    this.count = 0;
    this.isLive = false; // the session of the newest step
    this.node = element(
      "div.ladder-frame",
      { tabIndex: 0, role: "region", "aria-label": "Ladder" },
      element("div.lines", { "aria-hidden": "true" }, ...[CALLER_SIDE, GATEWAY, MODEL, OTHER].map((one) => element("span", {}, one))),
      this.list,
    );
  }

  /** @param {any} record @param {boolean} live the newest stays in sight */
  draw(record, live) {
    const { scrollTop, scrollHeight, clientHeight } = this.node;
    const atEnd = scrollTop + clientHeight >= scrollHeight - 30;
    const fresh = record.timeline.slice(this.count);
    this.count = record.timeline.length;
    for (const mark of fresh) {
      if (mark.session_id) this.isLive = mark.session_id.startsWith(LIVE);
      const told = (this.isLive && liveStep(mark)) || step(mark, record);
      if (!told) continue;
      const [from, to, what] = told;
      if (from === OTHER || to === OTHER) this.node.classList.add("with-other");
      const item = element("li", { "data-from": from.split(" ")[0], "data-to": to.split(" ")[0] });
      add(
        item,
        element("time", {}, stamp(mark.t_ms)),
        element("span.arrow", {}, element("span.unseen", {}, from === to ? `${from}: ` : `${from} to ${to}: `), element("span.what", {}, what)),
      );
      this.list.append(item);
    }
    if (live && atEnd && fresh.length) this.node.scrollTop = this.node.scrollHeight;
  }
}
