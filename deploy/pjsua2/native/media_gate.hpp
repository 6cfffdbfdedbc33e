// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Whether a stream may send: an address that nobody has confirmed gets nothing.
 */
#pragma once

#include <pjsua2.hpp>

namespace pj {

/** Hold what a stream sends, RTP and (with patches/hold-rtcp-with-rtp.patch) RTCP, or let it go on.
 *  `stream` is the address of that of on_stream_created; not to be used after on_stream_destroyed. */
void nativeHoldStream(unsigned long stream, bool held);

} // namespace pj
