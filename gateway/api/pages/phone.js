// SPDX-License-Identifier: GPL-2.0-or-later
// The telephone's audio, on the browser's audio thread (AudioWorklet): microphone to G.711 and back.
//
// The page and this side exchange frames of 20 ms, 160 bytes of µ-law at 8 kHz. The browser's own
// rate is another one, so both ways pass a windowed sinc, whose delay is below 2 ms.

const RATE = 8000;
const FRAME = 160;
const MS = RATE / 1000;
const REPORT_FRAMES = 5;

/** The µ-law code of a sample between -1 and 1 (ITU-T G.711). */
export function coded(sample) {
  const negative = sample < 0;
  const size = Math.min(32635, Math.round(Math.abs(sample) * 32768)) + 132;
  const exponent = 31 - Math.clz32(size) - 7;
  const code = (negative ? 0x80 : 0) | (exponent << 4) | ((size >> (exponent + 3)) & 15);
  return ~code & 0xff;
}

const PHASES = 64;
const CROSSINGS = 10;

/** Changes the rate of a stream of samples. */
export class Resampler {
  constructor(from, to) {
    const cut = 0.94 * Math.min(1, to / from);
    this.step = from / to;
    this.half = Math.ceil(CROSSINGS / cut);
    this.kernels = Array.from({ length: PHASES + 1 }, (_, phase) => this.kernel(phase / PHASES, cut));
    this.waiting = new Float32Array(2 * this.half);
    this.count = 2 * this.half;
    this.at = this.half;
  }

  kernel(offset, cut) {
    const taps = new Float32Array(2 * this.half);
    let sum = 0;
    for (let tap = 0; tap < taps.length; tap++) {
      const distance = tap - this.half + 1 - offset;
      const angle = Math.PI * cut * distance;
      const inside = Math.abs(distance) < this.half;
      const window = inside ? Math.cos((Math.PI * distance) / (2 * this.half)) ** 2 : 0;
      taps[tap] = window * (angle ? Math.sin(angle) / angle : 1);
      sum += taps[tap];
    }
    return taps.map((tap) => tap / sum);
  }

  /** Take samples, and give `told` each that this makes. */
  push(samples, told) {
    const all = new Float32Array(this.count + samples.length);
    all.set(this.waiting.subarray(0, this.count));
    all.set(samples, this.count);
    while (Math.floor(this.at) + this.half < all.length) {
      const whole = Math.floor(this.at);
      const kernel = this.kernels[Math.round((this.at - whole) * PHASES)];
      let sum = 0;
      for (let tap = 0, from = whole - this.half + 1; tap < kernel.length; tap++) sum += kernel[tap] * all[from + tap];
      told(sum);
      this.at += this.step;
    }
    const used = Math.max(0, Math.floor(this.at) - this.half);
    this.waiting = all.subarray(used);
    this.count = this.waiting.length;
    this.at -= used;
  }
}

const FIRST_MS = 60;
const MOST_TARGET_MS = 240;
const MOST_MS = 1000;
const QUIET = 0.008;

/**
 * What is to be heard, between the gateway's clock and this browser's.
 *
 * Playing starts when so much waits as lately proved to be needed. Clocks that differ are made good
 * in pauses, where a frame more or less is not heard.
 */
export class JitterBuffer {
  constructor() {
    this.frames = [];
    this.at = 0;
    this.target = FIRST_MS;
    this.playing = false;
    this.gaps = this.skipped = this.repeated = 0;
  }

  get ms() {
    return this.frames.length * 20 - Math.round(this.at / MS);
  }

  put(frame) {
    const quiet = frame.every((sample) => Math.abs(sample) < QUIET);
    if (quiet && this.playing && this.ms > this.target + 40) {
      this.skipped++;
      return;
    }
    this.frames.push(frame);
    if (quiet && this.playing && this.ms < this.target / 2) {
      this.repeated++;
      this.frames.push(frame);
    }
    if (this.ms > MOST_MS) {
      const excess = this.frames.length - this.target / 20;
      this.skipped += excess;
      this.frames.splice(0, excess);
      this.at = 0;
    }
    if (this.ms >= this.target) this.playing = true;
  }

  next() {
    if (!this.playing) return 0;
    const frame = this.frames[0];
    if (!frame) {
      this.playing = false;
      this.gaps++;
      this.target = Math.min(MOST_TARGET_MS, this.target + 20);
      return 0;
    }
    const sample = frame[this.at++];
    if (this.at === frame.length) {
      this.frames.shift();
      this.at = 0;
    }
    return sample;
  }
}

// Tests import this module where there is no audio thread.
class Phone extends (globalThis.AudioWorkletProcessor ?? Object) {
  /** @param {{processorOptions: {linear: Float32Array}}} options the sample of each µ-law code */
  constructor({ processorOptions: { linear } }) {
    super();
    this.up = new Resampler(sampleRate, RATE);
    this.down = new Resampler(RATE, sampleRate);
    this.buffer = new JitterBuffer();
    this.frame = new Uint8Array(FRAME);
    this.filled = this.reported = 0;
    this.muted = this.over = false;
    this.ready = [];
    this.said = this.heard = 0;
    this.port.onmessage = ({ data }) => {
      if (data instanceof ArrayBuffer) {
        const bytes = new Uint8Array(data);
        for (let at = 0; at + FRAME <= bytes.length; at += FRAME) {
          this.buffer.put(Float32Array.from(bytes.subarray(at, at + FRAME), (code) => linear[code]));
        }
      } else if ("muted" in data) this.muted = data.muted;
      else this.over = true;
    };
  }

  process([input], [output]) {
    const heard = output[0];
    this.up.push(input[0] ?? new Float32Array(heard.length), (sample) => this.speak(sample));
    while (this.ready.length < heard.length) {
      const sample = this.buffer.next();
      this.heard = Math.max(this.heard, Math.abs(sample));
      this.down.push([sample], (made) => this.ready.push(made));
    }
    heard.set(this.ready.splice(0, heard.length));
    for (const other of output.slice(1)) other.set(heard);
    return !this.over;
  }

  speak(sample) {
    const said = this.muted ? 0 : sample;
    this.said = Math.max(this.said, Math.abs(said));
    this.frame[this.filled++] = coded(said);
    if (this.filled < FRAME) return;
    this.filled = 0;
    const { buffer } = this.frame;
    this.port.postMessage(buffer, [buffer]);
    this.frame = new Uint8Array(FRAME);
    if (++this.reported % REPORT_FRAMES) return;
    const { ms, gaps, skipped, repeated } = this.buffer;
    this.port.postMessage({ said: this.said, heard: this.heard, ms, gaps, skipped, repeated });
    this.said = this.heard = 0;
  }
}

globalThis.registerProcessor?.("phone", Phone);
