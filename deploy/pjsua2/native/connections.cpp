// SPDX-License-Identifier: GPL-2.0-or-later
#include "connections.hpp"

#include <pjsip/sip_transport.h>

namespace pj {

std::string nativeConnectedFrom(unsigned long transport)
{
    const pjsip_transport *tp = reinterpret_cast<const pjsip_transport *>(transport);
    char address[PJ_INET6_ADDRSTRLEN + 1];
    if (tp->dir != PJSIP_TP_DIR_INCOMING)
        return "";
    return pj_sockaddr_print(&tp->key.rem_addr, address, sizeof address, 0);
}

void nativeShutConnection(unsigned long transport)
{
    pjsip_transport_shutdown(reinterpret_cast<pjsip_transport *>(transport));
}

} // namespace pj
