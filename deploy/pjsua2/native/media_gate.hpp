// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Whether media may be sent, and where to: an address that nobody has confirmed gets nothing.
 */
#pragma once

#include <pjsua2.hpp>

struct pjsip_rx_data;

namespace pj {

/** Hold what a stream sends, RTP and (with patches/hold-rtcp-with-rtp.patch) RTCP, or let it go on.
 *  `stream` is the address of that of on_stream_created; not to be used after on_stream_destroyed. */
void nativeHoldStream(unsigned long stream, bool held);

/** Let the media of a call go wherever its descriptions say, before its ACK: its caller is known. */
void nativeOpenGate(int call);

#ifndef SWIG
/** Close the gates (patches/media-gate.patch) of the call that this re-INVITE is for, or open them
 *  at its ACK. Before pjsip's own layers. */
void moveGate(pjsip_rx_data *rdata);
#endif

} // namespace pj
