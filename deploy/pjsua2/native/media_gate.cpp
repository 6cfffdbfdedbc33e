// SPDX-License-Identifier: GPL-2.0-or-later
#include "media_gate.hpp"

#include <pjmedia/stream.h>

extern "C" {
#include <pjsua-lib/pjsua_internal.h>
}

namespace pj {
namespace {

// What serves the call now, and what is to serve it once a description is agreed.
void set_gates(pjsua_call *call, const pj_sockaddr *close_but_for)
{
    auto set = [&](pjsua_call_media *media, unsigned count) {
        for (unsigned i = 0; i < count; ++i) {
            pjmedia_transport *transport = media[i].tp_orig;
            if (close_but_for)
                pjmedia_transport_udp_close_gate(transport, close_but_for);
            else
                pjmedia_transport_udp_open_gate(transport);
        }
    };
    set(call->media, call->med_cnt);
    set(call->media_prov, call->med_prov_cnt);
}

} // namespace

void nativeHoldStream(unsigned long stream, bool held)
{
    pjmedia_stream *s = reinterpret_cast<pjmedia_stream *>(stream);
    if (held)
        pjmedia_stream_pause(s, PJMEDIA_DIR_ENCODING);
    else
        pjmedia_stream_resume(s, PJMEDIA_DIR_ENCODING);
}

void nativeOpenGate(int call)
{
    if (call >= 0 && call < (int)pjsua_call_get_max_count())
        set_gates(&pjsua_var.calls[call], nullptr);
}

void moveGate(pjsip_rx_data *rdata)
{
    const auto &info = rdata->msg_info;
    pjsip_method_e method = info.msg->line.req.method.id;
    if ((method != PJSIP_INVITE_METHOD && method != PJSIP_ACK_METHOD) || !info.to->tag.slen)
        return;
    pjsip_dialog *dialog =
        pjsip_ua_find_dialog(&info.cid->id, &info.to->tag, &info.from->tag, PJ_FALSE);
    auto *call = dialog ? static_cast<pjsua_call *>(dialog->mod_data[pjsua_var.mod.id]) : nullptr;
    pjsip_inv_session *session = call ? call->inv : nullptr;
    if (!session)
        return;
    if (method == PJSIP_INVITE_METHOD) {
        bool anew = info.cseq->cseq > dialog->remote.cseq; // else it comes again
        if (anew && session->state == PJSIP_INV_STATE_CONFIRMED)
            set_gates(call, &rdata->pkt_info.src_addr);
        return;
    }
    // As pjsip itself tells which ACK is the one that is waited for.
    const pjsip_transaction *asked = session->invite_tsx;
    if (asked && asked->role == PJSIP_ROLE_UAS && asked->state >= PJSIP_TSX_STATE_COMPLETED &&
        asked->cseq == info.cseq->cseq)
        set_gates(call, nullptr);
}

} // namespace pj
