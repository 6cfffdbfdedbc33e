// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A bad line, to try how others take it: packets of RTP that are lost, and packets that come late.
 * For callers that test; the gateway never makes one.
 */
#pragma once

#include <memory>

#include <pjsua2.hpp>

namespace pj {

class NativeLine {
public:
    NativeLine();
    ~NativeLine();

    /** From now on lose this share of the packets, sent and received ones (0, or from 2 percent on:
     *  pjmedia cannot lose 1), and send each up to `jitter_ms` late, at random, none before the one
     *  ahead of it. From any thread. */
    void set(unsigned loss_percent, unsigned jitter_ms);
    /** Be the line of this stream, the address of that of on_stream_created, until its transport is
     *  destroyed. On the thread that polls pjsip. */
    void attach(unsigned long stream);

    struct State;

private:
    std::shared_ptr<State> state_;
};

} // namespace pj
