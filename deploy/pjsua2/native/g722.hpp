// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * G.722 at 64 kbit/s (RFC 3551 section 4.5.2): a byte has two samples at 16 kHz, and RTP counts bytes, as
 * with G.711. So a queue of G.722 has as many bytes in a millisecond as one of G.711.
 *
 * For pjmedia it is a codec of 8 kHz, since the conference bridge is: what comes from the bridge is
 * raised to 16 kHz, what goes there is lowered. Only what a call's own queue has is sent as wide as it
 * is, by g722_send_wide.
 */
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace pj {

/** Both directions of one stream; each has a memory, so bytes go through it in their order. */
class G722 {
public:
    static constexpr size_t kMost = 2048; // bytes at a time
    // Silence in place of what is not there. No encoder has this byte (its lower six bits begin at 4),
    // and the decoder's memory passes it by: what comes after a lost packet is as loud as it was.
    static constexpr uint8_t kNothing = 0;

    G722();
    ~G722();
    G722(const G722 &) = delete;

    /** 2 * count samples at 16 kHz of count bytes. */
    void decode(const uint8_t *bytes, size_t count, int16_t *wide);
    /** count bytes of 2 * count samples at 16 kHz. */
    void encode(const int16_t *wide, size_t count, uint8_t *bytes);
    /** count samples at 8 kHz of twice as many at 16 kHz; what is above 4 kHz is left out. */
    void lower(const int16_t *wide, size_t count, int16_t *narrow);
    /** 2 * count samples at 16 kHz of count at 8 kHz. */
    void raise(const int16_t *narrow, size_t count, int16_t *wide);

private:
    struct Coder;
    std::unique_ptr<Coder> coder_;
};

/** Let the next frame that this thread encodes from `frame` be these samples at 16 kHz instead. */
void g722_send_wide(const void *frame, const int16_t *wide, size_t samples);

/** G.722 for Python, one direction each, or the copy of what comes that is heard at 8 kHz. */
class NativeG722 {
public:
    /** 16-bit samples at 16 kHz of these bytes. */
    PyObject *decode(PyObject *bytes);
    /** Bytes of these samples. */
    PyObject *encode(PyObject *samples);
    /** The bytes as PCMU, one for each. */
    PyObject *narrow(PyObject *bytes);

private:
    G722 coder_;
};

/** Have pjmedia know this G.722 instead of its own. Once, when the library is initialised; returns
 *  pjlib's status. */
int nativeRegisterG722();

} // namespace pj
