// SPDX-License-Identifier: GPL-2.0-or-later
#include "call_audio.hpp"

#include "call_recorder.hpp"
#include "ring.hpp"
#include "sequencer.hpp"
#include "wide_codecs.hpp"

#define THIS_FILE "call_audio.cpp"

#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

namespace pj {
namespace {

constexpr unsigned kFrame = 160;           // G.711 bytes and samples in 20 ms
constexpr unsigned kTransitions = 64;      // starts and stops between two looks of the event loop
constexpr int64_t kSampleTime = 125;       // microseconds
constexpr uint64_t kPause = 8000;          // samples: a clock without ports in use does not beat
constexpr int64_t kLevelHolds = 200000;    // microseconds that a level is told of without new frames
constexpr unsigned kLateBounds = 10;
// Microseconds by which a beat comes late; gateway.measures.LAG has the same in seconds.
constexpr int64_t kLate[kLateBounds] = {1000,  2000,   5000,   10000,  20000,
                                        40000, 100000, 250000, 500000, 1000000};

struct Tables {
    int16_t linear[2][256];
    uint8_t coded[2][65536];
    Tables()
    {
        for (int code = 0; code < 256; ++code) {
            linear[0][code] = (int16_t)pjmedia_ulaw2linear((uint8_t)code);
            linear[1][code] = (int16_t)pjmedia_alaw2linear((uint8_t)code);
        }
        for (int sample = -32768; sample < 32768; ++sample) {
            coded[0][sample & 0xffff] = pjmedia_linear2ulaw(sample);
            coded[1][sample & 0xffff] = pjmedia_linear2alaw(sample);
        }
    }
};

const Tables &tables()
{
    static const Tables made;
    return made;
}

// Both directions of a call, tick by tick: the clock first takes a frame, then brings one.
struct Recording {
    unsigned bound = 0, lost = 0;
    bool taken = false, spoke = false;
    int16_t said[kFrame] = {0};
    std::vector<int16_t> said_samples, heard_samples;
    std::vector<uint8_t> spoke_flags;

    void take(const int16_t *samples)
    {
        static const int16_t silence[kFrame] = {0};
        if (taken)
            end(silence);
        taken = true;
        spoke = samples != nullptr;
        memcpy(said, samples ? samples : silence, sizeof said);
    }

    void end(const int16_t *heard)
    {
        static const int16_t silence[kFrame] = {0};
        const int16_t *first = taken ? said : silence;
        if (spoke_flags.size() >= bound) {
            ++lost;
        } else {
            said_samples.insert(said_samples.end(), first, first + kFrame);
            heard_samples.insert(heard_samples.end(), heard, heard + kFrame);
            spoke_flags.push_back(taken && spoke);
        }
        taken = spoke = false;
    }
};

int64_t now_us()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

// Calls that have something for the event loop. One file descriptor for all of them: it is written
// to when the first call is added, and not again before the list has been taken.
struct Ready {
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    std::mutex mutex;
    std::vector<unsigned> calls;
    bool announced = false;
    int64_t since = 0; // when it was announced
    double waited = 0; // how long (s) the list that was taken last had waited
    std::atomic<unsigned> next{1};
    std::atomic<unsigned> beats{0};
    std::atomic<uint64_t> beat_time{0};
    std::atomic<unsigned> late[kLateBounds + 1] = {};
    std::atomic<uint64_t> late_sum{0}; // microseconds
    int64_t last_beat = 0;

    void add(unsigned call)
    {
        std::lock_guard<std::mutex> hold(mutex);
        calls.push_back(call);
        if (announced)
            return;
        announced = true;
        since = now_us();
        uint64_t one = 1;
        if (write(fd, &one, sizeof one) < 0) {
            // Already readable: the loop has not looked yet.
        }
    }

