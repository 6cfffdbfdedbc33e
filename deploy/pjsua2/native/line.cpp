// SPDX-License-Identifier: GPL-2.0-or-later
#include "line.hpp"

#include <pjmedia/stream.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

extern "C" {
#include <pjlib.h>
}

namespace pj {

using Clock = std::chrono::steady_clock;

struct NativeLine::State {
    unsigned loss_percent = 0, jitter_ms = 0;
    std::minstd_rand random;  // of the same seed with each call, so that runs can be compared
};

namespace {

struct Packet {
    Clock::time_point due;
    std::vector<char> bytes;
};

// A transport whose functions are ours, until it is destroyed.
struct Hook {
    pjmedia_transport_op op, *original;
    std::shared_ptr<NativeLine::State> line;
    std::deque<Packet> waiting;
};

// Of the process, and never destroyed: the thread that sends uses them to the end.
std::mutex &mutex_ = *new std::mutex;
std::condition_variable &changed = *new std::condition_variable;
std::map<pjmedia_transport *, std::unique_ptr<Hook>> &hooks =
    *new std::map<pjmedia_transport *, std::unique_ptr<Hook>>;
bool sending;

// Sends what was kept back. It has the mutex while it does, so that no transport is destroyed then;
// nothing that has pjmedia's locks waits for the mutex.
void send_late()
{
    static pj_thread_desc description;
    pj_thread_t *thread;
    if (!pj_thread_is_registered())
        pj_thread_register("line", description, &thread);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        auto now = Clock::now();
        auto next = Clock::time_point::max();
        for (auto &one : hooks) {
            auto &waiting = one.second->waiting;
            for (; !waiting.empty() && waiting.front().due <= now; waiting.pop_front()) {
                const std::vector<char> &bytes = waiting.front().bytes;
                one.second->original->send_rtp(one.first, bytes.data(), bytes.size());
            }
            if (!waiting.empty())
                next = std::min(next, waiting.front().due);
        }
        if (next == Clock::time_point::max())
            changed.wait(lock);
        else
            changed.wait_until(lock, next);
    }
}

pj_status_t send_rtp(pjmedia_transport *transport, const void *packet, pj_size_t size)
{
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = hooks.find(transport);
    if (found == hooks.end())
        return PJ_EINVALIDOP;
    Hook &hook = *found->second;
    NativeLine::State &line = *hook.line;
    if (line.loss_percent && line.random() % 100 < line.loss_percent)
        return PJ_SUCCESS;
    if (!line.jitter_ms && hook.waiting.empty())
        return hook.original->send_rtp(transport, packet, size);
    auto due = Clock::now();
    if (line.jitter_ms)
        due += std::chrono::microseconds(line.random() % (line.jitter_ms * 1000));
    if (!hook.waiting.empty())
        due = std::max(due, hook.waiting.back().due);
    const char *bytes = static_cast<const char *>(packet);
    hook.waiting.push_back({due, std::vector<char>(bytes, bytes + size)});
    if (!sending) {
        sending = true;
        std::thread(send_late).detach();
    }
    changed.notify_one();
    return PJ_SUCCESS;
}

pj_status_t destroy(pjmedia_transport *transport)
{
    std::unique_ptr<Hook> hook;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = hooks.find(transport);
        if (found == hooks.end())
            return PJ_EINVALIDOP;
        hook = std::move(found->second);
        hooks.erase(found);
        transport->op = hook->original;
    }
    return pjmedia_transport_close(transport);
}

// pjmedia loses one percent more than it is told, and none for 0.
void lose_received(pjmedia_transport *transport, unsigned percent)
{
    pjmedia_transport_simulate_lost(transport, PJMEDIA_DIR_DECODING, percent ? percent - 1 : 0);
}

} // namespace

NativeLine::NativeLine() : state_(std::make_shared<State>()) {}

NativeLine::~NativeLine() {}

void NativeLine::set(unsigned loss_percent, unsigned jitter_ms)
{
    std::lock_guard<std::mutex> lock(mutex_);
    state_->loss_percent = loss_percent;
    state_->jitter_ms = jitter_ms;
    for (auto &one : hooks) {
        if (one.second->line == state_)
            lose_received(one.first, loss_percent);
    }
}

void NativeLine::attach(unsigned long stream)
{
    pjmedia_transport *transport =
        pjmedia_stream_get_transport(reinterpret_cast<pjmedia_stream *>(stream));
    if (!transport)
        return;
    std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Hook> &hook = hooks[transport];
    if (!hook) {
        hook.reset(new Hook{*transport->op, transport->op, state_, {}});
        hook->op.send_rtp = &send_rtp;
        hook->op.destroy = &destroy;
        transport->op = &hook->op;
    }
    hook->line = state_;
    lose_received(transport, state_->loss_percent);
}

} // namespace pj
