// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The audio of one call between pjmedia's threads and Python's event loop, without Python on their
 * side: two queues of G.711 or linear samples, and a pooled port of the conference bridge.
 *
 * Towards the caller the port is given a frame every 20 ms by the clock thread. From the caller,
 * RTP payloads come in the thread that receives them, by patches/tap-received-packets.patch, and go
 * through the sequencer; the bridge is listened to only where several legs are mixed, or where
 * both directions are recorded tick by tick. Neither thread ever needs the interpreter's lock.
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

    /** Where the caller's audio is taken from; from nobody it is silence, in real time. */
    enum { NOBODY, PACKETS, BRIDGE };

    /** law: 0 PCMU, 1 PCMA; 2 for G.722, 3 for Opus: then both queues have linear samples at 24 kHz, 960
     *  bytes a frame in place of 160. Bounds in frames of 20 ms. */
    NativeCallAudio(int law, unsigned max_playout_frames, unsigned max_uplink_frames);
    ~NativeCallAudio();

    /** By which nativeTakeReady names this call. */
    unsigned id() const;
    /** Have the packets of this stream (an address, as of on_stream_created) from now on.
     *  packet_wait: ms that a missing one is waited for. */
    void tap(unsigned long stream, unsigned packet_wait);
    /** Take the caller's audio from there. */
    void listen(int source);

    /** What the bridge gives this side is what the caller of `call` hears, and is recorded so: for a
     *  leg that has no stream of pjmedia's. Before a port serves this side. */
    void bringTo(NativeCallAudio &call);

    /** Queue whole frames; returns the number of frames refused (0 or all). */
    unsigned put(PyObject *audio);
    /** Take out all that was not played; returns its frames. */
    unsigned flush();
    /** Play silence and keep the queue, or go on. */
    void pause(bool paused);
    /** As pause, while nobody could read what is sent: SRTP has no keys yet. */
    void awaitKeys(bool waiting);
    /** More audio of the current part is to come: an empty queue is an underrun. */
    void expect(bool expecting);
    /** The leg speaks another law from now on. */
    void useLaw(int law);
    /** All that the caller said since the last time, and whether a transition waits. */
    PyObject *take();
    /** (playing, monotonic seconds) of the oldest start or stop not yet reported, or None. */
    PyObject *transition();
    /** Frames waiting to be played. */
    unsigned queued() const;
    /** (played, underruns, underrun frames, refused), in frames. */
    PyObject *counters() const;
    /** The fields of UplinkCounts, in their order. */
    PyObject *uplinkCounters() const;

    /** From now on keep both directions of each 20 ms, at most so many; instead of the uplink. */
    void record(unsigned max_ticks);
    /** What was recorded since the last time: (said, heard, spoke, lost). The first two are linear
     *  samples of 320 bytes a tick, `spoke` has a byte a tick (1 where `said` came from the queue),
     *  `lost` counts all ticks that found no place. */
    PyObject *takeTicks();

    /** What both sides of a call are kept for; each has a queue of its own. */
    enum { RECORDING, LISTENING };
    /** From now on keep both sides of the call, at most so many frames of 20 ms until they are
     *  taken: left what its caller sent, right what was sent to them (CallRecorder). */
    void startRecording(int which, unsigned max_frames);
    /** The recording is over; what is left of it can be taken. */
    void endRecording(int which);
    /** Record silence for a while. */
    void silenceRecording(int which, bool silent);
    /** What was recorded since the last time: G.711, left and right by turns. From any thread. */
    PyObject *takeRecording(int which);
    /** (frames, dropped, silenced, samples shifted) of it. */
    PyObject *recordingCounters(int which) const;
    /** From now on keep the header of each RTP packet that comes or is sent, and its payload where it
     *  is wanted; at most so many bytes until they are taken. 0 ends it. */
    void logPackets(unsigned max_bytes, bool payloads);
    /** Those since the last time, and how many found no room: of each, in the machine's byte order,
     *  microseconds (8 bytes, monotonic), SSRC (4), timestamp (4), sequence number (2), payload's
     *  length (2), payload's bytes that follow (2), marker and payload type (1), 1 for sent (1). */
    PyObject *takePackets();
    /** Peaks (0 to 32,767) of what the caller sends and of what is sent to them, just now. */
    PyObject *levels() const;

    /** The media clock's side, for tests: the next frame as linear samples, or None for silence. */
    PyObject *pull();
    /** And a frame of linear samples from the caller; anything that is no whole frame is silence. */
    void push(PyObject *samples);
    /** As an RTP packet that came then (microseconds), its law below 0 where it has no audio. */
    bool receive(long long now, unsigned ssrc, unsigned seq, unsigned timestamp, PyObject *audio,
                 int law);
    /** As a beat of the media clock at that time. */
    void tick(long long now);
    /** As linear samples that the stream sends in the beat that was last. */
    void sent(PyObject *samples);
    /** As listening anew at that time. */
    void restart(long long now);

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

/** A file descriptor that becomes readable when a call has caller audio, or playout that began or
 *  ended. One for the process and all its calls; -1 when there is none to be had. */
int nativeReadyFd();
/** It was seen: readable again only after nativeTakeReady. */
void nativeReadyNoted();
/** The ids of all calls that have something; each is named again after its next take. */
PyObject *nativeTakeReady();
/** How long (s) the list that nativeTakeReady returned last had waited for it. */
double nativeWaited();
/** ([beats by how late they were, the last being those above all bounds], sum of it in s). */
PyObject *nativeLateBeats();
/** How many beats the media clock has made while ports were in use. */
unsigned nativeBeats();

} // namespace pj