    // Runs on the clock thread for each port; a beat has one timestamp.
    void beat(uint64_t at)
    {
        uint64_t before = beat_time.exchange(at, std::memory_order_relaxed);
        if (before == at)
            return;
        beats.fetch_add(1, std::memory_order_relaxed);
        int64_t now = now_us(), due = last_beat + (int64_t)(at - before) * kSampleTime;
        if (last_beat && at > before && at - before < kPause) {
            int64_t behind = std::max<int64_t>(0, now - due);
            unsigned bound = 0;
            while (bound < kLateBounds && behind > kLate[bound])
                ++bound;
            late[bound].fetch_add(1, std::memory_order_relaxed);
            late_sum.fetch_add((uint64_t)behind, std::memory_order_relaxed);
        }
        last_beat = now;
    }
};

Ready &ready()
{
    static Ready the_list;
    return the_list;
}

constexpr uint8_t kSilence[4] = {0xff, 0xd5, 0, 0};

bool is_wide(int law) { return law >= kG722; }

// Bytes that a queue has for 125 us.
size_t unit_of(int law) { return is_wide(law) ? 6 : 1; }

const uint8_t *codes_of(int law) { return is_wide(law) ? nullptr : tables().coded[law]; }

// Bytes of one law in the other, through linear samples.
const uint8_t *translation(int from)
{
    static const struct Both {
        uint8_t to[2][256];
        Both()
        {
            for (int from = 0; from < 2; ++from)
                for (int code = 0; code < 256; ++code)
                    to[from][code] =
                        tables().coded[1 - from][(uint16_t)tables().linear[from][code]];
        }
    } both;
    return both.to[from];
}

} // namespace

// Headers of the RTP packets of a call, in either direction, and their payloads where they are wanted.
struct PacketLog {
    PacketLog(size_t bound, bool payloads_) : ring(bound), payloads(payloads_) {}

    Ring ring;
    const bool payloads;
    unsigned lost = 0;

    void add(int64_t at, bool sent, const pjmedia_rtp_hdr *header, const void *payload, size_t size)
    {
        uint8_t line[kHeader + kMostPayload];
        const uint64_t when = (uint64_t)at;
        const uint32_t ssrc = pj_ntohl(header->ssrc), time = pj_ntohl(header->ts);
        const uint16_t seq = pj_ntohs(header->seq), length = (uint16_t)std::min<size_t>(size, 0xffff);
        const size_t kept = payloads ? std::min<size_t>(size, kMostPayload) : 0;
        const uint16_t kept_length = (uint16_t)kept;
        memcpy(line, &when, 8);
        memcpy(line + 8, &ssrc, 4);
        memcpy(line + 12, &time, 4);
        memcpy(line + 16, &seq, 2);
        memcpy(line + 18, &length, 2);
        memcpy(line + 20, &kept_length, 2);
        line[22] = (uint8_t)(header->pt | header->m << 7);
        line[23] = sent;
        if (kept)
            memcpy(line + kHeader, payload, kept);
        lost += !ring.push(line, kHeader + kept);
    }

    static constexpr size_t kHeader = 24, kMostPayload = 1500;
};

// How loud one side is: the peak of its latest frames, fading by a tenth with each, until none come.
struct Level {
    std::atomic<int> peak{0};
    std::atomic<int64_t> at{0};

    void add(int64_t now, int loudest)
    {
        int faded = peak.load(std::memory_order_relaxed) * 9 / 10;
        peak.store(std::max(loudest, faded), std::memory_order_relaxed);
        at.store(now, std::memory_order_relaxed);
    }

    int read(int64_t now) const
    {
        return now - at.load(std::memory_order_relaxed) > kLevelHolds
                   ? 0
                   : peak.load(std::memory_order_relaxed);
    }
};

struct NativeCallAudio::State {
    State(int law_, unsigned max_playout, unsigned max_uplink)
        : id(ready().next.fetch_add(1)), law(law_), playout((size_t)max_playout * kFrame * unit_of(law_)),
          uplink((size_t)max_uplink * kFrame * unit_of(law_)), sequencer(uplink, kSilence[law_])
    {
        sequencer.use_form(kSilence[law], unit_of(law));
        sequencer.restart(now_us());
    }

    // Held for a few hundred nanoseconds by either side; the clock thread never holds the GIL, so
    // neither waits for the interpreter.
    mutable std::mutex mutex;
    const unsigned id;
    std::atomic<unsigned> taps{0}; // the stream tapped last is the one that counts
    int law;
    Ring playout, uplink;
    Sequencer sequencer;
    int source = NativeCallAudio::NOBODY;
    bool announced = false; // in the list of calls that have something, or taken from it
    bool paused = false, without_keys = false, expecting = false, playing = false;
    unsigned played = 0, underruns = 0, underrun_frames = 0, refused = 0;
    struct { bool playing; double at; } transitions[kTransitions];
    unsigned first_transition = 0, transition_count = 0;
    std::unique_ptr<Recording> recording;
    std::unique_ptr<CallRecorder> recorders[2]; // RECORDING, LISTENING
    std::atomic<unsigned> recorded{0};          // which of them want more, a bit each
    std::unique_ptr<PacketLog> packets;
    std::atomic<bool> logs_packets{false};
    Level levels[2];                            // of the caller, and of what is sent to them
    int64_t packet_wait = 60000;       // microseconds
    uint64_t bridge_dropped = 0;
    uint64_t beat = 0; // of the clock that a test plays
    std::unique_ptr<PacketDecoder> decoder, level_decoder; // where call or packet are G.722 or Opus
    std::unique_ptr<Resampler> lower, raise;               // 24 kHz to 8 for the bridge, and back
    int16_t wide[3 * kFrame], wide_lowered[kFrame];  // the frame that was taken last from playout
    bool has_wide = false;
    std::atomic<int> opus_type{-1}; // the payload number of Opus, once the call had any
    struct { uint32_t raw = 0, units = 0; } opus_time;  // of the packet that came last
    std::weak_ptr<State> caller; // whose caller hears what the bridge gives this side

