// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * G.722 at 64 kbit/s (RFC 3551 section 4.5.2) and Opus (RFC 7587). The queues of a call in one of them have
 * linear samples at 24 kHz, as its session has: Opus is decoded to these, G.722 is resampled once.
 *
 * For pjmedia both are codecs of 8 kHz, since the conference bridge is: what comes from the bridge is sent
 * as narrow as it is, what goes there is lowered. Only what a call's own queue has is sent as wide as it
 * is, by send_wide. libopus codes Opus, pjproject G.722, and libspeexdsp resamples.
 */
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

struct OpusDecoder;
struct SpeexResamplerState_;

namespace pj {

/** Laws of packets; a queue of any but the first two has linear samples at 24 kHz. */
enum { kPcmu, kPcma, kG722, kOpus };

/** 16-bit samples from one rate to another, pieces of any length in their order. */
class Resampler {
public:
    Resampler(unsigned from, unsigned to);
    ~Resampler();
    Resampler(const Resampler &) = delete;
    /** `made` samples of `count`, which are as long. */
    void run(const int16_t *samples, size_t count, int16_t *out, size_t made);

private:
    SpeexResamplerState_ *state_;
};

/** Both directions of G.722; each has a memory, so bytes go through it in their order. */
class G722 {
public:
    static constexpr size_t kMost = 2048; // bytes at a time

    G722();
    ~G722();
    G722(const G722 &) = delete;

    /** 2 * count samples at 16 kHz of count bytes. */
    void decode(const uint8_t *bytes, size_t count, int16_t *wide);
    /** count bytes of 2 * count samples at 16 kHz. */
    void encode(const int16_t *wide, size_t count, uint8_t *bytes);

private:
    struct Coder;
    std::unique_ptr<Coder> coder_;
};

/** Makes audio of a call's packets, in their order, in the form that a queue has. Lengths are in units of
 *  125 us: bytes of G.711. */
class PacketDecoder {
public:
    static constexpr size_t kMost = 2048;          // units of one packet
    static constexpr size_t kMostConcealed = 960;  // units of loss that are guessed; more is silence

    /** coded: the codes of a G.711 law by sample, or nullptr for samples at 24 kHz. */
    explicit PacketDecoder(const uint8_t *coded);
    ~PacketDecoder();
    PacketDecoder(const PacketDecoder &) = delete;

    /** How long a packet is; 0 where it has no audio, or what it says of itself is not so. */
    static size_t length(int law, const uint8_t *packet, size_t bytes);
    /** The audio of a packet that long, until the next call. */
    const uint8_t *decode(int law, const uint8_t *packet, size_t bytes, size_t units);
    /** Audio in place of packets of Opus that are lost, right before this one, which may tell of them
     *  (in-band FEC); nullptr where silence is all there is. */
    const uint8_t *conceal(int law, const uint8_t *next, size_t bytes, size_t units);
    /** The loudest sample since the last time. */
    int takePeak();

private:
    OpusDecoder *opus();
    const uint8_t *finish(size_t samples);

    const uint8_t *const coded_;
    const unsigned rate_;
    std::vector<int16_t> samples_, raw_;
    std::vector<uint8_t> bytes_;
    std::unique_ptr<G722> g722_;
    std::unique_ptr<Resampler> from_8_, from_16_;
    OpusDecoder *opus_ = nullptr;
    int peak_ = 0;
};

/** Let the next frame that this thread encodes from `frame` be these samples at 24 kHz instead. */
void send_wide(const void *frame, const int16_t *wide, size_t samples);

/** G.722 for Python: tests. */
class NativeG722 {
public:
    /** 16-bit samples at 16 kHz of these bytes. */
    PyObject *decode(PyObject *bytes);
    /** Bytes of these samples. */
    PyObject *encode(PyObject *samples);

private:
    G722 coder_;
};

/** The copy at 8 kHz of a call's audio at 24 kHz. */
class NativeNarrow {
public:
    NativeNarrow();
    /** PCMU, a byte for three whole samples. */
    PyObject *narrow(PyObject *samples);

private:
    Resampler lower_;
};

/** Have pjmedia know Opus, and this G.722 instead of its own. Once, when the library is initialised;
 *  returns pjlib's status. */
int nativeRegisterWideCodecs();

} // namespace pj
