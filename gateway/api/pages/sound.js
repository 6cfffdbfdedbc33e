// SPDX-License-Identifier: GPL-2.0-or-later
// Sound: listening in to a call without a microphone, and the waveform of a recording.

import { ask, element, failed, say, socketAddress } from "./base.js";
import { levelBar, setLevel } from "./live.js";

/** Tables of both laws (ITU-T G.711): code to sample, -1 to 1. @type {Record<string, Float32Array>} */
export const LAWS = {
  PCMU: Float32Array.from({ length: 256 }, (_, code) => {
    const flipped = ~code & 0xff;
    const step = (((flipped & 0x0f) << 3) + 0x84) << ((flipped & 0x70) >> 4);
    return (flipped & 0x80 ? 0x84 - step : step - 0x84) / 32768;
  }),
  PCMA: Float32Array.from({ length: 256 }, (_, code) => {
    const flipped = code ^ 0x55;
    const segment = (flipped & 0x70) >> 4;
    let step = ((flipped & 0x0f) << 4) + (segment ? 0x108 : 8);
    if (segment > 1) step <<= segment - 1;
    return (flipped & 0x80 ? step : -step) / 32768;
  }),
};

/** Peak of every other byte, from one on, in dBFS; null for silence. */
function loudness(bytes, from, table) {
  let peak = 0;
  for (let at = from; at < bytes.length; at += 2) peak = Math.max(peak, Math.abs(table[bytes[at]]));
  return peak < 0.0003 ? null : 20 * Math.log10(peak);
}

/**
 * The button that listens in to a call, and what it shows meanwhile.
 *
 * The sound is decoded and played by a worklet (listen-worklet.js), whose queue is bounded.
 *
 * @param {string} id of the call
 * @returns {{node: HTMLElement, end: () => void}}
 */
export function listening(id) {
  const button = /** @type {HTMLButtonElement} */ (
    element("button", { type: "button", "aria-pressed": "false" }, "Listen in")
  );
  const bars = [levelBar("caller"), levelBar("agent")];
  const told = element("span.note", { role: "status" });
  const volume = /** @type {HTMLInputElement} */ (
    element("input", { type: "range", min: "0", max: "2", step: "0.05", value: "1", "aria-label": "Volume" })
  );
  const more = element("span.listening", { hidden: true }, ...bars, volume);
  const node = element("div.listen", {}, button, more, told);
  /** @type {{context: AudioContext, socket: WebSocket} | null} */
  let open = null;

  const stop = (text = "") => {
    const was = open;
    open = null;
    was?.socket.close();
    was?.context.close();
    button.setAttribute("aria-pressed", "false");
    say(button, "Listen in");
    more.hidden = true;
    say(told, text);
  };
  const start = async () => {
    const context = new AudioContext();
    const socket = new WebSocket(socketAddress(`/calls/${encodeURIComponent(id)}/audio`));
    socket.binaryType = "arraybuffer";
    const mine = { context, socket };
    open = mine;
    button.setAttribute("aria-pressed", "true");
    say(button, "Stop listening");
    say(told, "connecting");
    // What comes before the worklet is there waits for it.
    const early = [];
    let post = (/** @type {any} */ message) => void early.push(message);
    let table = LAWS.PCMU;
    let [left, behind] = [0, 0];
    const count = () => say(told, left + behind ? `listening; ${left + behind} frames were left out` : "listening");
    socket.onmessage = ({ data }) => {
      if (open !== mine) return;
      if (typeof data === "string") {
        table = LAWS[JSON.parse(data).codec] ?? LAWS.PCMU;
        post({ table });
        more.hidden = false;
        count();
        return;
      }
      const dropped = new DataView(data).getUint32(0);
      if (dropped !== left) {
        left = dropped;
        count();
      }
      const sound = new Uint8Array(data, 4);
      bars.forEach((bar, side) => setLevel(bar, loudness(sound, side, table)));
      if (early.length < 100) post({ sound });
    };
    socket.onclose = ({ code }) => {
      if (open !== mine) return;
      stop(code === 1000 ? "The call is over." : "The sound of this call cannot be had now.");
    };
    try {
      await context.audioWorklet.addModule("listen-worklet.js");
      if (open !== mine) return;
      const player = new AudioWorkletNode(context, "listen", { numberOfInputs: 0, outputChannelCount: [2] });
      player.port.onmessage = ({ data }) => {
        behind = data.dropped;
        count();
      };
      const gain = new GainNode(context, { gain: Number(volume.value) });
      volume.oninput = () => void (gain.gain.value = Number(volume.value));
      player.connect(gain).connect(context.destination);
      node.dispatchEvent(new CustomEvent("listening", { detail: { context, gain } }));
      post = (message) => player.port.postMessage(message);
      early.forEach(post);
      early.length = 0;
      await context.resume();
    } catch (error) {
      if (open === mine) stop();
      failed(error);
    }
  };
  button.addEventListener("click", () => (open ? stop() : start()));
  return { node, end: () => stop() };
}