    void mark(bool now_playing)
    {
        playing = now_playing;
        if (transition_count == kTransitions) {
            first_transition = (first_transition + 1) % kTransitions;
            --transition_count;
        }
        auto &entry = transitions[(first_transition + transition_count++) % kTransitions];
        entry.playing = now_playing;
        entry.at = 1e-6 * (double)now_us();
        announce();
    }

    void announce()
    {
        if (announced)
            return;
        announced = true;
        ready().add(id);
    }

    // An RTP packet of the caller, in a law or (below 0) without audio; false where the conference
    // bridge shall have it.
    bool receive(int64_t now, UplinkPacket packet, int packet_law)
    {
        packet.sum = sum_of(packet.audio, packet.size);
        if (is_wide(packet_law) || (packet_law >= 0 && is_wide(law)))
            return receive_coded(now, packet, packet_law);
        if (packet_law >= 0) {
            int loudest = 0;
            for (size_t i = 0; i < packet.size; ++i)
                loudest = std::max(loudest, std::abs((int)tables().linear[packet_law][packet.audio[i]]));
            levels[0].add(now, loudest);
        }
        std::lock_guard<std::mutex> hold(mutex);
        for (auto &recorder : recorders)
            if (recorder)
                recorder->receive(now, packet, packet_law);
        if (source != NativeCallAudio::PACKETS)
            return false;
        uint8_t translated[2048];
        if (packet_law < 0) {
            packet.size = 0;
        } else if (packet_law != law) {
            const uint8_t *to = translation(packet_law);
            packet.size = std::min(packet.size, sizeof translated);
            for (size_t i = 0; i < packet.size; ++i)
                translated[i] = to[packet.audio[i]];
            packet.audio = translated;
        }
        size_t waiting = uplink.size();
        sequencer.packet(now, packet);
        if (uplink.size() != waiting)
            announce();
        return true;
    }

    // The same, where the packet has to be decoded, or the call has linear samples.
    bool receive_coded(int64_t now, UplinkPacket packet, int packet_law)
    {
        std::lock_guard<std::mutex> hold(mutex);
        packet.coded = packet.size;
        packet.size = PacketDecoder::length(packet_law, packet.audio, packet.coded);
        if (packet_law == kOpus)
            packet.timestamp = units_at(packet.timestamp);
        for (auto &recorder : recorders)
            if (recorder)
                recorder->receive(now, packet, packet.size ? packet_law : -1);
        if (source != NativeCallAudio::PACKETS) {
            if (!level_decoder)
                level_decoder.reset(new PacketDecoder(tables().coded[0]));
            level_decoder->decode(packet_law, packet.audio, packet.coded, packet.size);
            levels[0].add(now, level_decoder->takePeak());
            return false;
        }
        if (!decoder) {
            decoder.reset(new PacketDecoder(codes_of(law)));
            sequencer.use_decoder(decoder.get());
        }
        packet.law = packet_law;
        size_t waiting = uplink.size();
        sequencer.packet(now, packet);
        levels[0].add(now, decoder->takePeak());
        if (uplink.size() != waiting)
            announce();
        return true;
    }

    // Opus counts 48 samples a millisecond; the rest of a division is kept for the next one.
    uint32_t units_at(uint32_t timestamp)
    {
        int32_t units = (int32_t)(timestamp - opus_time.raw) / 6;
        opus_time.raw += (uint32_t)(6 * units);
        return opus_time.units += (uint32_t)units;
    }

    // Have a frame of the stream sent at 24 kHz where it is ours alone, not mixed or made softer.
    void widen(const int16_t *samples, size_t count)
    {
        if (!has_wide)
            return;
        has_wide = false;
        if (count == kFrame && memcmp(samples, wide_lowered, sizeof wide_lowered) == 0)
            send_wide(samples, wide, 3 * kFrame);
    }

