// SPDX-License-Identifier: GPL-2.0-or-later
#include "call_audio.hpp"

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

// A ring of bytes that grows to its bound and no further.
class Ring {
public:
    explicit Ring(size_t bound) : bound_(bound) {}
    size_t size() const { return size_; }

    bool push(const uint8_t *bytes, size_t count)
    {
        if (size_ + count > bound_)
            return false;
        if (count == 0)
            return true; // the store may be empty, too: nothing divides by its size
        if (size_ + count > store_.size())
            grow(size_ + count);
        size_t tail = (head_ + size_) % store_.size();
        size_t first = std::min(count, store_.size() - tail);
        memcpy(&store_[tail], bytes, first);
        memcpy(&store_[0], bytes + first, count - first);
        size_ += count;
        return true;
    }

    void pop(uint8_t *bytes, size_t count)
    {
        if (count == 0)
            return;
        size_t first = std::min(count, store_.size() - head_);
        memcpy(bytes, &store_[head_], first);
        memcpy(bytes + first, &store_[0], count - first);
        head_ = (head_ + count) % store_.size();
        size_ -= count;
    }

    void clear()
    {
        head_ = size_ = 0;
        if (store_.size() > 64 * 1024)
            std::vector<uint8_t>().swap(store_); // a long answer is over: give its memory back
    }

private:
    void grow(size_t wanted)
    {
        size_t capacity = std::max<size_t>(store_.size() * 2, 4096);
        while (capacity < wanted)
            capacity *= 2;
        std::vector<uint8_t> larger(std::min(std::max(capacity, wanted), bound_));
        size_t kept = size_;
        if (kept)
            pop(larger.data(), kept);
        store_.swap(larger);
        head_ = 0;
        size_ = kept;
    }

    std::vector<uint8_t> store_;
    size_t bound_;
    size_t head_ = 0;
    size_t size_ = 0;
};

double monotonic()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
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

// Announces beats. All but `clear` runs on the clock thread, which visits the ports in a fixed
// order: the one that came last in the previous beat is taken for the last of this one, so that
// one wake-up finds the audio of all calls.
struct Beat {
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    uint64_t time = 0;
    std::atomic<const void *> last{nullptr};
    const void *running = nullptr;
    bool announced = true;

    void frame(const void *port, uint64_t at)
    {
        if (at != time) {
            if (!announced)
                announce();
            last.store(running, std::memory_order_relaxed);
            time = at;
            announced = false;
        }
        running = port;
        const void *expected = last.load(std::memory_order_relaxed);
        if (!announced && (expected == nullptr || expected == port))
            announce();
    }

    void forget(const void *port)
    {
        const void *expected = port;
        last.compare_exchange_strong(expected, nullptr);
    }

    void announce()
    {
        uint64_t one = 1;
        announced = true;
        if (write(fd, &one, sizeof one) < 0) {
            // Already readable: the loop has not looked yet, and will find this beat's audio too.
        }
    }
};

Beat &beat()
{
    static Beat the_beat;
    return the_beat;
}

} // namespace

struct NativeCallAudio::State {
    State(int law_, unsigned max_playout, unsigned max_uplink)
        : law(law_), playout((size_t)max_playout * kFrame), uplink((size_t)max_uplink * kFrame)
    {
    }

    // Held for a few hundred nanoseconds by either side; the clock thread never holds the GIL, so
    // neither waits for the interpreter.
    mutable std::mutex mutex;
    int law;
    Ring playout, uplink;
    bool paused = false, expecting = false, playing = false;
    unsigned played = 0, underruns = 0, underrun_frames = 0, refused = 0;
    unsigned uplink_frames = 0, uplink_dropped = 0;
    struct { bool playing; double at; } transitions[kTransitions];
    unsigned first_transition = 0, transition_count = 0;
    std::unique_ptr<Recording> recording;

    void mark(bool now_playing)
    {
        playing = now_playing;
        if (transition_count == kTransitions) {
            first_transition = (first_transition + 1) % kTransitions;
            --transition_count;
        }
        auto &entry = transitions[(first_transition + transition_count++) % kTransitions];
        entry.playing = now_playing;
        entry.at = monotonic();
    }

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
        if (paused)
            return false;
        if (playout.size() < kFrame) {
            if (playing) {
                mark(false);
                underruns += expecting;
            }
            underrun_frames += expecting;
            return false;
        }
        uint8_t coded[kFrame];
        playout.pop(coded, kFrame);
        ++played;
        if (!playing)
            mark(true);
        const int16_t *linear = tables().linear[law];
        for (unsigned i = 0; i < kFrame; ++i)
            samples[i] = linear[coded[i]];
        return true;
    }

    // A frame of the caller, or nullptr where none came: the session's clock goes on all the same.
    void push(const int16_t *samples)
    {
        static const int16_t silence[kFrame] = {0};
        uint8_t frame[kFrame];
        if (!samples)
            samples = silence;
        std::lock_guard<std::mutex> hold(mutex);
        ++uplink_frames;
        if (recording) {
            recording->end(samples);
            return;
        }
        const uint8_t *code = tables().coded[law];
        for (unsigned i = 0; i < kFrame; ++i)
            frame[i] = code[(uint16_t)samples[i]];
        if (!uplink.push(frame, kFrame)) {
            // A loop that hung shall hear what is said now, not what was said first.
            uint8_t oldest[kFrame];
            uplink.pop(oldest, kFrame);
            uplink.push(frame, kFrame);
            ++uplink_dropped;
        }
    }
};

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
    unsigned frames = (unsigned)(view.len / kFrame), refused = 0;
    {
        std::lock_guard<std::mutex> hold(state_->mutex);
        if (!state_->playout.push((const uint8_t *)view.buf, (size_t)frames * kFrame))
            state_->refused += refused = frames;
    }
    PyBuffer_Release(&view);
    return refused;
}

unsigned NativeCallAudio::flush()
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    unsigned frames = (unsigned)(state_->playout.size() / kFrame);
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

void NativeCallAudio::expect(bool expecting)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->expecting = expecting;
}

void NativeCallAudio::useLaw(int law)
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->law = law;
}

PyObject *NativeCallAudio::drain()
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    size_t size = state_->uplink.size();
    PyObject *bytes = PyBytes_FromStringAndSize(nullptr, (Py_ssize_t)size);
    if (bytes && size)
        state_->uplink.pop((uint8_t *)PyBytes_AS_STRING(bytes), size);
    return bytes;
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
    return (unsigned)(state_->playout.size() / kFrame);
}

PyObject *NativeCallAudio::counters() const
{
    std::lock_guard<std::mutex> hold(state_->mutex);
    const State &s = *state_;
    return Py_BuildValue("(IIIIII)", s.played, s.underruns, s.underrun_frames, s.refused,
                         s.uplink_frames, s.uplink_dropped);
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
    state_->push(samples);
    Py_END_ALLOW_THREADS
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
        audio->push(sound ? (const int16_t *)frame->buf : nullptr);
        beat().frame(port, frame->timestamp.u64);
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
    {
        std::lock_guard<std::mutex> hold(port_->mutex);
        served.swap(port_->audio);
    }
    beat().forget(&port_->base);
}

int nativeBeatFd() { return beat().fd; }

void nativeBeatClear()
{
    uint64_t count;
    if (read(beat().fd, &count, sizeof count) < 0) {
        // Not armed: somebody took it already.
    }
}

} // namespace pj
