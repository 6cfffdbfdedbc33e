// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Drives the sequencer with senders of every kind, from random seeds: sequencer_fuzz FIRST COUNT.
 * Aborts where a rule does not hold that holds whatever comes.
 */
#include "sequencer.hpp"

#include <cstdio>
#include <cstdlib>
#include <random>

// Its packets are in the form that the queue has: there is nothing to decode.
const uint8_t *pj::PacketDecoder::decode(int, const uint8_t *, size_t, size_t) { abort(); }
const uint8_t *pj::PacketDecoder::conceal(int, const uint8_t *, size_t, size_t) { abort(); }

using namespace pj;

namespace {

constexpr int64_t kTick = 20000;
constexpr uint64_t kMostHeld = 257 * 2048;     // packets behind a gap, each of the largest kind
constexpr uint64_t kMostFilled = 8 * 1400 + 4; // by one packet: a second, and what is overdue

struct Run {
    explicit Run(unsigned seed_) : seed(seed_), random(seed_), out(1 << 23), sequencer(out, 0xff) {}

    unsigned seed, step = 0;
    std::mt19937 random;
    Ring out;
    Sequencer sequencer;
    int64_t now = 0, next_tick = 0, begun = 0;
    uint64_t in = 0, produced = 0, filled = 0;
    uint8_t audio[2048];

    int below(int bound) { return (int)(random() % (unsigned)bound); }

    void check(bool holds, const char *rule)
    {
        if (holds)
            return;
        fprintf(stderr, "%s: seed %u, step %u\n", rule, seed, step);
        abort();
    }

    // After each call; `most` is what it may have made of silence.
    void look(uint64_t most)
    {
        const UplinkCounts &c = sequencer.counts();
        uint64_t before = produced, silent = filled;
        produced = out.size() + c.dropped;
        filled = c.filled + c.standing_in;
        check(produced >= before && filled >= silent, "what was put stays");
        check(produced <= in + filled, "bytes out are bytes in and silence");
        check(produced >= filled, "silence is part of what was put");
        check(filled - silent <= most, "no burst of silence");
        check(produced - before <= (filled - silent) + kMostHeld, "no burst of audio");
        check(c.standing_in <= (uint64_t)(now - begun) / 125 + 160, "silence in real time");
    }

    void pass(int64_t time)
    {
        for (int64_t until = now + time; now < until;) {
            now = std::min(until, next_tick);
            if (now == next_tick) {
                sequencer.tick(now);
                next_tick += kTick;
                look(160 + kMostFilled * 257);
            }
        }
    }

    void run(bool orderly)
    {
        for (auto &byte : audio)
            byte = (uint8_t)(0x80 + below(0x50));
        sequencer.use_wait(below(3) ? 60000 : below(300) * 1000);
        sequencer.restart(now);
        static const int sizes[] = {1, 40, 80, 160, 240, 320, 480, 1024, 2048};
        uint32_t ssrc = random(), timestamp = random();
        uint16_t seq = (uint16_t)random();
        int size = 160;
        for (step = 0; step < 1500; ++step) {
            if (!orderly && below(10) == 0) {
                switch (below(9)) {
                case 0: ssrc = random(); break;
                case 1: seq += (uint16_t)below(70); break;
                case 2: seq -= (uint16_t)below(70); break;
                case 3: seq = (uint16_t)random(); break;
                case 4: timestamp = random(); break;
                case 5: timestamp -= 1600; break;
                case 6: timestamp += (uint32_t)below(80000); break;
                case 7: size = sizes[below(9)]; break;
                default: sequencer.restart(now); break;
                }
            }
            bool has_audio = orderly || below(30);
            UplinkPacket packet{ssrc, seq, timestamp, audio, (size_t)(has_audio ? size : 0)};
            packet.sum = (uint32_t)below(3);
            in += packet.size;
            sequencer.packet(now, packet);
            look(kMostFilled * 257);
            if (orderly || below(10)) {
                ++seq;
                timestamp += (uint32_t)size;
            }
            if (orderly)
                pass(size * 125 + (below(50) ? 0 : below(40000)));
            else if (below(3))
                pass(below(100) ? below(40000) : below(3000000));
        }
        pass(2000000);
        const UplinkCounts &c = sequencer.counts();
        if (orderly)
            check(produced - filled == in && c.lost == 0, "an orderly sender is heard whole");
    }
};

} // namespace

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    unsigned first = (unsigned)atol(argv[1]), count = (unsigned)atol(argv[2]);
    for (unsigned seed = first; seed != first + count; ++seed)
        Run(seed).run(seed % 4 == 0);
    printf("%u\n", count);
    return 0;
}