    // Some 20 ms have passed; `samples` is what the bridge has of the caller, if anything.
    void tick(int64_t now, const int16_t *samples, uint64_t timestamp)
    {
        std::lock_guard<std::mutex> hold(mutex);
        for (auto &recorder : recorders)
            if (recorder)
                recorder->beat(now, timestamp);
        if (source == NativeCallAudio::BRIDGE) {
            push(samples);
            return;
        }
        size_t waiting = uplink.size();
        sequencer.tick(now);
        if (uplink.size() != waiting)
            announce();
    }

    // The stream sends this at that time of the media clock.
    void sent(uint64_t timestamp, const int16_t *samples, size_t count)
    {
        int64_t now = now_us();
        int loudest = 0;
        for (size_t i = 0; i < count; ++i)
            loudest = std::max(loudest, std::abs((int)samples[i]));
        levels[1].add(now, loudest);
        if (!recorded.load(std::memory_order_relaxed))
            return;
        std::lock_guard<std::mutex> hold(mutex);
        for (auto &recorder : recorders)
            if (recorder)
                recorder->sent(now, timestamp, samples, count);
    }

    // The header of a packet, as it came or is sent.
    void log_packet(int64_t now, bool sent, const pjmedia_rtp_hdr *header, const void *payload, size_t size)
    {
        if (!logs_packets.load(std::memory_order_relaxed))
            return;
        std::lock_guard<std::mutex> hold(mutex);
        if (packets)
            packets->add(now, sent, header, payload, size);
    }

    void listen(int to)
    {
        std::lock_guard<std::mutex> hold(mutex);
        if (to == source)
            return;
        source = to;
        sequencer.restart(now_us());
    }

    unsigned queued() const { return (unsigned)(playout.size() / (kFrame * unit_of(law))); }

    // The next frame for the caller; false where silence is due.
    bool pull(int16_t *samples)
    {
        std::lock_guard<std::mutex> hold(mutex);
        bool sound = next(samples);
        if (recording)
            recording->take(sound ? samples : nullptr);
        return sound;
    }

