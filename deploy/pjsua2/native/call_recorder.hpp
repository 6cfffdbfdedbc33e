// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Both sides of a call as stereo frames of G.711 on the clock of playout: left what its caller sent,
 * right what was sent to them. Knows no thread or lock; what it has is taken out by a writer.
 */
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "ring.hpp"
#include "sequencer.hpp"

namespace pj {

class CallRecorder {
public:
    static constexpr unsigned kFrame = 160;     // samples in 20 ms, as bytes of either law
    static constexpr unsigned kMaxDelay = 100;  // frames that a caller's late packets have to come

    /** Tables of one law: linear samples of each code, and the code of each sample. */
    struct Law {
        int number;
        uint8_t silence;
        const int16_t *linear;
        const uint8_t *coded;
        const uint8_t *from_other;
    };

    struct Counts {
        unsigned frames = 0;   // of 20 ms, in the file or dropped from it
        unsigned dropped = 0;  // the writer took none for too long: silence stands in their place
        unsigned silenced = 0;
        uint64_t shifted = 0;  // samples of the caller left out, or of silence put in, since no two
                               // clocks agree
    };

    /** delay: frames that both sides are held back, longer than packets are waited for. */
    CallRecorder(const Law &law, unsigned delay, unsigned max_frames, int64_t wait, int64_t now)
        : law_(law), delay_(std::min(std::max(delay, 1u), kMaxDelay)),
          out_((size_t)max_frames * 2 * kFrame), caller_((size_t)(kMaxDelay + 250) * kFrame),
          sequencer_(caller_, law.silence), sent_((size_t)2 * kMaxDelay * kFrame, law.silence)
    {
        sequencer_.use_wait(wait);
        sequencer_.restart(now);
    }

    /** A packet of the caller, its law below 0 where it has no audio. */
    void receive(int64_t now, UplinkPacket packet, int packet_law)
    {
        uint8_t translated[2048];
        if (finished_)
            return;
        packet.law = -1;
        if (packet_law < 0) {
            packet.size = 0;
        } else if (packet_law >= kG722) {
            packet.law = packet_law;
            if (!decoder_) {
                decoder_.reset(new PacketDecoder(law_.coded));
                sequencer_.use_decoder(decoder_.get());
            }
        } else if (packet_law != law_.number) {
            packet.size = std::min(packet.size, sizeof translated);
            for (size_t i = 0; i < packet.size; ++i)
                translated[i] = law_.from_other[packet.audio[i]];
            packet.audio = translated;
        }
        sequencer_.packet(now, packet);
    }

    /** The media clock stands at this timestamp (samples); it moves by whole frames. */
    void beat(int64_t now, uint64_t timestamp)
    {
        if (finished_)
            return;
        if (!begun_ || timestamp > base_ + (current_ + 1000) * kFrame) {
            base_ = timestamp - current_ * kFrame;
            begun_ = true;
        }
        uint64_t to = (timestamp - base_) / kFrame;
        if (timestamp < base_)
            return;
        while (current_ < to) {
            ++current_;
            memset(at(current_ * kFrame), law_.silence, kFrame);
            sequencer_.tick(now);
            if (current_ >= delay_)
                emit(current_ - delay_);
        }
    }

    /** What the stream sends at that timestamp: `count` samples that end with that frame. */
    void sent(int64_t now, uint64_t timestamp, const int16_t *samples, size_t count)
    {
        beat(now, timestamp);
        if (finished_ || timestamp < base_)
            return;
        uint64_t from = timestamp - base_;
        if (count > kFrame)
            from = from + kFrame >= count ? from + kFrame - count : 0;
        for (size_t i = 0; i < count; ++i)
            if (from + i < (current_ + 1) * kFrame && from + i + delay_ * kFrame >= current_ * kFrame)
                *at(from + i) = law_.coded[(uint16_t)samples[i]];
    }

    /** Write silence on both sides, until it is asked for sound again; the time goes on. */
    void silence(bool silent)
    {
        // What was heard before the end of it is still in the delay.
        if (silent_ && !silent)
            silent_until_ = current_ + 1;
        silent_ = silent;
    }

    /** Nothing is added from now on: what was held back is put out. */
    void finish()
    {
        if (!finished_ && begun_)
            for (uint64_t frame = current_ < delay_ ? 0 : current_ - delay_ + 1; frame <= current_; ++frame)
                emit(frame);
        finished_ = true;
    }

    size_t waiting() const { return out_.size(); }
    void take(uint8_t *bytes, size_t count) { out_.pop(bytes, count); }
    const Counts &counts() const { return counts_; }

private:
    uint8_t *at(uint64_t sample) { return &sent_[sample % sent_.size()]; }

    bool quiet(const uint8_t *frame) const
    {
        for (unsigned i = 0; i < kFrame; ++i)
            if (law_.linear[frame[i]] > 500 || law_.linear[frame[i]] < -500)
                return false;
        return true;
    }

    // The caller's next 20 ms. A sender whose clock is fast, or whose packets came in a burst after
    // silence had taken their place, is ahead of ours: that is made good in pauses.
    void next_of_caller(uint8_t *frame)
    {
        size_t level = caller_.size();
        if (level > (delay_ + 2) * kFrame) {
            caller_.pop(frame, kFrame);
            if (level < (delay_ + 50) * kFrame && !quiet(frame))
                return;
            counts_.shifted += kFrame;
            level -= kFrame;
        }
        size_t there = std::min<size_t>(level, kFrame);
        caller_.pop(frame, there);
        memset(frame + there, law_.silence, kFrame - there);
        counts_.shifted += kFrame - there;
    }

    void emit(uint64_t number)
    {
        uint8_t caller[kFrame], frame[2 * kFrame], nothing[2 * kFrame];
        memset(nothing, law_.silence, sizeof nothing);
        next_of_caller(caller);
        const uint8_t *heard = at(number * kFrame);
        for (unsigned i = 0; i < kFrame; ++i) {
            frame[2 * i] = caller[i];
            frame[2 * i + 1] = heard[i];
        }
        bool silent = silent_ || number < silent_until_;
        ++counts_.frames;
        counts_.silenced += silent;
        // Frames that found no place leave their time behind.
        while (owed_ && out_.push(nothing, sizeof nothing))
            --owed_;
        if (owed_ || !out_.push(silent ? nothing : frame, sizeof frame)) {
            ++owed_;
            ++counts_.dropped;
        }
    }

    const Law law_;
    const unsigned delay_;
    Ring out_, caller_;
    Sequencer sequencer_;
    std::unique_ptr<PacketDecoder> decoder_; // where the caller speaks G.722 or Opus
    std::vector<uint8_t> sent_;
    Counts counts_;
    bool begun_ = false, finished_ = false, silent_ = false;
    uint64_t base_ = 0, current_ = 0, silent_until_ = 0;
    unsigned owed_ = 0;
};

} // namespace pj
