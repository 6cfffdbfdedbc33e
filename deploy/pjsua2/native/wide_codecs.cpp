// SPDX-License-Identifier: GPL-2.0-or-later
#include "wide_codecs.hpp"

#include <algorithm>
#include <cstring>

#include <opus/opus.h>
#include <speex/speex_resampler.h>

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
constexpr int kQuality = 5;      // of libspeexdsp: 2.5 ms of delay, what is above the band 80 dB down
constexpr size_t kFrame = 80;    // samples at 8 kHz in 10 ms, and bytes of G.722
constexpr size_t kBeat = 2 * kFrame;
constexpr size_t kWideBeat = 3 * kBeat;  // samples at 24 kHz in 20 ms
constexpr size_t kStep = 20;     // units in 2.5 ms, of which all lengths in Opus are made

struct Wide {
    const void *frame;
    int16_t audio[kWideBeat];
};
thread_local Wide the_next;

// What was told by send_wide of this frame, if anything was; it is told once.
const int16_t *wide_of(const pjmedia_frame *input)
{
    const void *frame = the_next.frame;
    the_next.frame = nullptr;
    return frame && frame == input->buf && input->size == 2 * kBeat ? the_next.audio : nullptr;
}

bool all_zero(const int16_t *samples, size_t count)
{
    return std::all_of(samples, samples + count, [](int16_t sample) { return sample == 0; });
}

} // namespace

Resampler::Resampler(unsigned from, unsigned to)
{
    int error = 0;
    state_ = speex_resampler_init(1, from, to, kQuality, &error);
}

Resampler::~Resampler()
{
    if (state_)
        speex_resampler_destroy(state_);
}

void Resampler::run(const int16_t *samples, size_t count, int16_t *out, size_t made)
{
    spx_uint32_t in = (spx_uint32_t)count, done = (spx_uint32_t)made;
    if (!state_ || speex_resampler_process_int(state_, 0, samples, &in, out, &done) != RESAMPLER_ERR_SUCCESS)
        done = 0;
    std::fill(out + done, out + made, (int16_t)0);
}

struct G722::Coder {
    g722_enc_t encoder;
    g722_dec_t decoder;
};

G722::G722() : coder_(new Coder)
{
    g722_enc_init(&coder_->encoder);
    g722_dec_init(&coder_->decoder);
}

G722::~G722() {}