    bool next(int16_t *samples)
    {
        has_wide = false;
        if (paused || without_keys)
            return false;
        if (playout.size() < kFrame * unit_of(law)) {
            if (playing) {
                mark(false);
                underruns += expecting;
            }
            underrun_frames += expecting;
            return false;
        }
        ++played;
        if (!playing)
            mark(true);
        if (is_wide(law)) {
            playout.pop((uint8_t *)wide, sizeof wide);
            if (!lower)
                lower.reset(new Resampler(24000, 8000));
            lower->run(wide, 3 * kFrame, samples, kFrame);
            memcpy(wide_lowered, samples, sizeof wide_lowered);
            has_wide = true;
            return true;
        }
        uint8_t coded[kFrame];
        playout.pop(coded, kFrame);
        const int16_t *linear = tables().linear[law];
        for (unsigned i = 0; i < kFrame; ++i)
            samples[i] = linear[coded[i]];
        return true;
    }

private:
    // A frame of the bridge, or nullptr where none came: the session's clock goes on all the same.
    void push(const int16_t *samples)
    {
        static const int16_t silence[kFrame] = {0};
        uint8_t frame[kFrame];
        if (!samples)
            samples = silence;
        announce();
        if (recording) {
            recording->end(samples);
            return;
        }
        // A loop that hung shall hear what is said now, not what was said first.
        if (is_wide(law)) {
            int16_t raised[3 * kFrame];
            if (!raise)
                raise.reset(new Resampler(8000, 24000));
            raise->run(samples, kFrame, raised, 3 * kFrame);
            bridge_dropped += uplink.push_newest((const uint8_t *)raised, sizeof raised) / unit_of(law);
            return;
        }
        const uint8_t *code = tables().coded[law];
        for (unsigned i = 0; i < kFrame; ++i)
            frame[i] = code[(uint16_t)samples[i]];
        bridge_dropped += uplink.push_newest(frame, kFrame);
    }
};

namespace {

// Where a stream's packets go. Belongs to the stream, which says when it is not needed any more.
struct Tap {
    std::shared_ptr<NativeCallAudio::State> audio;
    unsigned number;
    int payload_type, law, event_type;
};

pj_bool_t on_packet(void *data, const pjmedia_rtp_hdr *header, const void *payload, unsigned size)
{
    Tap *tap = (Tap *)data;
    if (!header) {
        delete tap;
        return PJ_FALSE;
    }
    if (tap->number != tap->audio->taps.load(std::memory_order_relaxed))
        return PJ_FALSE; // the call has another stream now
    const int64_t now = now_us();
    tap->audio->log_packet(now, false, header, payload, size);
    // The other law's own number is understood, too, unless events have it. RTCP that went astray has
    // no place among the packets (RFC 5761 section 4).
    int type = header->pt, law = -1;
    if (type >= 64 && type < 96 && type != tap->event_type)
        return PJ_FALSE;
    if (type == tap->payload_type)
        law = tap->law;
    else if ((type == PJMEDIA_RTP_PT_PCMU || type == PJMEDIA_RTP_PT_PCMA) && type != tap->event_type)
        law = type == PJMEDIA_RTP_PT_PCMA;
    else if (type == PJMEDIA_RTP_PT_G722 && tap->audio->law == kG722 && type != tap->event_type)
        law = kG722; // on its way while the call changed to G.711
    else if (type == tap->audio->opus_type && type != tap->event_type)
        law = kOpus; // likewise
    UplinkPacket packet{pj_ntohl(header->ssrc), pj_ntohs(header->seq), pj_ntohl(header->ts),
                        (const uint8_t *)payload, size};
    return tap->audio->receive(now, packet, law);
}

void on_sent(void *data, const pjmedia_frame *frame, const void *packet, unsigned size)
{
    Tap *tap = (Tap *)data;
    if (!frame && !packet)
        delete tap;
    else if (!frame && size >= sizeof(pjmedia_rtp_hdr) &&
             tap->number == tap->audio->taps.load(std::memory_order_relaxed))
        tap->audio->log_packet(now_us(), true, (const pjmedia_rtp_hdr *)packet,
                               (const uint8_t *)packet + sizeof(pjmedia_rtp_hdr),
                               size - sizeof(pjmedia_rtp_hdr));
    else if (frame && frame->type == PJMEDIA_FRAME_TYPE_AUDIO && frame->buf &&
             tap->number == tap->audio->taps.load(std::memory_order_relaxed)) {
        tap->audio->sent(frame->timestamp.u64, (const int16_t *)frame->buf, frame->size / 2);
        if (is_wide(tap->law))
            tap->audio->widen((const int16_t *)frame->buf, frame->size / 2);
    }
}

CallRecorder::Law law_of(int law)
{
    law = is_wide(law) ? 0 : law;
    return {law, kSilence[law], tables().linear[law], tables().coded[law], translation(1 - law)};
}

} // namespace

NativeCallAudio::NativeCallAudio(int law, unsigned max_playout, unsigned max_uplink)
    : state_(std::make_shared<State>(law, max_playout, max_uplink))
{
    tables();
}

NativeCallAudio::~NativeCallAudio() {}

unsigned NativeCallAudio::put(PyObject *audio)
{
    Py_buffer view;
    if (PyObject_GetBuffer(audio, &view, PyBUF_SIMPLE) != 0) {
        PyErr_Clear();
        return 0;
    }
    unsigned frames, refused = 0;
    {
        std::lock_guard<std::mutex> hold(state_->mutex);
        const size_t size = kFrame * unit_of(state_->law);
        frames = (unsigned)((size_t)view.len / size);
        if (!state_->playout.push((const uint8_t *)view.buf, frames * size))
            state_->refused += refused = frames;
    }
    PyBuffer_Release(&view);
    return refused;
}

unsigned NativeCallAudio::flush()
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    unsigned frames = state_->queued();
    state_->playout.clear();
    state_->expecting = false;
    // Whoever flushes knows that playing has stopped; what is put next has a start of its own.
    state_->playing = false;
    return frames;
}

void NativeCallAudio::pause(bool paused)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->paused = paused;
}

void NativeCallAudio::awaitKeys(bool waiting)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->without_keys = waiting;
}

void NativeCallAudio::expect(bool expecting)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->expecting = expecting;
}

void NativeCallAudio::useLaw(int law)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    if (unit_of(law) != unit_of(state_->law)) {
        state_->playout.clear();
        state_->uplink.clear();
    }
    state_->sequencer.use_form(kSilence[law], unit_of(law));
    state_->sequencer.use_decoder(nullptr);
    state_->decoder.reset();
    state_->law = law;
}

unsigned NativeCallAudio::id() const { return state_->id; }

