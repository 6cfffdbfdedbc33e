// SPDX-License-Identifier: GPL-2.0-or-later
// A call from this page: microphone and loudspeaker are a telephone of the gateway's.

import { ask, element, failed, say, socketAddress, tell } from "./base.js";
import { levelBar, setLevel } from "./live.js";
import { LAWS } from "./sound.js";
import { Transcript } from "./watch.js";

const PING_MS = 1000;
const TELL_FRAMES = 25; // from one word of what has come to the next
const MOST_WAITING = 16000; // bytes that the network has not taken: two seconds
const KEYS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "*", "0", "#"];
const NUMBER = "[0-9A-Za-z+*#_.\\-]{1,64}";

const WITHOUT_MICROPHONE = {
  NotAllowedError: "The microphone is blocked. Allow it for this page in the browser's address bar, then call again.",
  NotFoundError: "No microphone was found. Plug one in, then call again.",
  NotReadableError: "The microphone cannot be used: another program may have it.",
};
const CLOSED = {
  1003: "The gateway did not understand this page. Reload it.",
  1006: "The connection to the gateway is lost.",
  1008: "The connection is too slow, or the page stood still for too long.",
  1013: "There are as many calls from browsers as the gateway allows. Try again later.",
};
const STATES = { ringing: "Ringing", progress: "Ringing", answered: "Connected" };

/** Microphone, loudspeaker and WebSocket of one call. */
class Call {
  /**
   * @param {string} to @param {string} from
   * @param {(message: any) => void} onMessage what the gateway says, `levels` and `over`
   */
  constructor(to, from, onMessage) {
    this.to = to;
    this.from = from;
    this.onMessage = onMessage;
    this.network = null; // ms there and back
    this.got = 0; // frames from the gateway
    this.unsent = 0; // frames that the network did not take
    this.over = false;
  }

  async begin() {
    // While the click that began it still counts: a browser starts sound for nothing else.
    this.context = new AudioContext({ latencyHint: "interactive" });
    const running = this.context.resume();
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
    await Promise.all([running, this.context.audioWorklet.addModule("phone.js")]);
    if (this.over) return this.release();
    this.stream.getAudioTracks()[0].onended = () => this.onMessage({ type: "deaf" });
    this.phone = new AudioWorkletNode(this.context, "phone", {
      numberOfInputs: 1,
      numberOfOutputs: 1,
      outputChannelCount: [1],
      processorOptions: { linear: LAWS.PCMU },
    });
    this.phone.port.onmessage = ({ data }) => (data instanceof ArrayBuffer ? this.speak(data) : this.onMessage({ type: "levels", ...data }));
    const query = new URLSearchParams({ to: this.to, ...(this.from && { from: this.from }) });
    this.socket = new WebSocket(socketAddress(`/browser-call?${query}`));
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.hear(data);
    this.socket.onclose = ({ code }) => this.end(code);
    this.pinging = setInterval(() => this.send({ type: "ping", id: Math.round(performance.now()) }), PING_MS);
    this.context.createMediaStreamSource(this.stream).connect(this.phone);
    this.phone.connect(this.context.destination);
  }

  speak(frame) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    if (this.socket.bufferedAmount > MOST_WAITING) this.unsent++;
    else this.socket.send(frame);
  }

  hear(data) {
    if (data instanceof ArrayBuffer) {
      const before = this.got;
      this.got += data.byteLength / 160;
      if (Math.floor(before / TELL_FRAMES) !== Math.floor(this.got / TELL_FRAMES)) this.send({ type: "got", frames: this.got });
      this.phone.port.postMessage(data, [data]);
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "pong") this.network = Math.round(performance.now()) - message.id;
    else this.onMessage(message);
  }

  /** @param {object} message */
  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** @param {boolean} muted */
  mute(muted) {
    this.phone?.port.postMessage({ muted });
  }

  /** ms from mouth to gateway and from gateway to ear, as far as a page can know. */
  delay({ ms }) {
    if (this.network === null) return null;
    const played = 1000 * (this.context.baseLatency + (this.context.outputLatency || 0));
    return { there: Math.round(20 + this.network / 2), back: Math.round(this.network / 2 + ms + played) };
  }

  hangUp() {
    this.send({ type: "hangup" });
    if (!this.socket || this.socket.readyState === WebSocket.CONNECTING) this.end(1000);
  }

  release() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.phone?.port.postMessage({ over: true });
    if (this.context?.state !== "closed") this.context?.close();
  }

  end(code) {
    if (this.over) return;
    this.over = true;
    clearInterval(this.pinging);
    this.socket?.close();
    this.release();
    this.onMessage({ type: "over", closed: code });
  }
}

/** Peak of samples in dBFS; null for silence. @param {number} peak */
const dbfs = (peak) => (peak < 0.0003 ? null : 20 * Math.log10(peak));