void G722::decode(const uint8_t *bytes, size_t count, int16_t *wide)
{
    if (!count)
        return;
    pj_size_t size = (pj_size_t)count, samples = 2 * size;
    g722_dec_decode(&coder_->decoder, const_cast<uint8_t *>(bytes), size, wide, &samples);
    for (size_t i = 0; i < 2 * count; ++i)
        wide[i] = (int16_t)std::min(32767, std::max(-32768, wide[i] * (1 << kShift)));
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

PacketDecoder::PacketDecoder(const uint8_t *coded)
    : coded_(coded), rate_(coded ? 8000 : 24000), samples_(kMost * rate_ / 8000), raw_(2 * kMost),
      bytes_(coded ? kMost : 0)
{
}

PacketDecoder::~PacketDecoder()
{
    if (opus_)
        opus_decoder_destroy(opus_);
}

size_t PacketDecoder::length(int law, const uint8_t *packet, size_t bytes)
{
    if (law != kOpus)
        return std::min(bytes, kMost);
    if (bytes == 0)
        return 0;
    int units = opus_packet_get_nb_samples(packet, (opus_int32)bytes, 8000);
    return units > 0 ? (size_t)units : 0;
}

OpusDecoder *PacketDecoder::opus()
{
    int error = 0;
    if (!opus_)
        opus_ = opus_decoder_create((opus_int32)rate_, 1, &error);
    return opus_;
}

const uint8_t *PacketDecoder::decode(int law, const uint8_t *packet, size_t bytes, size_t units)
{
    const size_t made = units * rate_ / 8000;
    if (law == kOpus) {
        int done = -1;
        if (opus())
            done = opus_decode(opus_, packet, (opus_int32)bytes, samples_.data(), (int)made, 0);
        if (done < 0 && opus_) // what cannot be read is as good as lost
            done = opus_decode(opus_, nullptr, 0, samples_.data(), (int)made, 0);
        std::fill(samples_.begin() + std::max(done, 0), samples_.begin() + made, (int16_t)0);
    } else if (law == kG722) {
        if (!g722_) {
            g722_.reset(new G722);
            from_16_.reset(new Resampler(16000, rate_));
        }
        g722_->decode(packet, units, raw_.data());
        from_16_->run(raw_.data(), 2 * units, samples_.data(), made);
    } else {
        for (size_t i = 0; i < units; ++i)
            raw_[i] = (int16_t)(law == kPcma ? pjmedia_alaw2linear(packet[i]) : pjmedia_ulaw2linear(packet[i]));
        if (!from_8_)
            from_8_.reset(new Resampler(8000, rate_));
        from_8_->run(raw_.data(), units, samples_.data(), made);
    }
    return finish(made);
}

const uint8_t *PacketDecoder::conceal(int law, const uint8_t *next, size_t bytes, size_t units)
{
    if (law != kOpus || !opus_ || units == 0 || units > kMostConcealed || units % kStep)
        return nullptr;
    const size_t made = units * rate_ / 8000;
    int done = opus_decode(opus_, next, (opus_int32)bytes, samples_.data(), (int)made, 1);
    if (done < 0)
        return nullptr;
    std::fill(samples_.begin() + done, samples_.begin() + made, (int16_t)0);
    return finish(made);
}

const uint8_t *PacketDecoder::finish(size_t samples)
{
    for (size_t i = 0; i < samples; ++i)
        peak_ = std::max(peak_, std::abs((int)samples_[i]));
    if (!coded_)
        return (const uint8_t *)samples_.data();
    for (size_t i = 0; i < samples; ++i)
        bytes_[i] = coded_[(uint16_t)samples_[i]];
    return bytes_.data();
}

int PacketDecoder::takePeak()
{
    int peak = peak_;
    peak_ = 0;
    return peak;
}

void send_wide(const void *frame, const int16_t *wide, size_t samples)
{
    if (samples != kWideBeat)
        return;
    the_next.frame = frame;
    memcpy(the_next.audio, wide, sizeof the_next.audio);
}

namespace {

// pjmedia's view of G.722: a byte and a sample at 8 kHz for each 125 us. Of Opus: packets of 20 ms are sent;
// of those that come, 10 ms each of samples at 8 kHz wait in the jitter buffer, whatever a packet has.

struct Stream {
    virtual ~Stream() {}
    virtual pj_status_t parse(void *packet, size_t size, const pj_timestamp *at, unsigned *count,
                              pjmedia_frame frames[]) = 0;
    virtual pj_status_t encode(const pjmedia_frame *input, unsigned room, pjmedia_frame *output) = 0;
    virtual pj_status_t decode(const pjmedia_frame *input, unsigned room, pjmedia_frame *output) = 0;

    // So many frames of that size each, of what is there.
    static unsigned split(void *bytes, size_t size, size_t each, const pj_timestamp *at, unsigned most,
                          pjmedia_frame frames[])
    {
        unsigned found = 0;
        for (; found < most && size >= each; ++found, size -= each) {
            frames[found].type = PJMEDIA_FRAME_TYPE_AUDIO;
            frames[found].buf = (uint8_t *)bytes + found * each;
            frames[found].size = each;
            frames[found].timestamp.u64 = at->u64 + found * kFrame;
        }
        return found;
    }
};

struct G722Stream : Stream {
    G722 coder;
    Resampler from_24{24000, 16000}, raise{8000, 16000}, lower{16000, 8000};

    pj_status_t parse(void *packet, size_t size, const pj_timestamp *at, unsigned *count,
                      pjmedia_frame frames[]) override
    {
        *count = split(packet, size, kFrame, at, *count, frames);
        return PJ_SUCCESS;
    }

    pj_status_t encode(const pjmedia_frame *input, unsigned room, pjmedia_frame *output) override
    {
        size_t count = input->size / 2;
        int16_t wide[2 * G722::kMost];
        if (count > room || count > G722::kMost)
            return PJMEDIA_CODEC_EFRMTOOSHORT;
        static const int16_t silence[kWideBeat] = {0};
        const int16_t *given = wide_of(input);
        // What is left in the filter comes out before silence.
        if (!given && count == kBeat && all_zero((const int16_t *)input->buf, count))
            given = silence;
        if (given)
            from_24.run(given, kWideBeat, wide, 2 * kBeat);
        else
            raise.run((const int16_t *)input->buf, count, wide, 2 * count);
        coder.encode(wide, count, (uint8_t *)output->buf);
        output->size = count;
        return PJ_SUCCESS;
    }

    pj_status_t decode(const pjmedia_frame *input, unsigned room, pjmedia_frame *output) override
    {
        int16_t wide[2 * G722::kMost];
        if (2 * input->size > room || input->size > G722::kMost)
            return PJMEDIA_CODEC_EPCMTOOSHORT;
        coder.decode((const uint8_t *)input->buf, input->size, wide);
        lower.run(wide, 2 * input->size, (int16_t *)output->buf, input->size);
        output->size = 2 * input->size;
        return PJ_SUCCESS;
    }
};

// What the other side asks for (RFC 7587 section 6.1); anything that it cannot have meant is passed over.
struct OpusWishes {
    int bitrate = 32000, bandwidth = OPUS_BANDWIDTH_SUPERWIDEBAND;
    bool fec = false, constant = false;

    void read(const pjmedia_codec_fmtp &fmtp)
    {
        for (unsigned i = 0; i < fmtp.cnt; ++i) {
            const pj_str_t &name = fmtp.param[i].name;
            const unsigned long value = pj_strtoul(&fmtp.param[i].val);
            if (pj_stricmp2(&name, "maxaveragebitrate") == 0)
                bitrate = value >= 6000 && value <= 510000 ? std::min<int>(bitrate, (int)value) : bitrate;
            else if (pj_stricmp2(&name, "maxplaybackrate") == 0)
                bandwidth = value >= 24000   ? OPUS_BANDWIDTH_SUPERWIDEBAND
                            : value >= 16000 ? OPUS_BANDWIDTH_WIDEBAND
                            : value >= 12000 ? OPUS_BANDWIDTH_MEDIUMBAND
                            : value >= 8000  ? OPUS_BANDWIDTH_NARROWBAND
                                             : bandwidth;
            else if (pj_stricmp2(&name, "useinbandfec") == 0)
                fec = value == 1;
            else if (pj_stricmp2(&name, "cbr") == 0)
                constant = value == 1;
        }
    }
};

struct OpusStream : Stream {
    static constexpr int kComplexity = 5;
    static constexpr int kExpectedLoss = 5; // percent, for which packets tell of those before them
    static constexpr size_t kMostFrames = 16;

    OpusWishes wishes;
    OpusEncoder *narrow = nullptr, *wide = nullptr, *last = nullptr;
    OpusDecoder *decoder = nullptr;
    int16_t waiting[kFrame + 960]; // samples at 8 kHz of a packet, for the jitter buffer
    int16_t held[kFrame];          // those before them that were no 10 ms yet
    size_t rest = 0;

    ~OpusStream() override
    {
        for (OpusEncoder *one : {narrow, wide})
            if (one)
                opus_encoder_destroy(one);
        if (decoder)
            opus_decoder_destroy(decoder);
    }

    OpusEncoder *made(int rate) const
    {
        int error = 0;
        OpusEncoder *encoder = opus_encoder_create(rate, 1, OPUS_APPLICATION_VOIP, &error);
        if (!encoder)
            return nullptr;
        opus_encoder_ctl(encoder, OPUS_SET_BITRATE(wishes.bitrate));
        opus_encoder_ctl(encoder, OPUS_SET_MAX_BANDWIDTH(wishes.bandwidth));
        opus_encoder_ctl(encoder, OPUS_SET_COMPLEXITY(kComplexity));
        opus_encoder_ctl(encoder, OPUS_SET_SIGNAL(OPUS_SIGNAL_VOICE));
        opus_encoder_ctl(encoder, OPUS_SET_VBR(!wishes.constant));
        opus_encoder_ctl(encoder, OPUS_SET_INBAND_FEC(wishes.fec));
        opus_encoder_ctl(encoder, OPUS_SET_PACKET_LOSS_PERC(wishes.fec ? kExpectedLoss : 0));
        return encoder;
    }

    pj_status_t parse(void *packet, size_t size, const pj_timestamp *at, unsigned *count,
                      pjmedia_frame frames[]) override
    {
        const size_t units = PacketDecoder::length(kOpus, (const uint8_t *)packet, size);
        int error = 0;
        if (!decoder)
            decoder = opus_decoder_create(8000, 1, &error);
        if (!decoder || !units)
            return PJMEDIA_CODEC_EFAILED;
        std::copy(held, held + rest, waiting);
        int done = opus_decode(decoder, (const uint8_t *)packet, (opus_int32)size, waiting + rest, (int)units, 0);
        if (done < 0)
            return PJMEDIA_CODEC_EFAILED;
        const size_t there = rest + (size_t)done;
        *count = split(waiting, 2 * there, 2 * kFrame, at, std::min(*count, (unsigned)kMostFrames), frames);
        rest = there % kFrame;
        std::copy(waiting + there - rest, waiting + there, held);
        return PJ_SUCCESS;
    }

    pj_status_t encode(const pjmedia_frame *input, unsigned room, pjmedia_frame *output) override
    {
        static const int16_t silence[kWideBeat] = {0};
        if (input->size != 2 * kBeat)
            return PJMEDIA_CODEC_EFRMTOOSHORT;
        const int16_t *samples = (const int16_t *)input->buf, *given = wide_of(input);
        if (!given && (!last || last == wide) && all_zero(samples, kBeat))
            given = silence;
        OpusEncoder *&encoder = given ? wide : narrow;
        if (!encoder)
            encoder = made(given ? 24000 : 8000);
        if (!encoder)
            return PJ_ENOMEM;
        last = encoder;
        int size = opus_encode(encoder, given ? given : samples, (int)(given ? kWideBeat : kBeat),
                               (uint8_t *)output->buf, (opus_int32)std::min(room, 1275u));
        if (size < 0)
            return PJMEDIA_CODEC_EFAILED;
        output->size = (pj_size_t)size;
        return PJ_SUCCESS;
    }

    pj_status_t decode(const pjmedia_frame *input, unsigned room, pjmedia_frame *output) override
    {
        const size_t size = std::min<size_t>(input->size, room);
        memcpy(output->buf, input->buf, size);
        output->size = size;
        return PJ_SUCCESS;
    }
};

Stream *stream_of(pjmedia_codec *codec) { return (Stream *)codec->codec_data; }

pj_status_t do_nothing(pjmedia_codec *, pj_pool_t *) { return PJ_SUCCESS; }
pj_status_t close(pjmedia_codec *) { return PJ_SUCCESS; }
pj_status_t modify(pjmedia_codec *, const pjmedia_codec_param *) { return PJ_SUCCESS; }

pj_status_t open(pjmedia_codec *codec, pjmedia_codec_param *param)
{
    if (OpusStream *stream = dynamic_cast<OpusStream *>(stream_of(codec)))
        stream->wishes.read(param->setting.enc_fmtp);
    return PJ_SUCCESS;
}

pj_status_t parse(pjmedia_codec *codec, void *packet, pj_size_t size, const pj_timestamp *at,
                  unsigned *count, pjmedia_frame frames[])
{
    return stream_of(codec)->parse(packet, size, at, count, frames);
}

pj_status_t encode(pjmedia_codec *codec, const pjmedia_frame *input, unsigned room,
                   pjmedia_frame *output)
{
    output->type = PJMEDIA_FRAME_TYPE_AUDIO;
    output->timestamp = input->timestamp;
    return stream_of(codec)->encode(input, room, output);
}

pj_status_t decode(pjmedia_codec *codec, const pjmedia_frame *input, unsigned room,
                   pjmedia_frame *output)
{
    output->type = PJMEDIA_FRAME_TYPE_AUDIO;
    output->timestamp = input->timestamp;
    return stream_of(codec)->decode(input, room, output);
}

pjmedia_codec_op operations = {&do_nothing, &open,   &close,  &modify,
                               &parse,      &encode, &decode, nullptr};

constexpr unsigned kOpusNumber = 96; // pjmedia offers the first that is free

bool is_opus(const pjmedia_codec_info *info) { return pj_stricmp2(&info->encoding_name, "opus") == 0; }

pj_status_t test_alloc(pjmedia_codec_factory *, const pjmedia_codec_info *info)
{
    return info->pt == PJMEDIA_RTP_PT_G722 || is_opus(info) ? PJ_SUCCESS : PJMEDIA_CODEC_EUNSUP;
}

pj_status_t default_attr(pjmedia_codec_factory *, const pjmedia_codec_info *info,
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
    if (is_opus(info)) {
        attr->info.pt = kOpusNumber;
        attr->info.max_rx_frame_size = 2 * kFrame;
        pjmedia_codec_fmtp &told = attr->setting.dec_fmtp;
        told.cnt = 2;
        told.param[0] = {pj_str((char *)"maxplaybackrate"), pj_str((char *)"24000")};
        told.param[1] = {pj_str((char *)"useinbandfec"), pj_str((char *)"1")};
    }
    return PJ_SUCCESS;
}

pj_status_t enum_info(pjmedia_codec_factory *, unsigned *count, pjmedia_codec_info codecs[])
{
    *count = std::min(*count, 2u);
    for (unsigned i = 0; i < *count; ++i) {
        pj_bzero(&codecs[i], sizeof codecs[i]);
        codecs[i].type = PJMEDIA_TYPE_AUDIO;
        codecs[i].encoding_name = pj_str((char *)(i ? "opus" : "G722"));
        codecs[i].pt = i ? kOpusNumber : (unsigned)PJMEDIA_RTP_PT_G722;
        codecs[i].clock_rate = i ? 48000 : 8000;
        codecs[i].channel_cnt = i ? 2 : 1;
    }
    return PJ_SUCCESS;
}

pj_status_t alloc_codec(pjmedia_codec_factory *factory, const pjmedia_codec_info *info,
                        pjmedia_codec **made)
{
    pjmedia_codec *codec = new pjmedia_codec();
    codec->op = &operations;
    codec->factory = factory;
    codec->codec_data = is_opus(info) ? (Stream *)new OpusStream : (Stream *)new G722Stream;
    *made = codec;
    return PJ_SUCCESS;
}

pj_status_t dealloc_codec(pjmedia_codec_factory *, pjmedia_codec *codec)
{
    delete stream_of(codec);
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

NativeNarrow::NativeNarrow() : lower_(24000, 8000) {}

PyObject *NativeNarrow::narrow(PyObject *samples)
{
    return worked(samples, 1, 6, [this](const uint8_t *from, size_t count, uint8_t *to) {
        int16_t wide[3 * G722::kMost], narrow[G722::kMost];
        memcpy(wide, from, 6 * count);
        lower_.run(wide, 3 * count, narrow, count);
        for (size_t i = 0; i < count; ++i)
            to[i] = pjmedia_linear2ulaw(narrow[i]);
    });
}

int nativeRegisterWideCodecs()
{
    pjmedia_codec_g722_deinit();
    pj_bzero(&the_factory, sizeof the_factory);
    the_factory.op = &factory_operations;
    return pjmedia_codec_mgr_register_factory(
        pjmedia_endpt_get_codec_mgr(pjsua_get_pjmedia_endpt()), &the_factory);
}

} // namespace pj