void NativeCallAudio::tap(unsigned long stream, unsigned packet_wait)
{
    pjmedia_stream *tapped = reinterpret_cast<pjmedia_stream *>(stream);
    pjmedia_stream_info info;
    if (pjmedia_stream_get_info(tapped, &info) != PJ_SUCCESS)
        return;
    {
        std::lock_guard<std::mutex> hold(state_->mutex);
        state_->packet_wait = (int64_t)packet_wait * 1000;
        state_->sequencer.use_wait(state_->packet_wait);
    }
    int law = pj_stricmp2(&info.fmt.encoding_name, "PCMA") == 0;
    if (pj_stricmp2(&info.fmt.encoding_name, "G722") == 0)
        law = kG722;
    if (pj_stricmp2(&info.fmt.encoding_name, "opus") == 0) {
        law = kOpus;
        state_->opus_type = (int)info.rx_pt;
    }
    const Tap tap{state_, ++state_->taps, (int)info.rx_pt, law, (int)info.rx_event_pt};
    pjmedia_stream_set_rx_tap(tapped, &on_packet, new Tap(tap));
    pjmedia_stream_set_tx_tap(tapped, &on_sent, new Tap(tap));
}

void NativeCallAudio::listen(int source) { state_->listen(source); }

void NativeCallAudio::bringTo(NativeCallAudio &call)
{
    state_->caller = call.state_;
}

PyObject *NativeCallAudio::take()
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->announced = false;
    size_t size = state_->uplink.size();
    PyObject *bytes = PyBytes_FromStringAndSize(nullptr, (Py_ssize_t)size);
    if (bytes && size)
        state_->uplink.pop((uint8_t *)PyBytes_AS_STRING(bytes), size);
    // "N" takes the new reference over, and a NULL is the exception that it stands for.
    return Py_BuildValue("(NO)", bytes, state_->transition_count ? Py_True : Py_False);
}

PyObject *NativeCallAudio::transition()
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    if (!state_->transition_count)
        Py_RETURN_NONE;
    auto &entry = state_->transitions[state_->first_transition];
    state_->first_transition = (state_->first_transition + 1) % kTransitions;
    --state_->transition_count;
    return Py_BuildValue("(Od)", entry.playing ? Py_True : Py_False, entry.at);
}

unsigned NativeCallAudio::queued() const
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    return state_->queued();
}

PyObject *NativeCallAudio::counters() const
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    const State &s = *state_;
    return Py_BuildValue("(IIII)", s.played, s.underruns, s.underrun_frames, s.refused);
}

PyObject *NativeCallAudio::uplinkCounters() const
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    const UplinkCounts &c = state_->sequencer.counts();
    return Py_BuildValue("(IIIIIIIIKKKK)", c.packets, c.lost, c.late, c.reordered, c.duplicates,
                         c.foreign, c.source_changes, c.timestamp_jumps,
                         (unsigned long long)c.filled, (unsigned long long)c.standing_in,
                         (unsigned long long)c.overtaken,
                         (unsigned long long)(c.dropped + state_->bridge_dropped));
}

void NativeCallAudio::record(unsigned max_ticks)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->recording.reset(new Recording);
    state_->recording->bound = max_ticks;
}

template <class T> static PyObject *bytes_of(const std::vector<T> &values)
{
    return PyBytes_FromStringAndSize((const char *)values.data(),
                                     (Py_ssize_t)(values.size() * sizeof(T)));
}

PyObject *NativeCallAudio::takeTicks()
{
    std::vector<int16_t> said, heard;
    std::vector<uint8_t> spoke;
    unsigned lost = 0;
    {
        std::lock_guard<std::mutex> hold(state_->mutex);
        state_->announced = false;
        if (state_->recording) {
            said.swap(state_->recording->said_samples);
            heard.swap(state_->recording->heard_samples);
            spoke.swap(state_->recording->spoke_flags);
            lost = state_->recording->lost;
        }
    }
    // "N" takes the new references over; a NULL among them is the exception that it stands for.
    return Py_BuildValue("(NNNI)", bytes_of(said), bytes_of(heard), bytes_of(spoke), lost);
}

void NativeCallAudio::startRecording(int which, unsigned max_frames)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    unsigned delay = (unsigned)(state_->packet_wait / 20000) + 4;
    auto &recorder = state_->recorders[which & 1];
    recorder.reset(
        new CallRecorder(law_of(state_->law), delay, max_frames, state_->packet_wait, now_us()));
    state_->recorded |= 1u << (which & 1);
}

void NativeCallAudio::endRecording(int which)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->recorded &= ~(1u << (which & 1));
    if (auto &recorder = state_->recorders[which & 1])
        recorder->finish();
}

void NativeCallAudio::silenceRecording(int which, bool silent)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    if (auto &recorder = state_->recorders[which & 1])
        recorder->silence(silent);
}

