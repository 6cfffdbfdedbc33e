// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The audio of one call between pjmedia's clock and Python's event loop, without Python on the
 * clock's side: two queues of G.711, and a pooled port of the conference bridge that serves them.
 *
 * The clock thread takes and puts a frame every 20 ms and never needs the interpreter's lock; the
 * event loop takes whatever has come in one call, once for each beat that the eventfd announces.
 */
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include <pjsua2.hpp>

namespace pj {

/** Both queues of one call. Created and used by the event loop; shared with the port it serves. */
class NativeCallAudio {
public:
    struct State;

    /** law: 0 PCMU, 1 PCMA. Bounds in frames of 20 ms. */
    NativeCallAudio(int law, unsigned max_playout_frames, unsigned max_uplink_frames);
    ~NativeCallAudio();

    /** Queue whole frames of G.711; returns the number of frames refused (0 or all). */
    unsigned put(PyObject *audio);
    /** Take out all that was not played; returns its frames. */
    unsigned flush();
    /** Play silence and keep the queue, or go on. */
    void pause(bool paused);
    /** More audio of the current part is to come: an empty queue is an underrun. */
    void expect(bool expecting);
    /** The leg speaks another law from now on. */
    void useLaw(int law);
    /** All that the caller said since the last time, as G.711 bytes. */
    PyObject *drain();
    /** (playing, monotonic seconds) of the oldest start or stop not yet reported, or None. */
    PyObject *transition();
    /** Frames waiting to be played. */
    unsigned queued() const;
    /** (played, underruns, underrun frames, refused, uplink frames, uplink dropped), in frames. */
    PyObject *counters() const;

    /** From now on keep both directions of each 20 ms, at most so many; instead of the uplink. */
    void record(unsigned max_ticks);
    /** What was recorded since the last time: (said, heard, spoke, lost). The first two are linear
     *  samples of 320 bytes a tick, `spoke` has a byte a tick (1 where `said` came from the queue),
     *  `lost` counts all ticks that found no place. */
    PyObject *takeTicks();

    /** The media clock's side, for tests: the next frame as linear samples, or None for silence. */
    PyObject *pull();
    /** And a frame of linear samples from the caller; anything that is no whole frame is silence. */
    void push(PyObject *samples);

private:
    friend class NativeAudioPort;
    std::shared_ptr<State> state_;
};

/** A pooled port: serves one NativeCallAudio after another, is never destroyed while in use. */
class NativeAudioPort : public AudioMedia {
public:
    NativeAudioPort();
    virtual ~NativeAudioPort();

    /** Register with the bridge. Throws Error when it has no place. */
    void createPort(const std::string &name) PJSUA2_THROW(Error);
    /** Serve this audio from the next frame on. */
    void attach(NativeCallAudio &audio);
    /** Serve nobody. */
    void detach();

    struct Port;

private:
    Port *port_;
};

/** A file descriptor that becomes readable after each beat of the media clock that brought caller
 *  audio; read its 8 bytes to arm it again. One for the process. -1 when there is none to be had. */
int nativeBeatFd();
/** Take the beat's announcement: call before draining. */
void nativeBeatClear();

} // namespace pj
