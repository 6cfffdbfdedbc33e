// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A queue of bytes that grows to its bound and no further.
 */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace pj {

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

    /** As push, but the oldest bytes make way; returns how many were lost. */
    size_t push_newest(const uint8_t *bytes, size_t count)
    {
        size_t lost = 0;
        if (count > bound_) {
            lost = count - bound_;
            bytes += lost;
            count = bound_;
        }
        if (size_ + count > bound_) {
            size_t over = size_ + count - bound_;
            skip(over);
            lost += over;
        }
        push(bytes, count);
        return lost;
    }

    void pop(uint8_t *bytes, size_t count)
    {
        if (count == 0)
            return;
        size_t first = std::min(count, store_.size() - head_);
        memcpy(bytes, &store_[head_], first);
        memcpy(bytes + first, &store_[0], count - first);
        skip(count);
    }

    void clear()
    {
        head_ = size_ = 0;
        if (store_.size() > 64 * 1024)
            std::vector<uint8_t>().swap(store_); // a long answer is over: give its memory back
    }

private:
    void skip(size_t count)
    {
        head_ = (head_ + count) % store_.size();
        size_ -= count;
    }

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

} // namespace pj