PyObject *NativeCallAudio::takeRecording(int which)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    CallRecorder *recorder = state_->recorders[which & 1].get();
    size_t size = recorder ? recorder->waiting() : 0;
    PyObject *bytes = PyBytes_FromStringAndSize(nullptr, (Py_ssize_t)size);
    if (bytes && size)
        recorder->take((uint8_t *)PyBytes_AS_STRING(bytes), size);
    return bytes;
}

PyObject *NativeCallAudio::recordingCounters(int which) const
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    CallRecorder::Counts c;
    if (auto &recorder = state_->recorders[which & 1])
        c = recorder->counts();
    return Py_BuildValue("(IIIK)", c.frames, c.dropped, c.silenced, (unsigned long long)c.shifted);
}

void NativeCallAudio::logPackets(unsigned max_bytes, bool payloads)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->packets.reset(max_bytes ? new PacketLog(max_bytes, payloads) : nullptr);
    state_->logs_packets = max_bytes != 0;
}

PyObject *NativeCallAudio::takePackets()
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    PacketLog *log = state_->packets.get();
    size_t size = log ? log->ring.size() : 0;
    PyObject *bytes = PyBytes_FromStringAndSize(nullptr, (Py_ssize_t)size);
    if (bytes && size)
        log->ring.pop((uint8_t *)PyBytes_AS_STRING(bytes), size);
    unsigned lost = log ? log->lost : 0;
    if (log)
        log->lost = 0;
    // "N" takes the new reference over, and a NULL is the exception that it stands for.
    return Py_BuildValue("(NI)", bytes, lost);
}

PyObject *NativeCallAudio::levels() const
{
    int64_t now = now_us();
    return Py_BuildValue("(ii)", state_->levels[0].read(now), state_->levels[1].read(now));
}

PyObject *NativeCallAudio::pull()
{
    int16_t samples[kFrame];
    bool sound;
    // As the clock does: without the interpreter's lock, so that a test's second thread can meet it.
    Py_BEGIN_ALLOW_THREADS
    sound = state_->pull(samples);
    Py_END_ALLOW_THREADS
    if (!sound)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)samples, sizeof samples);
}

void NativeCallAudio::push(PyObject *audio)
{
    int16_t samples[kFrame] = {0};
    Py_buffer view;
    if (PyObject_GetBuffer(audio, &view, PyBUF_SIMPLE) != 0) {
        PyErr_Clear();
    } else {
        if (view.len == (Py_ssize_t)sizeof samples)
            memcpy(samples, view.buf, sizeof samples);
        PyBuffer_Release(&view);
    }
    Py_BEGIN_ALLOW_THREADS
    state_->tick(now_us(), samples, state_->beat += kFrame);
    Py_END_ALLOW_THREADS
}

bool NativeCallAudio::receive(long long now, unsigned ssrc, unsigned seq, unsigned timestamp,
                              PyObject *audio, int law)
{
    Py_buffer view;
    if (PyObject_GetBuffer(audio, &view, PyBUF_SIMPLE) != 0) {
        PyErr_Clear();
        return false;
    }
    UplinkPacket packet{ssrc, (uint16_t)seq, timestamp, (const uint8_t *)view.buf,
                        (size_t)view.len};
    bool taken = state_->receive(now, packet, law);
    PyBuffer_Release(&view);
    return taken;
}

void NativeCallAudio::tick(long long now)
{
    state_->tick(now, nullptr, state_->beat += kFrame);
}

void NativeCallAudio::sent(PyObject *samples)
{
    Py_buffer view;
    if (PyObject_GetBuffer(samples, &view, PyBUF_SIMPLE) != 0) {
        PyErr_Clear();
        return;
    }
    state_->sent(state_->beat, (const int16_t *)view.buf, (size_t)view.len / 2);
    PyBuffer_Release(&view);
}

void NativeCallAudio::restart(long long now)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->sequencer.restart(now);
}

struct NativeAudioPort::Port {
    pjmedia_port base;
    pj_pool_t *pool;
    std::mutex mutex; // guards `audio` against attach and detach, for the time of a copy
    std::shared_ptr<NativeCallAudio::State> audio;

    static Port *of(pjmedia_port *port) { return (Port *)port->port_data.pdata; }

    std::shared_ptr<NativeCallAudio::State> serving()
    {
        std::lock_guard<std::mutex> hold(mutex);
        return audio;
    }

