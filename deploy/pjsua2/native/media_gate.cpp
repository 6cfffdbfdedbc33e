// SPDX-License-Identifier: GPL-2.0-or-later
#include "media_gate.hpp"

#include <pjmedia/stream.h>

namespace pj {

void nativeHoldStream(unsigned long stream, bool held)
{
    pjmedia_stream *s = reinterpret_cast<pjmedia_stream *>(stream);
    if (held)
        pjmedia_stream_pause(s, PJMEDIA_DIR_ENCODING);
    else
        pjmedia_stream_resume(s, PJMEDIA_DIR_ENCODING);
}

} // namespace pj