/** @type {import("./console.js").Page} */
export const page = {
  path: "call",
  title: "Call",
  role: "operator",
  show(main, _session, argument) {
    /** @type {Call | null} */
    let call = null;
    let began = 0;
    let why = "";
    const secure = window.isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);

    const number = /** @type {HTMLInputElement} */ (
      element("input", { id: "number", required: true, pattern: NUMBER, value: argument, autocomplete: "off", spellcheck: false, inputMode: "tel" })
    );
    number.setAttribute("list", "numbers");
    const caller = /** @type {HTMLInputElement} */ (element("input", { id: "caller", pattern: NUMBER, autocomplete: "off", placeholder: "browser" }));
    const numbers = element("datalist", { id: "numbers" });
    const place = /** @type {HTMLButtonElement} */ (element("button.main", { type: "submit" }, "Call"));
    const state = element("p.state", { role: "status" }, "No call");
    const mute = /** @type {HTMLButtonElement} */ (element("button", { type: "button", "aria-pressed": "false" }, "Mute"));
    const hangUp = element("button.danger", { type: "button" }, "Hang up");
    const [mine, theirs] = [levelBar("caller"), levelBar("agent")];
    const delay = element("p.note.delay", {});
    const pressed = element("output", { "aria-label": "Keys pressed" });
    const keys = element("div.keys", { role: "group", "aria-label": "Keypad" }, ...KEYS.map((key) => element("button", { type: "button", onclick: () => press(key) }, key)));
    const controls = element(
      "div.controls",
      { hidden: true },
      element("div.levels", {}, "You", mine, "Agent", theirs),
      delay,
      element("div.buttons", {}, mute, hangUp),
      keys,
      pressed,
    );
    const watch = /** @type {HTMLAnchorElement} */ (element("a", { target: "_blank", hidden: true }, "Watch this call in another tab"));
    let words = new Transcript();

    function press(key) {
      call?.send({ type: "dtmf", digit: key });
      say(pressed, (pressed.textContent + key).slice(-20));
    }

    function on(message) {
      switch (message.type) {
        case "levels": {
          setLevel(mine, dbfs(message.said));
          setLevel(theirs, dbfs(message.heard));
          words.update([], 0, true);
          const ms = call?.delay(message);
          const lost = (call?.unsent ?? 0) * 20;
          const bad = message.gaps ? `, ${message.gaps} gaps` : "";
          if (ms) say(delay, `Delay: ${ms.there} ms to the gateway, ${ms.back} ms back (network ${call.network} ms, waiting ${message.ms} ms${bad})${lost ? `. ${lost} ms of your voice were not sent.` : ""}`);
          break;
        }
        case "transcript":
          words.update(message.entries, message.first, true);
          break;
        case "deaf":
          failed(new Error("The microphone is gone: the agent hears nothing any more."));
          break;
        case "trying":
          watch.href = `#/calls/${message.call}`;
          watch.hidden = false;
          say(state, `Calling ${number.value}`);
          break;
        case "dtmf":
          say(state, `The agent pressed ${message.digit}`);
          break;
        case "ended":
          why = message.code === 200 ? message.reason : `${message.reason || "refused"} (${message.code})`;
          break;
        case "over":
          over(message.closed);
          break;
        default:
          say(state, `${STATES[message.type] ?? message.type}: ${number.value}`);
          if (message.type === "answered") began = Date.now();
      }
    }

    function over(code) {
      const lasted = began ? ` after ${Math.round((Date.now() - began) / 1000)} s` : "";
      if (CLOSED[code] && !why) failed(new Error(CLOSED[code]));
      say(state, `The call is over${lasted}${why ? `: ${why}` : ""}`);
      words.update([], 0, false);
      call = null;
      controls.hidden = true;
      place.disabled = number.disabled = caller.disabled = false;
      setLevel(mine, null);
      setLevel(theirs, null);
      number.focus();
    }

    async function begin(/** @type {Event} */ event) {
      event.preventDefault();
      if (call) return;
      tell("");
      const before = words.list;
      words = new Transcript();
      before.replaceWith(words.list);
      watch.hidden = true;
      [began, why] = [0, ""];
      say(pressed, "");
      say(delay, "");
      say(state, "Waiting for the microphone: the browser asks whether this page may use it");
      place.disabled = number.disabled = caller.disabled = true;
      mute.setAttribute("aria-pressed", "false");
      const mineOnly = (call = new Call(number.value.trim(), caller.value.trim(), on));
      try {
        await call.begin();
        if (call === mineOnly) {
          controls.hidden = false;
          hangUp.focus();
        }
      } catch (error) {
        why = WITHOUT_MICROPHONE[error.name] ?? String(error.message ?? error);
        mineOnly.end(1000);
      }
    }

    mute.addEventListener("click", () => {
      const muted = mute.getAttribute("aria-pressed") !== "true";
      mute.setAttribute("aria-pressed", String(muted));
      call?.mute(muted);
    });
    hangUp.addEventListener("click", () => call?.hangUp());
    keys.addEventListener("keydown", (event) => {
      if (KEYS.includes(event.key)) press(event.key);
    });

    main.append(
      element("h1", {}, "Call an agent"),
      element(
        "div.phone",
        {},
        element(
          "section",
          { "aria-label": "Telephone" },
          element(
            "form.dial",
            { onsubmit: begin },
            element("label", { htmlFor: "number" }, "Number"),
            number,
            numbers,
            place,
            element("details", {}, element("summary", {}, "Call as somebody else"), element("label", { htmlFor: "caller" }, "Caller's number"), caller),
          ),
          state,
          controls,
          element(
            "p.note",
            {},
            secure
              ? "The browser asks for the microphone when you call, and this page listens only during a call. Leaving the page ends the call. A call costs what any call to this number costs."
              : "Browsers give a microphone only to pages over https or on localhost. Open the console through a proxy with TLS, or on the machine itself: ssh -L 8080:127.0.0.1:8080 HOST.",
          ),
        ),
        element("section", { "aria-label": "Conversation" }, element("h2", {}, "What is said"), words.list, watch),
      ),
    );
    place.disabled = !secure;
    ask("/browser-call").then((told) => {
      numbers.replaceChildren(...told.numbers.map((one) => element("option", { value: one.number }, one.route)));
      if (!number.value && told.numbers.length && document.activeElement !== number) number.value = told.numbers[0].number;
      if (!told.limit) {
        place.disabled = true;
        say(state, "Calls from browsers are off: set api.browser_calls in the configuration.");
      }
    }, failed);
    return () => call?.end(1000);
  },
};
