// SPDX-License-Identifier: GPL-2.0-or-later
// Plays G.711 of both sides of a call (by turns: caller, agent) as it comes, from a bounded queue.

const RATE = 8000;
const MOST = RATE * 1.5; // samples a side: what is older than that is left out, and counted
const BEGIN = RATE * 0.12; // waited for before it plays, and again where nothing is left
const FRAME = 160;

class Listen extends AudioWorkletProcessor {
  constructor() {
    super();
    this.table = new Float32Array(256);
    this.ring = new Float32Array(2 * 2 * MOST);
    this.read = 0; // in samples, since the beginning; with a part
    this.written = 0;
    this.playing = false;
    this.dropped = 0;
    this.port.onmessage = ({ data }) => {
      if (data.table) this.table = data.table;
      if (data.sound) this.take(data.sound);
    };
  }

  /** @param {Uint8Array} sound */
  take(sound) {
    const room = this.ring.length / 2;
    for (let at = 0; at + 1 < sound.length; at += 2) {
      const place = (this.written++ % room) * 2;
      this.ring[place] = this.table[sound[at]];
      this.ring[place + 1] = this.table[sound[at + 1]];
    }
    const waiting = this.written - this.read;
    if (waiting > MOST) {
      const gone = Math.ceil((waiting - MOST / 2) / FRAME) * FRAME;
      this.read = Math.floor(this.read) + gone;
      this.dropped += gone / FRAME;
      this.port.postMessage({ dropped: this.dropped });
    }
  }

  process(_inputs, [[left, right]]) {
    const room = this.ring.length / 2;
    const step = RATE / sampleRate;
    for (let at = 0; at < left.length; at++) {
      const waiting = this.written - this.read;
      if (!this.playing && waiting >= BEGIN) this.playing = true;
      if (waiting < 2) this.playing = false;
      if (!this.playing) {
        left[at] = right[at] = 0;
        continue;
      }
      const whole = Math.floor(this.read);
      const part = this.read - whole;
      const [here, next] = [(whole % room) * 2, ((whole + 1) % room) * 2];
      left[at] = this.ring[here] * (1 - part) + this.ring[next] * part;
      right[at] = this.ring[here + 1] * (1 - part) + this.ring[next + 1] * part;
      this.read += step;
    }
    return true;
  }
}

registerProcessor("listen", Listen);
