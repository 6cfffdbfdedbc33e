// SPDX-License-Identifier: GPL-2.0-or-later
#include "g722.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <pjsua-lib/pjsua.h>
extern "C" {
#include <../src/pjmedia-codec/g722/g722_dec.h>
#include <../src/pjmedia-codec/g722/g722_enc.h>
}

namespace pj {
namespace {

// Between samples of 16 bits and pjproject's coder, which takes 14 (G.722 section 1.4.1): as loud as
// Asterisk, FreeSWITCH, baresip and browsers have it. By two bits, others would hear us 6 dB too soft.
constexpr int kShift = 1;
constexpr size_t kFrame = 80;    // bytes, and samples at 8 kHz, in 10 ms
constexpr size_t kHalf = 16;     // taps of the half-band filter beside every second zero, of 63

int16_t clipped(float sample)
{
    const float bounded = std::min(32767.0f, std::max(-32768.0f, sample));
    return (int16_t)(bounded + (bounded < 0 ? -0.5f : 0.5f));
}

// Half-band filter: half of what it passes is the middle tap, every other one beside it is zero.
struct Taps {
    float side[2 * kHalf]; // of the odd offsets, from the oldest to the newest
    Taps()
    {
        const double pi = 3.14159265358979323846;
        double sum = 0;
        for (size_t i = 0; i < 2 * kHalf; ++i) {
            double at = 2.0 * (double)i - (2.0 * kHalf - 1);
            double window = 0.42 + 0.5 * std::cos(pi * at / (2.0 * kHalf)) +
                            0.08 * std::cos(2 * pi * at / (2.0 * kHalf));
            side[i] = (float)(std::sin(pi * at / 2) / (pi * at) * window);
            sum += side[i];
        }
        for (float &tap : side)
            tap = (float)(tap * 0.5 / sum);
    }
};

const Taps &taps()
{
    static const Taps made;
    return made;
}

// The filter's part of the odd offsets, of as many samples; in four sums, which the processor adds at a
// time.
float beside(const float *samples)
{
    const float *side = taps().side;
    float sums[4] = {0};
    for (size_t tap = 0; tap < 2 * kHalf; tap += 4)
        for (size_t i = 0; i < 4; ++i)
            sums[i] += side[tap + i] * samples[tap + i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

struct Wide {
    const void *frame;
    size_t samples;
    int16_t audio[2 * 2 * kFrame];
};
thread_local Wide the_next;

} // namespace

struct G722::Coder {
    g722_enc_t encoder;
    g722_dec_t decoder;
    // Of the samples before these: at 16 kHz the even and the odd ones, and at 8 kHz.
    float even[kHalf] = {0}, odd[2 * kHalf] = {0}, narrow[2 * kHalf] = {0};
};

G722::G722() : coder_(new Coder)
{
    taps();
    g722_enc_init(&coder_->encoder);
    g722_dec_init(&coder_->decoder);
}

G722::~G722() {}

void G722::decode(const uint8_t *bytes, size_t count, int16_t *wide)
{
    while (count > 0) {
        const uint8_t *end = bytes + count, *gap = std::find(bytes, end, kNothing);
        if (gap > bytes) {
            pj_size_t size = (pj_size_t)(gap - bytes), samples = 2 * size;
            g722_dec_decode(&coder_->decoder, const_cast<uint8_t *>(bytes), size, wide, &samples);
            for (size_t i = 0; i < 2 * size; ++i)
                wide[i] = (int16_t)std::min(32767, std::max(-32768, wide[i] * (1 << kShift)));
        }
        wide += 2 * (gap - bytes);
        const uint8_t *on = std::find_if(gap, end, [](uint8_t byte) { return byte != kNothing; });
        std::fill(wide, wide + 2 * (on - gap), (int16_t)0);
        wide += 2 * (on - gap);
        count -= (size_t)(on - bytes);
        bytes = on;
    }
}

void G722::encode(const int16_t *wide, size_t count, uint8_t *bytes)
{
    int16_t samples[2 * kFrame];
    while (count > 0) {
        size_t part = std::min(count, kFrame);
        for (size_t i = 0; i < 2 * part; ++i)
            samples[i] = (int16_t)(wide[i] >> kShift);
        pj_size_t size = part;
        g722_enc_encode(&coder_->encoder, samples, 2 * part, bytes, &size);
        wide += 2 * part;
        bytes += part;
        count -= part;
    }
}

void G722::lower(const int16_t *wide, size_t count, int16_t *narrow)
{
    float even[kHalf + kFrame], odd[2 * kHalf + kFrame];
    for (size_t part; count > 0; count -= part, wide += 2 * part, narrow += part) {
        part = std::min(count, kFrame);
        memcpy(even, coder_->even, sizeof coder_->even);
        memcpy(odd, coder_->odd, sizeof coder_->odd);
        for (size_t i = 0; i < part; ++i) {
            even[kHalf + i] = wide[2 * i];
            odd[2 * kHalf + i] = wide[2 * i + 1];
        }
        for (size_t i = 0; i < part; ++i)
            narrow[i] = clipped(0.5f * even[i + 1] + beside(odd + i + 1));
        memcpy(coder_->even, even + part, sizeof coder_->even);
        memcpy(coder_->odd, odd + part, sizeof coder_->odd);
    }
}

void G722::raise(const int16_t *narrow, size_t count, int16_t *wide)
{
    float past[2 * kHalf + kFrame];
    for (size_t part; count > 0; count -= part, wide += 2 * part, narrow += part) {
        part = std::min(count, kFrame);
        memcpy(past, coder_->narrow, sizeof coder_->narrow);
        for (size_t i = 0; i < part; ++i)
            past[2 * kHalf + i] = narrow[i];
        for (size_t i = 0; i < part; ++i) {
            wide[2 * i] = clipped(past[i + kHalf]);
            wide[2 * i + 1] = clipped(2 * beside(past + i + 1));
        }
        memcpy(coder_->narrow, past + part, sizeof coder_->narrow);
    }
}

void g722_send_wide(const void *frame, const int16_t *wide, size_t samples)
{
    the_next.frame = frame;
    the_next.samples = std::min(samples, sizeof the_next.audio / 2);
    memcpy(the_next.audio, wide, the_next.samples * 2);
}

namespace {

// pjmedia's view: PT 9, a byte and a sample at 8 kHz for each 125 us.

G722 *coder_of(pjmedia_codec *codec) { return (G722 *)codec->codec_data; }

pj_status_t do_nothing(pjmedia_codec *, pj_pool_t *) { return PJ_SUCCESS; }
pj_status_t open(pjmedia_codec *, pjmedia_codec_param *) { return PJ_SUCCESS; }
pj_status_t close(pjmedia_codec *) { return PJ_SUCCESS; }
pj_status_t modify(pjmedia_codec *, const pjmedia_codec_param *) { return PJ_SUCCESS; }

pj_status_t parse(pjmedia_codec *, void *packet, pj_size_t size, const pj_timestamp *at,
                  unsigned *count, pjmedia_frame frames[])
{
    unsigned found = 0;
    for (; found < *count && size >= kFrame; ++found, size -= kFrame) {
        frames[found].type = PJMEDIA_FRAME_TYPE_AUDIO;
        frames[found].buf = (uint8_t *)packet + found * kFrame;
        frames[found].size = kFrame;
        frames[found].timestamp.u64 = at->u64 + found * kFrame;
    }
    *count = found;
    return PJ_SUCCESS;
}

pj_status_t encode(pjmedia_codec *codec, const pjmedia_frame *input, unsigned room,
                   pjmedia_frame *output)
{
    size_t count = input->size / 2;
    int16_t wide[2 * G722::kMost];
    if (count > room || count > G722::kMost)
        return PJMEDIA_CODEC_EFRMTOOSHORT;
    const void *frame = the_next.frame;
    the_next.frame = nullptr;
    if (frame && frame == input->buf && the_next.samples == 2 * count)
        memcpy(wide, the_next.audio, 4 * count);
    else
        coder_of(codec)->raise((const int16_t *)input->buf, count, wide);
    coder_of(codec)->encode(wide, count, (uint8_t *)output->buf);
    output->type = PJMEDIA_FRAME_TYPE_AUDIO;
    output->size = count;
    output->timestamp = input->timestamp;
    return PJ_SUCCESS;
}

pj_status_t decode(pjmedia_codec *codec, const pjmedia_frame *input, unsigned room,
                   pjmedia_frame *output)
{
    int16_t wide[2 * G722::kMost];
    if (2 * input->size > room || input->size > G722::kMost)
        return PJMEDIA_CODEC_EPCMTOOSHORT;
    coder_of(codec)->decode((const uint8_t *)input->buf, input->size, wide);
    coder_of(codec)->lower(wide, input->size, (int16_t *)output->buf);
    output->type = PJMEDIA_FRAME_TYPE_AUDIO;
    output->size = 2 * input->size;
    output->timestamp = input->timestamp;
    return PJ_SUCCESS;
}

pjmedia_codec_op operations = {&do_nothing, &open,   &close,  &modify,
                               &parse,      &encode, &decode, nullptr};

pj_status_t test_alloc(pjmedia_codec_factory *, const pjmedia_codec_info *info)
{
    return info->pt == PJMEDIA_RTP_PT_G722 ? PJ_SUCCESS : PJMEDIA_CODEC_EUNSUP;
}

pj_status_t default_attr(pjmedia_codec_factory *, const pjmedia_codec_info *,
                         pjmedia_codec_param *attr)
{
    pj_bzero(attr, sizeof *attr);
    attr->info.clock_rate = 8000;
    attr->info.channel_cnt = 1;
    attr->info.avg_bps = attr->info.max_bps = 64000;
    attr->info.pcm_bits_per_sample = 16;
    attr->info.frm_ptime = 10;
    attr->info.pt = PJMEDIA_RTP_PT_G722;
    attr->setting.frm_per_pkt = 2;
    return PJ_SUCCESS;
}

pj_status_t enum_info(pjmedia_codec_factory *, unsigned *count, pjmedia_codec_info codecs[])
{
    pj_bzero(&codecs[0], sizeof codecs[0]);
    codecs[0].encoding_name = pj_str((char *)"G722");
    codecs[0].pt = PJMEDIA_RTP_PT_G722;
    codecs[0].type = PJMEDIA_TYPE_AUDIO;
    codecs[0].clock_rate = 8000;
    codecs[0].channel_cnt = 1;
    *count = 1;
    return PJ_SUCCESS;
}

pj_status_t alloc_codec(pjmedia_codec_factory *factory, const pjmedia_codec_info *,
                        pjmedia_codec **made)
{
    pjmedia_codec *codec = new pjmedia_codec();
    codec->op = &operations;
    codec->factory = factory;
    codec->codec_data = new G722;
    *made = codec;
    return PJ_SUCCESS;
}

pj_status_t dealloc_codec(pjmedia_codec_factory *, pjmedia_codec *codec)
{
    delete coder_of(codec);
    delete codec;
    return PJ_SUCCESS;
}

pj_status_t destroy() { return PJ_SUCCESS; }

pjmedia_codec_factory_op factory_operations = {&test_alloc,  &default_attr,  &enum_info,
                                               &alloc_codec, &dealloc_codec, &destroy};
pjmedia_codec_factory the_factory;

// What a buffer of Python's has, as many whole items as fit.
template <class Work> PyObject *worked(PyObject *given, size_t made_each, size_t step, Work work)
{
    Py_buffer view;
    if (PyObject_GetBuffer(given, &view, PyBUF_SIMPLE) != 0)
        return nullptr;
    size_t count = (size_t)view.len / step;
    PyObject *bytes = PyBytes_FromStringAndSize(nullptr, (Py_ssize_t)(count * made_each));
    const uint8_t *from = (const uint8_t *)view.buf;
    uint8_t *to = bytes ? (uint8_t *)PyBytes_AS_STRING(bytes) : nullptr;
    for (size_t done = 0; bytes && done < count; done += G722::kMost) {
        size_t part = std::min(count - done, G722::kMost);
        work(from + done * step, part, to + done * made_each);
    }
    PyBuffer_Release(&view);
    return bytes;
}

} // namespace

PyObject *NativeG722::decode(PyObject *bytes)
{
    return worked(bytes, 4, 1, [this](const uint8_t *from, size_t count, uint8_t *to) {
        int16_t wide[2 * G722::kMost];
        coder_.decode(from, count, wide);
        memcpy(to, wide, 4 * count);
    });
}

PyObject *NativeG722::encode(PyObject *samples)
{
    return worked(samples, 1, 4, [this](const uint8_t *from, size_t count, uint8_t *to) {
        int16_t wide[2 * G722::kMost];
        memcpy(wide, from, 4 * count);
        coder_.encode(wide, count, to);
    });
}

PyObject *NativeG722::narrow(PyObject *bytes)
{
    return worked(bytes, 1, 1, [this](const uint8_t *from, size_t count, uint8_t *to) {
        int16_t wide[2 * G722::kMost], samples[G722::kMost];
        coder_.decode(from, count, wide);
        coder_.lower(wide, count, samples);
        for (size_t i = 0; i < count; ++i)
            to[i] = pjmedia_linear2ulaw(samples[i]);
    });
}

int nativeRegisterG722()
{
    pjmedia_codec_g722_deinit();
    pj_bzero(&the_factory, sizeof the_factory);
    the_factory.op = &factory_operations;
    return pjmedia_codec_mgr_register_factory(
        pjmedia_endpt_get_codec_mgr(pjsua_get_pjmedia_endpt()), &the_factory);
}

} // namespace pj