    static pj_status_t get(pjmedia_port *port, pjmedia_frame *frame)
    {
        auto audio = of(port)->serving();
        if (!audio) {
            frame->type = PJMEDIA_FRAME_TYPE_NONE;
            frame->size = 0;
            return PJ_SUCCESS;
        }
        if (!audio->pull((int16_t *)frame->buf))
            memset(frame->buf, 0, kFrame * 2);
        frame->type = PJMEDIA_FRAME_TYPE_AUDIO;
        frame->size = kFrame * 2;
        return PJ_SUCCESS;
    }

    static pj_status_t put(pjmedia_port *port, pjmedia_frame *frame)
    {
        auto audio = of(port)->serving();
        if (!audio)
            return PJ_SUCCESS;
        bool sound = frame->type == PJMEDIA_FRAME_TYPE_AUDIO && frame->size == kFrame * 2;
        const int16_t *samples = sound ? (const int16_t *)frame->buf : nullptr;
        audio->tick(now_us(), samples, frame->timestamp.u64);
        if (auto caller = audio->caller.lock(); caller && samples)
            caller->sent(frame->timestamp.u64, samples, kFrame);
        ready().beat(frame->timestamp.u64);
        return PJ_SUCCESS;
    }

    // Runs when the bridge and everybody else has let go.
    static pj_status_t destroyed(pjmedia_port *port)
    {
        Port *self = of(port);
        pj_pool_t *pool = self->pool;
        self->~Port();
        pj_pool_release(pool);
        return PJ_SUCCESS;
    }
};

NativeAudioPort::NativeAudioPort() : port_(nullptr) {}

NativeAudioPort::~NativeAudioPort()
{
    if (!port_)
        return;
    detach();
    unregisterMediaPort();
    pjmedia_port_destroy(&port_->base);
}

void NativeAudioPort::createPort(const std::string &name) PJSUA2_THROW(Error)
{
    if (port_)
        PJSUA2_RAISE_ERROR(PJ_EEXISTS);
    pj_pool_t *pool = pjsua_pool_create("native%p", 1000, 512);
    if (!pool)
        PJSUA2_RAISE_ERROR(PJ_ENOMEM);
    Port *port = new (pj_pool_zalloc(pool, sizeof(Port))) Port();
    port->pool = pool;
    pj_str_t label;
    pj_strdup2_with_null(pool, &label, name.c_str());
    pjmedia_port_info_init(&port->base.info, &label, PJMEDIA_SIG_CLASS_APP('G', 'W', 'P'), 8000, 1,
                           16, kFrame);
    port->base.port_data.pdata = port;
    port->base.get_frame = &Port::get;
    port->base.put_frame = &Port::put;
    port->base.on_destroy = &Port::destroyed;
    pj_status_t status = pjmedia_port_init_grp_lock(&port->base, pool, nullptr);
    if (status != PJ_SUCCESS) {
        pj_pool_release(pool);
        PJSUA2_RAISE_ERROR(status);
    }
    registerMediaPort2((MediaPort)&port->base, pool);
    port_ = port;
}

void NativeAudioPort::attach(NativeCallAudio &audio)
{
    std::lock_guard<std::mutex> hold(port_->mutex);
    port_->audio = audio.state_;
}

void NativeAudioPort::detach()
{
    std::shared_ptr<NativeCallAudio::State> served;
    std::lock_guard<std::mutex> hold(port_->mutex);
    served.swap(port_->audio);
}

int nativeReadyFd() { return ready().fd; }

void nativeReadyNoted()
{
    uint64_t count;
    if (read(ready().fd, &count, sizeof count) < 0) {
        // Somebody took it already.
    }
}

PyObject *nativeTakeReady()
{
    std::vector<unsigned> calls;
    {
        std::lock_guard<std::mutex> hold(ready().mutex);
        calls.swap(ready().calls);
        ready().announced = false;
        ready().waited = 1e-6 * (double)(now_us() - ready().since);
    }
    PyObject *list = PyList_New((Py_ssize_t)calls.size());
    for (size_t i = 0; list && i < calls.size(); ++i)
        PyList_SET_ITEM(list, (Py_ssize_t)i, PyLong_FromUnsignedLong(calls[i]));
    return list;
}

double nativeWaited() { return ready().waited; }

PyObject *nativeLateBeats()
{
    Ready &r = ready();
    PyObject *list = PyList_New(kLateBounds + 1);
    for (unsigned i = 0; list && i <= kLateBounds; ++i)
        PyList_SET_ITEM(list, i, PyLong_FromUnsignedLong(r.late[i].load()));
    return Py_BuildValue("(Nd)", list, 1e-6 * (double)r.late_sum.load());
}

unsigned nativeBeats() { return ready().beats.load(std::memory_order_relaxed); }

} // namespace pj