const PIECE = 256 * 1024;
const MOST = 16 * 1024 * 1024; // of a longer file only pieces are read
export const BIN_MS = 20;

/**
 * Peaks of both sides of a recording, read piece by piece.
 *
 * @param {string} address
 * @param {AbortSignal} signal
 * @returns {Promise<{caller: Float32Array, agent: Float32Array} | null>} a peak (0 to 1) for each
 *   {@link BIN_MS}; null where the file is no WAV: there is a player, but no picture
 */
export async function peaksOf(address, signal) {
  const read = (from, to) => fetch(address, { headers: { Range: `bytes=${from}-${to}` }, signal });
  const first = await read(0, PIECE - 1);
  if (!first.ok) return null;
  const whole = Number(first.headers.get("Content-Range")?.split("/")[1] ?? 0);
  const head = new Uint8Array(await first.arrayBuffer());
  const form = wavForm(head);
  if (!form) return null;
  const { at, bytes, table } = form;
  const bin = (8000 * BIN_MS) / 1000;
  const end = Math.max(whole, head.length);
  const bins = Math.floor((end - at) / (bytes * 2 * bin));
  const made = { caller: new Float32Array(bins), agent: new Float32Array(bins) };
  const take = (piece, from) => {
    const view = new DataView(piece.buffer, piece.byteOffset);
    const sample = table ? (place) => table[piece[place]] : (place) => view.getInt16(place, true) / 32768;
    const size = bytes * 2;
    let place = from < at ? at - from : (size - ((from - at) % size)) % size;
    for (; place + size <= piece.length; place += size) {
      const which = Math.floor((from + place - at) / (size * bin));
      if (which >= bins) break;
      made.caller[which] = Math.max(made.caller[which], Math.abs(sample(place)));
      made.agent[which] = Math.max(made.agent[which], Math.abs(sample(place + bytes)));
    }
  };
  take(head, 0);
  const step = PIECE * Math.max(1, Math.ceil(whole / MOST));
  for (let from = step; from < whole; from += step) {
    const answer = await read(from, Math.min(whole, from + PIECE) - 1);
    if (!answer.ok) break;
    take(new Uint8Array(await answer.arrayBuffer()), from);
  }
  return made;
}

/** Where the samples of a stereo WAV of 8 kHz begin, how long one is, and the table of its law. */
function wavForm(head) {
  const view = new DataView(head.buffer);
  const word = (at) => String.fromCharCode(...head.subarray(at, at + 4));
  if (head.length < 44 || word(0) !== "RIFF" || word(8) !== "WAVE") return null;
  let form = null;
  for (let at = 12; at + 8 <= head.length; at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) % 2)) {
    if (word(at) === "fmt ") {
      const kind = view.getUint16(at + 8, true);
      if (view.getUint16(at + 10, true) !== 2 || view.getUint32(at + 12, true) !== 8000) return null;
      if (kind === 7 || kind === 6) form = { bytes: 1, table: kind === 7 ? LAWS.PCMU : LAWS.PCMA };
      else if (kind === 1 && view.getUint16(at + 22, true) === 16) form = { bytes: 2, table: null };
      else return null;
    } else if (word(at) === "data") {
      return form && { ...form, at: at + 8 };
    }
  }
  return null;
}

/**
 * A player for the recording of a call that is over.
 *
 * @param {string} id of the call
 * @param {any} recording of its record
 * @param {(sound: any, at: () => number) => void} onPeaks given the peaks, for the picture
 * @returns {{node: HTMLElement, end: () => void, player: HTMLAudioElement | null}}
 */
export function recordingPlayer(id, recording, onPeaks) {
  const address = `/api/v1/calls/${encodeURIComponent(id)}/recording`;
  const reading = new AbortController();
  const download = element("a", { href: address, download: recording.file }, "Download");
  if (recording.encryption) {
    const note = element("p.note", {}, "The recording is encrypted; “gateway recording decrypt” reads it. ", download);
    return { node: note, end: () => {}, player: null };
  }
  const player = /** @type {HTMLAudioElement} */ (
    element("audio", { controls: true, preload: "metadata", src: address, "aria-label": "Recording: caller left, agent right" })
  );
  const told = element("p.note", { role: "status" });
  player.addEventListener("error", () => say(told, "The recording cannot be played here: it may have been deleted, or moved to other storage."));
  peaksOf(address, reading.signal)
    .then((peaks) => peaks && onPeaks(peaks, () => player.currentTime))
    .catch(failed);
  return {
    node: element("div.player", {}, player, download, told),
    player,
    end: () => {
      reading.abort();
      player.pause();
      player.removeAttribute("src");
      player.load();
    },
  };
}
