// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Puts the audio of received RTP packets into order, without a clock of its own: what is next in
 * sequence goes on the moment it arrives. Knows no socket, thread or lock; the time is passed in.
 *
 * A session has no loudspeaker that needs audio at a steady rate, so nothing is delayed but what
 * stands behind a gap, and nothing is left out to win time back.
 */
#pragma once

#include <cstdint>
#include <vector>

#include "ring.hpp"
#include "wide_codecs.hpp"

namespace pj {

/** A received packet. Without audio (a telephone-event, comfort noise) it has a place all the same. */
struct UplinkPacket {
    uint32_t ssrc;
    uint16_t seq;
    uint32_t timestamp;
    const uint8_t *audio;
    size_t size;      // in units of 125 us: samples and bytes of G.711
    int law = -1;     // of what a decoder has to make audio of; below 0 it is as the queue has it
    size_t coded = 0; // bytes of that
    uint32_t sum = 0; // of the payload as it came: another one is another packet of that number
};

/** FNV-1a. */
inline uint32_t sum_of(const uint8_t *payload, size_t size)
{
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i < size; ++i)
        sum = (sum ^ payload[i]) * 16777619u;
    return sum;
}

/** Counts since the call began, packets unless they say otherwise. */
struct UplinkCounts {
    unsigned packets = 0;
    unsigned lost = 0;         // did not come while they were waited for
    unsigned late = 0;         // came after their place was filled, and were left out
    unsigned reordered = 0;    // overtaken by others, and put into their place
    unsigned duplicates = 0;
    unsigned foreign = 0;      // of a source that is not followed any more, or a number on its own
    unsigned source_changes = 0; // another SSRC, or sequence numbers that began anew
    unsigned timestamp_jumps = 0;
    uint64_t filled = 0;       // samples of silence where packets are lost or the sender paused
    uint64_t standing_in = 0;  // samples of silence while nothing came
    uint64_t overtaken = 0;    // samples of it that turned out to be too much: audio came late
    uint64_t dropped = 0;      // samples that found no place: nobody took them
};

class Sequencer {
public:
    /** out: what is in order goes there, the oldest being dropped when it is full. */
    Sequencer(Ring &out, uint8_t silence);

    /** A packet came; times are in microseconds of one clock. */
    void packet(int64_t now, const UplinkPacket &packet);
    /** Called some fifty times a second: whatever is due by now. */
    void tick(int64_t now);
    /** Nothing is known of a sender: silence from now until one is heard. */
    void restart(int64_t now);
    /** Bytes of silence, and how many of them a unit has. */
    void use_form(uint8_t silence, size_t unit) { silence_ = silence, unit_ = unit; }
    /** Who makes audio of packets with a law, once they are in order; outlives them. */
    void use_decoder(PacketDecoder *decoder) { decoder_ = decoder; }
    /** How long (microseconds) a missing packet is waited for, and one that is due before silence
     *  begins. */
    void use_wait(int64_t wait) { wait_ = wait; }

    const UplinkCounts &counts() const { return counts_; }

private:
    struct Held {
        int64_t arrival;
        uint32_t ssrc;
        uint16_t seq;
        uint32_t timestamp;
        std::vector<uint8_t> audio;
        size_t size;
        int law;
        size_t coded;
        uint32_t sum;

        UplinkPacket packet() const
        {
            return {ssrc, seq, timestamp, audio.data(), size, law, coded, sum};
        }
    };

    void begin(const UplinkPacket &packet);
    void place(int64_t now, const UplinkPacket &packet);
    void hold(int64_t now, const UplinkPacket &packet);
    bool is_of_the_past(const UplinkPacket &packet) const;
    bool was_delivered(const UplinkPacket &packet) const;
    void consider_restart(int64_t now, const UplinkPacket &packet);
    void deliver(int64_t arrival, const UplinkPacket &packet);
    void deliver_held();
    void release();
    void expire(int64_t now);
    int64_t gap_before(int64_t arrival, const UplinkPacket &packet);
    Held kept(int64_t now, const UplinkPacket &packet) const;
    void put(const uint8_t *audio, size_t size);
    void put_gap(size_t size, const UplinkPacket &next);
    void put_silence(size_t size);

    Ring &out_;
    uint8_t silence_;
    size_t unit_ = 1;
    PacketDecoder *decoder_ = nullptr;
    int64_t wait_ = 60000;
    UplinkCounts counts_;

    bool known_ = false; // ssrc_ and next_seq_ are
    uint32_t ssrc_ = 0, former_ssrc_ = 0;
    bool has_former_ = false;
    int64_t heard_ = 0; // when a packet of ssrc_ last came
    uint16_t next_seq_ = 0;
    uint32_t delivered_[256]; // by the low byte of their number, with a bit that says it was
    uint32_t sums_[256];      // of what was delivered

    bool timestamp_known_ = false;
    uint32_t next_timestamp_ = 0;
    int64_t last_arrival_ = 0; // of the audio delivered last
    size_t last_size_ = 0;
    unsigned missing_ = 0; // packets given up since then

    int64_t end_ = 0; // until when a loudspeaker would have had audio to play
    int64_t standing_in_ = 0; // samples of silence since the last packet with audio

    std::vector<Held> held_; // behind a gap, in their order
    std::vector<Held> apart_; // one whose number is far from the others: alone, or a new beginning
};

} // namespace pj
