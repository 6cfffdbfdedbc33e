// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Who is at the other end of a TCP or TLS connection, where pjsua2 tells only that there is one.
 */
#pragma once

#include <string>

#include <pjsua2.hpp>

namespace pj {

/** The IP address of who has connected to us; empty for a connection that we made. Only within
 *  on_transport_state, or while the transport lives. `transport` is the address of its handle. */
std::string nativeConnectedFrom(unsigned long transport);

/** Close a connection, once no transaction needs it any more. */
void nativeShutConnection(unsigned long transport);

} // namespace pj
