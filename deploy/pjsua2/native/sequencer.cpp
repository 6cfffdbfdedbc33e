// SPDX-License-Identifier: GPL-2.0-or-later
#include "sequencer.hpp"

namespace pj {
namespace {

constexpr int64_t kSample = 125;             // microseconds
constexpr size_t kFrame = 160;               // units of silence that are put at a time
constexpr size_t kMostUnit = 6;              // bytes
constexpr int64_t kMillisecond = 1000;
constexpr int64_t kFormerHold = 200 * kMillisecond; // a source is followed as long as it speaks
constexpr int kMaxDropout = 3000;            // RFC 3550 appendix A.1, as the next one
constexpr int kMaxMisorder = 100;
constexpr int kRestartReach = 16;            // packets in which a new beginning has to show
constexpr int32_t kMaxAge = 30 * 8000;       // samples: a packet whose time is before that is not late
constexpr size_t kMaxHeld = 256;             // packets behind a gap: more than a second
constexpr int64_t kPauseSlack = 100 * kMillisecond;  // timestamps may be ahead of the time by it
constexpr int64_t kLossSlack = 1000 * kMillisecond;  // and by this where packets are missing
constexpr uint32_t kDelivered = 0x10000;
constexpr int kLeak = 64;                    // a sender's clock may be fast by this part
constexpr int64_t kMaxLead = 1000 * kMillisecond; // a sender may be ahead of the time by it

int distance(uint16_t seq, uint16_t from) { return (int16_t)(uint16_t)(seq - from); }

} // namespace

Sequencer::Sequencer(Ring &out, uint8_t silence) : out_(out), silence_(silence)
{
    std::fill(std::begin(delivered_), std::end(delivered_), 0);
}

void Sequencer::restart(int64_t now)
{
    known_ = has_former_ = timestamp_known_ = false;
    held_.clear();
    apart_.clear();
    standing_in_ = 0;
    end_ = now;
}

void Sequencer::packet(int64_t now, const UplinkPacket &packet)
{
    ++counts_.packets;
    if (packet.size == 0 && !(known_ && packet.ssrc == ssrc_)) {
        ++counts_.foreign; // no audio, and in no place among packets that have some
        return;
    }
    if (known_ && packet.ssrc != ssrc_) {
        if (has_former_ && packet.ssrc == former_ssrc_ && now - heard_ < kFormerHold) {
            ++counts_.foreign; // two sources at a time: the one that came last is followed
            return;
        }
        while (!held_.empty())
            deliver_held();
        former_ssrc_ = ssrc_;
        has_former_ = true;
        ++counts_.source_changes;
        begin(packet);
    } else if (!known_) {
        begin(packet);
    }
    heard_ = now;
    place(now, packet);
    expire(now);
}

void Sequencer::begin(const UplinkPacket &packet)
{
    known_ = true;
    ssrc_ = packet.ssrc;
    next_seq_ = packet.seq;
    timestamp_known_ = false;
    missing_ = 0;
    apart_.clear();
    std::fill(std::begin(delivered_), std::end(delivered_), 0);
}

void Sequencer::place(int64_t now, const UplinkPacket &packet)
{
    int ahead = distance(packet.seq, next_seq_);
    if (!held_.empty() && ahead >= 0 && distance(packet.seq, held_.back().seq) < 0)
        ++counts_.reordered;
    if (ahead == 0) {
        deliver(now, packet);
        release();
    } else if (ahead > 0 && ahead < kMaxDropout) {
        hold(now, packet);
    } else if (ahead < 0 && ahead >= -kMaxMisorder &&
               (packet.size == 0 || !timestamp_known_ || is_of_the_past(packet))) {
        if (!was_delivered(packet))
            ++counts_.late;
        else if (packet.size == 0 || sums_[packet.seq & 255] == packet.sum)
            ++counts_.duplicates;
        else
            consider_restart(now, packet); // a number that is used again, for something else
    } else if (packet.size) {
        consider_restart(now, packet);
    } else {
        ++counts_.foreign;
    }
}

// Whether the timestamp, too, says that the packet belongs before what was delivered last.
bool Sequencer::is_of_the_past(const UplinkPacket &packet) const
{
    int32_t age = (int32_t)(next_timestamp_ - packet.timestamp);
    return age > 0 && age <= kMaxAge;
}

bool Sequencer::was_delivered(const UplinkPacket &packet) const
{
    return delivered_[packet.seq & 255] == (packet.seq | kDelivered);
}

// The sender began anew without another SSRC if a second packet follows on this one; alone it is a
// stray. RFC 3550 appendix A.1 has the rule; here the first of the two is not lost.
void Sequencer::consider_restart(int64_t now, const UplinkPacket &packet)
{
    if (!apart_.empty()) {
        Held first = std::move(apart_.front());
        apart_.clear();
        int ahead = distance(packet.seq, first.seq);
        if (ahead > 0 && ahead < kRestartReach) {
            while (!held_.empty())
                deliver_held();
            ++counts_.source_changes;
            UplinkPacket one = first.packet();
            begin(one);
            deliver(first.arrival, one);
            place(now, packet);
            return;
        }
        ++counts_.foreign;
    }
    apart_.push_back(kept(now, packet));
}

Sequencer::Held Sequencer::kept(int64_t now, const UplinkPacket &packet) const
{
    const size_t bytes = packet.law < 0 ? packet.size * unit_ : packet.coded;
    return {now, packet.ssrc, packet.seq, packet.timestamp, {packet.audio, packet.audio + bytes},
            packet.size, packet.law, packet.coded, packet.sum};
}

void Sequencer::hold(int64_t now, const UplinkPacket &packet)
{
    auto at = held_.begin();
    while (at != held_.end() && distance(at->seq, packet.seq) < 0)
        ++at;
    if (at != held_.end() && at->seq == packet.seq) {
        ++counts_.duplicates;
        return;
    }
    held_.insert(at, kept(now, packet));
    if (held_.size() > kMaxHeld) {
        deliver_held();
        release();
    }
}

void Sequencer::release()
{
    while (!held_.empty() && held_.front().seq == next_seq_)
        deliver_held();
}

void Sequencer::expire(int64_t now)
{
    while (!held_.empty()) {
        int64_t since = held_.front().arrival;
        for (const Held &one : held_)
            since = std::min(since, one.arrival);
        if (now - since < wait_)
            return;
        deliver_held();
        release();
    }
}

void Sequencer::deliver_held()
{
    Held first = std::move(held_.front());
    held_.erase(held_.begin());
    missing_ += (unsigned)distance(first.seq, next_seq_);
    deliver(first.arrival, first.packet());
}

void Sequencer::deliver(int64_t arrival, const UplinkPacket &packet)
{
    if (!apart_.empty()) {
        apart_.clear();
        ++counts_.foreign;
    }
    delivered_[packet.seq & 255] = packet.seq | kDelivered;
    sums_[packet.seq & 255] = packet.sum;
    next_seq_ = (uint16_t)(packet.seq + 1);
    if (packet.size == 0)
        return;
    int64_t fill = gap_before(arrival, packet) - standing_in_;
    if (fill < 0) {
        counts_.overtaken += (uint64_t)-fill;
        fill = 0;
    }
    put_gap((size_t)fill, packet);
    counts_.filled += (uint64_t)fill;
    if (packet.law < 0)
        put(packet.audio, packet.size);
    else if (decoder_)
        put(decoder_->decode(packet.law, packet.audio, packet.coded, packet.size), packet.size);
    end_ += fill * kSample;
    int64_t length = (int64_t)packet.size * kSample;
    int64_t lead = end_ - arrival;
    // What is ahead of the time is worn off slowly: the sender's clock is not ours.
    lead = std::min(std::max<int64_t>(0, lead - length / kLeak), kMaxLead);
    end_ = arrival + lead + length;
    timestamp_known_ = true;
    next_timestamp_ = packet.timestamp + (uint32_t)packet.size;
    last_arrival_ = arrival;
    last_size_ = packet.size;
    missing_ = 0;
    standing_in_ = 0;
}

// Samples that belong between the audio delivered last and this packet: what its timestamp says,
// as far as time has passed for it.
int64_t Sequencer::gap_before(int64_t arrival, const UplinkPacket &packet)
{
    int64_t size = (int64_t)packet.size;
    if (!timestamp_known_) {
        counts_.lost += missing_;
        // Another sender: the time says how long nothing came, where it was noticed.
        if (!standing_in_)
            return 0;
        int64_t behind = (arrival - end_) / kSample - size;
        return standing_in_ + std::max<int64_t>(0, std::min(behind, wait_ / kSample + (int64_t)kFrame));
    }
    int64_t elapsed = std::max<int64_t>(0, arrival - last_arrival_);
    int64_t most = (elapsed + (missing_ ? kLossSlack : kPauseSlack)) / kSample;
    int64_t expected = (int64_t)missing_ * (int64_t)last_size_;
    int64_t gap = (int32_t)(packet.timestamp - next_timestamp_);
    if (expected > most) {
        ++counts_.source_changes; // numbers that jumped, of packets that never were
        expected = 0;
    } else {
        counts_.lost += missing_;
    }
    if (gap < 0 || gap > most) {
        ++counts_.timestamp_jumps;
        return expected;
    }
    // Less than a packet is a clock that is not counted in samples.
    return gap > expected && gap < expected + size ? expected : gap;
}

void Sequencer::tick(int64_t now)
{
    expire(now);
    if (!held_.empty() || now - end_ < wait_)
        return;
    put_silence(kFrame);
    standing_in_ += (int64_t)kFrame;
    counts_.standing_in += kFrame;
    end_ += (int64_t)kFrame * kSample;
}

void Sequencer::put(const uint8_t *audio, size_t size)
{
    counts_.dropped += out_.push_newest(audio, size * unit_) / unit_;
}

// What stands between the audio delivered last and the next packet: guessed where packets are lost.
void Sequencer::put_gap(size_t size, const UplinkPacket &next)
{
    const bool lost = missing_ && !standing_in_ && next.law >= 0 && decoder_;
    const uint8_t *guessed = lost ? decoder_->conceal(next.law, next.audio, next.coded, size) : nullptr;
    if (guessed)
        put(guessed, size);
    else
        put_silence(size);
}

void Sequencer::put_silence(size_t size)
{
    uint8_t frame[kFrame * kMostUnit];
    std::fill(std::begin(frame), std::end(frame), silence_);
    for (; size > 0; size -= std::min(size, kFrame))
        put(frame, std::min(size, kFrame));
}

} // namespace pj
