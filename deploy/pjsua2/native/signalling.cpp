// SPDX-License-Identifier: GPL-2.0-or-later
#include "signalling.hpp"
#include "media_gate.hpp"

#define THIS_FILE "signalling.cpp"

#include <openssl/crypto.h>

#include <cstring>
#include <list>
#include <map>

extern "C" {
#include <pjsua-lib/pjsua_internal.h>
}

namespace pj {
namespace {

constexpr int kPass = -1, kDrop = 0, kServerError = 500;
constexpr size_t kLingerBytes = 1024 * 1024, kMostLingering = 64, kMostHeld = 64;
constexpr long kLingerSeconds = 2;
constexpr const char *kRefusal = "Q.850;cause=88;text=\"SDP not acceptable\"";
constexpr int kBeforeAllLayers = 1;  // the transport layer is 8, transactions 16, dialogs 32
constexpr int kJustBeforePjsua = PJSIP_MOD_PRIORITY_APPLICATION - 1;

// Holds the interpreter's lock, on a thread that may have it already.
struct Locked {
    PyGILState_STATE state = PyGILState_Ensure();
    ~Locked() { PyGILState_Release(state); }
};

struct Decision {
    Decision() { pj_list_init(&headers); }
    Decision(const Decision &) = delete;

    int code = kServerError;
    std::string reason;
    pjsip_hdr headers;  // those to add, in the pool of the message
};

PyObject *bytes_of(const void *data, size_t size)
{
    return PyBytes_FromStringAndSize(static_cast<const char *>(data), (Py_ssize_t)size);
}

PyObject *text_of(const char *data, pj_ssize_t size)
{
    return PyUnicode_DecodeUTF8(data, size > 0 ? size : 0, "replace");
}

const char *transport_of(const pjsip_transport *transport)
{
    switch (transport->key.type & ~PJSIP_TRANSPORT_IPV6) {
    case PJSIP_TRANSPORT_TCP:
        return "tcp";
    case PJSIP_TRANSPORT_TLS:
        return "tls";
    default:
        return "udp";
    }
}

// Whether a dialog of ours has this request, or would have it.
bool in_dialog(const pjsip_rx_data *rdata)
{
    const auto &info = rdata->msg_info;
    if (rdata->msg_info.msg->type != PJSIP_REQUEST_MSG || !info.to->tag.slen)
        return false;
    return pjsip_ua_find_dialog(&info.cid->id, &info.to->tag, &info.from->tag, PJ_FALSE) != nullptr;
}

// Control characters would end a header field, and begin another.
bool printable(const char *text)
{
    for (; *text; ++text) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return false;
    }
    return true;
}

} // namespace

struct NativeSignalling::State {
    pjsip_module first, second, byes;
    PyObject *handler;
    bool opened;
    unsigned retry_after;

    // The endpoint is one a process, and so is this; pjsip's callbacks name nobody.
    static NativeSignalling *current;
    static pjsip_rx_data *deciding;
    static std::string refusal;  // the Reason of the next 488 without one

    // A BYE that is watched; lives in its dialog's pool.
    struct Watch {
        unsigned number;
        const pjsip_transaction *latest;
        bool done;
    };
    static unsigned watches;

    // A connection of which no more is read than to throw it away. Closed with data unread, it would
    // be reset, and the answer lost with it, while its sender is still writing.
    struct Lingering {
        pjsip_transport *transport;
        size_t left;
        pj_timer_entry timer;
    };
    static std::list<Lingering> lingering;
    static std::map<unsigned, pjsip_rx_data *> held;  // until resume
    static unsigned holds;

    static void init_module(pjsip_module &module, const char *name, int priority)
    {
        memset(&module, 0, sizeof module);
        module.name = pj_str(const_cast<char *>(name));
        module.id = -1;
        module.priority = priority;
    }

    static PyObject *arguments(const pjsip_rx_data *rdata)
    {
        const pjsip_msg *msg = rdata->msg_info.msg;
        bool request = msg->type == PJSIP_REQUEST_MSG;
        const pj_str_t &method =
            request ? msg->line.req.method.name : rdata->msg_info.cseq->method.name;
        char local[PJ_INET6_ADDRSTRLEN + 10];
        pj_sockaddr_print(&rdata->tp_info.transport->local_addr, local, sizeof local, 0);
        const pjsip_msg_body *body = msg->body;
        return Py_BuildValue(
            "(NisNNNiNNON)", text_of(rdata->pkt_info.src_name, (pj_ssize_t)strlen(rdata->pkt_info.src_name)),
            rdata->pkt_info.src_port, transport_of(rdata->tp_info.transport),
            text_of(local, (pj_ssize_t)strlen(local)), PyLong_FromVoidPtr(rdata->tp_info.transport),
            text_of(method.ptr, method.slen),
            request ? 0 : msg->line.status.code,
            bytes_of(rdata->msg_info.msg_buf, (size_t)rdata->msg_info.len),
            bytes_of(body ? body->data : "", body ? body->len : 0),
            in_dialog(rdata) ? Py_True : Py_False,
            text_of(rdata->msg_info.cid->id.ptr, rdata->msg_info.cid->id.slen));
    }

    // What a handler's method says; false where it raised or said nothing of use.
    static bool decided(PyObject *said, pj_pool_t *pool, Decision &decision)
    {
        PyObject *headers;
        const char *reason;
        int code;
        if (!said || !PyTuple_Check(said) ||
            !PyArg_ParseTuple(said, "iO!s", &code, &PyTuple_Type, &headers, &reason))
            return false;
        if (code != kPass && code != kDrop && (code < 200 || code > 699))
            return false;
        if (!printable(reason))
            return false;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(headers); ++i) {
            const char *name, *value;
            PyObject *pair = PyTuple_GET_ITEM(headers, i);
            if (!PyTuple_Check(pair) || !PyArg_ParseTuple(pair, "ss", &name, &value) ||
                !printable(name) || !printable(value))
                return false;
            pj_str_t key, text;
            pj_strdup2_with_null(pool, &key, name);
            pj_strdup2_with_null(pool, &text, value);
            pj_list_push_back(&decision.headers, pjsip_generic_string_hdr_create(pool, &key, &text));
        }
        decision.code = code;
        decision.reason = reason;
        return true;
    }

    static void ask(const char *method, pjsip_rx_data *rdata, Decision &decision)
    {
        Locked locked;
        PyObject *said = nullptr;
        pjsip_rx_data *before = deciding;
        deciding = rdata;
        PyObject *callback =
            current->state_->handler ? PyObject_GetAttrString(current->state_->handler, method) : nullptr;
        PyObject *values = callback ? arguments(rdata) : nullptr;
        if (values)
            said = PyObject_CallObject(callback, values);
        if (!decided(said, rdata->tp_info.pool, decision)) {
            PyErr_Clear();
            ++current->failures_;
            decision.code = kServerError;
            decision.reason.clear();
            pj_list_init(&decision.headers);
        }
        deciding = before;
        Py_XDECREF(said);
        Py_XDECREF(values);
        Py_XDECREF(callback);
    }

    static pj_bool_t screen(const char *method, pjsip_rx_data *rdata)
    {
        if (!current)
            return PJ_TRUE;
        Decision decision;
        ask(method, rdata, decision);
        if (decision.code == kPass)
            return PJ_FALSE;
        if (decision.code == kDrop || rdata->msg_info.msg->line.req.method.id == PJSIP_ACK_METHOD)
            return PJ_TRUE;
        pj_str_t reason = pj_str(const_cast<char *>(decision.reason.c_str()));
        pjsip_endpt_respond_stateless(pjsua_get_pjsip_endpt(), rdata, decision.code,
                                      decision.reason.empty() ? nullptr : &reason,
                                      &decision.headers, nullptr);
        return PJ_TRUE;
    }

    static pj_bool_t on_first(pjsip_rx_data *rdata)
    {
        if (thrown_away(rdata->tp_info.transport, (size_t)rdata->msg_info.len) ||
            screen("on_message", rdata))
            return PJ_TRUE;
        make_reachable(rdata);
        moveGate(rdata);
        return PJ_FALSE;
    }

    // A Contact that no request of ours could get to stands for where its request came from: a
    // browser's "x.invalid", a WebSocket, a TLS connection or an IPv6 address that is not the way
    // this one came. With a Record-Route the proxy knows the way.
    static void make_reachable(pjsip_rx_data *rdata)
    {
        if (rdata->msg_info.record_route)
            return;
        auto *contact = static_cast<pjsip_contact_hdr *>(
            pjsip_msg_find_hdr(rdata->msg_info.msg, PJSIP_H_CONTACT, nullptr));
        if (!contact || contact->star || !contact->uri)
            return;
        auto *uri = static_cast<pjsip_sip_uri *>(pjsip_uri_get_uri(contact->uri));
        if (!PJSIP_URI_SCHEME_IS_SIP(uri) && !PJSIP_URI_SCHEME_IS_SIPS(uri))
            return;
        const pjsip_transport *transport = rdata->tp_info.transport;
        int came_by = transport->key.type & ~PJSIP_TRANSPORT_IPV6;
        static const pj_str_t invalid = {const_cast<char *>(".invalid"), 8};
        pj_str_t end = uri->host;
        if (end.slen > invalid.slen) {
            end.ptr += end.slen - invalid.slen;
            end.slen = invalid.slen;
        }
        bool other_way = false;
        if (uri->transport_param.slen) {
            int named = pjsip_transport_get_type_from_name(&uri->transport_param);
            other_way = named != came_by && named != PJSIP_TRANSPORT_UDP && named != PJSIP_TRANSPORT_TCP;
        }
        bool other_family = pj_strchr(&uri->host, ':') &&
                            !(transport->key.type & PJSIP_TRANSPORT_IPV6);
        if (!other_way && !other_family && pj_stricmp(&end, &invalid) != 0)
            return;
        pj_strdup2(rdata->tp_info.pool, &uri->host, rdata->pkt_info.src_name);
        uri->port = rdata->pkt_info.src_port;
        if (came_by == PJSIP_TRANSPORT_UDP)
            uri->transport_param.slen = 0;
        else
            pj_strdup2(rdata->tp_info.pool, &uri->transport_param, transport_of(transport));
    }

    static pj_bool_t on_second(pjsip_rx_data *rdata)
    {
        return pjsip_rdata_get_dlg(rdata) ? PJ_FALSE : screen("on_request", rdata);
    }

    // Whatever refuses an INVITE for want of something says when to try again (RFC 3261 20.33).
    static pj_status_t on_tx_response(pjsip_tx_data *tdata)
    {
        static const pj_str_t retry = {const_cast<char *>("Retry-After"), 11};
        static const pj_str_t reason = {const_cast<char *>("Reason"), 6};
        pjsip_msg *msg = tdata->msg;
        const int code = msg->line.status.code;
        if (!current || (code != PJSIP_SC_SERVICE_UNAVAILABLE && code != PJSIP_SC_NOT_ACCEPTABLE_HERE) ||
            pjsip_tx_data_is_valid(tdata))
            return PJ_SUCCESS;
        auto *cseq = static_cast<pjsip_cseq_hdr *>(pjsip_msg_find_hdr(msg, PJSIP_H_CSEQ, nullptr));
        if (code == PJSIP_SC_NOT_ACCEPTABLE_HERE) {
            if (!pjsip_msg_find_hdr_by_name(msg, &reason, nullptr)) {
                pj_str_t value = {const_cast<char *>(refusal.data()), (pj_ssize_t)refusal.size()};
                auto *header = pjsip_generic_string_hdr_create(tdata->pool, &reason, nullptr);
                pj_strdup(tdata->pool, &header->hvalue, &value);
                pjsip_msg_add_hdr(msg, reinterpret_cast<pjsip_hdr *>(header));
            }
            refusal = kRefusal;
        } else if (current->state_->retry_after && cseq && cseq->method.id == PJSIP_INVITE_METHOD &&
                   !pjsip_msg_find_hdr_by_name(msg, &retry, nullptr)) {
            auto *header = pjsip_retry_after_hdr_create(tdata->pool, (int)current->state_->retry_after);
            pjsip_msg_add_hdr(msg, reinterpret_cast<pjsip_hdr *>(header));
        }
        return PJ_SUCCESS;
    }

    // Ends a call into Python whose result nobody waits for; errors are counted.
    static void told(PyObject *done)
    {
        if (PyErr_Occurred()) {
            PyErr_Clear();
            ++current->errors_;
        }
        Py_XDECREF(done);
    }

    // Below the layer that prints messages, so that its bytes are those sent.
    static pj_status_t on_sent(pjsip_tx_data *tdata)
    {
        const auto *cid = static_cast<pjsip_cid_hdr *>(
            pjsip_msg_find_hdr(tdata->msg, PJSIP_H_CALL_ID, nullptr));
        const auto *cseq =
            static_cast<pjsip_cseq_hdr *>(pjsip_msg_find_hdr(tdata->msg, PJSIP_H_CSEQ, nullptr));
        if (!current || !current->shows_sent_ || !cid || !cseq || !tdata->tp_info.transport ||
            !pjsip_tx_data_is_valid(tdata))
            return PJ_SUCCESS;
        Locked locked;
        PyObject *handler = current->state_->handler;
        PyObject *done =
            handler ? PyObject_CallMethod(
                          handler, "on_sent", "(NNsisN)", text_of(cid->id.ptr, cid->id.slen),
                          text_of(cseq->method.name.ptr, cseq->method.name.slen),
                          tdata->tp_info.dst_name, tdata->tp_info.dst_port,
                          transport_of(tdata->tp_info.transport),
                          bytes_of(tdata->buf.start, (size_t)(tdata->buf.cur - tdata->buf.start)))
                    : nullptr;
        told(done); // it is only looked at: the message is sent whatever Python says
        return PJ_SUCCESS;
    }

    static pj_bool_t on_response(pjsip_rx_data *rdata)
    {
        if (!current)
            return PJ_TRUE;
        if (thrown_away(rdata->tp_info.transport, (size_t)rdata->msg_info.len))
            return PJ_TRUE;
        unsigned before = current->failures_;
        Decision decision;
        ask("on_message", rdata, decision);
        if (decision.code == kDrop || current->failures_ != before)
            return PJ_TRUE;
        if (decision.code != kPass)
            rdata->msg_info.msg->line.status.code = decision.code;
        return PJ_FALSE;
    }

    static void on_tsx_state(pjsip_transaction *tsx, pjsip_event *event)
    {
        pjsip_dialog *dialog = pjsip_tsx_get_dlg(tsx);
        if (!current || !dialog || event->type != PJSIP_EVENT_TSX_STATE ||
            tsx->role != PJSIP_ROLE_UAC || tsx->method.id != PJSIP_BYE_METHOD)
            return;
        auto *watch = static_cast<Watch *>(dialog->mod_data[current->state_->byes.id]);
        if (!watch || watch->done)
            return;
        int status;
        switch (event->body.tsx_state.type) {
        case PJSIP_EVENT_TX_MSG:
            watch->latest = tsx;  // a challenge is answered with another BYE
            return;
        case PJSIP_EVENT_TRANSPORT_ERROR:
            status = 0;
            break;
        case PJSIP_EVENT_TIMER:
            if (tsx != watch->latest)
                return;
            status = PJSIP_SC_REQUEST_TIMEOUT;
            break;
        case PJSIP_EVENT_RX_MSG:
            status = event->body.tsx_state.src.rdata->msg_info.msg->line.status.code;
            if (tsx != watch->latest || status < 200)
                return;
            break;
        default:
            return;
        }
        watch->done = true;
        tell("on_bye", (int)watch->number, status);
    }

    static void on_options(void *token, pjsip_event *event)
    {
        bool answered = event->type == PJSIP_EVENT_TSX_STATE &&
                        event->body.tsx_state.type == PJSIP_EVENT_RX_MSG;
        int status =
            answered ? event->body.tsx_state.src.rdata->msg_info.msg->line.status.code : 0;
        tell("on_options", (int)(pj_ssize_t)token, status);
    }

    static void on_unread(pjsip_tp_dropped_data *dropped)
    {
        pjsip_rx_data *rdata = dropped->rdata;
        if (!current || !rdata || dropped->status == PJ_EIGNORED)
            return;
        pjsip_transport *transport = dropped->tp;
        if (thrown_away(transport, dropped->len))
            return;
        std::string answer = answer_to_unread(
            rdata, dropped->status == PJSIP_ERXOVERFLOW ? PJSIP_SC_MESSAGE_TOO_LARGE
                                                         : PJSIP_SC_BAD_REQUEST,
            dropped->data, dropped->len);
        if (!answer.empty()) {
            pjsip_tpselector selector;
            pj_bzero(&selector, sizeof selector);
            selector.type = PJSIP_TPSELECTOR_TRANSPORT;
            selector.u.transport = transport;
            pjsip_tpmgr_send_raw(pjsip_endpt_get_tpmgr(pjsua_get_pjsip_endpt()),
                                 (pjsip_transport_type_e)transport->key.type, &selector, nullptr,
                                 answer.data(), answer.size(), &rdata->pkt_info.src_addr,
                                 rdata->pkt_info.src_addr_len, nullptr, nullptr);
        }
        // Where the next message of a stream begins is known only if this one's end was found.
        if (!(transport->flag & PJSIP_TRANSPORT_DATAGRAM) && dropped->status != PJSIP_EINVALIDMSG) {
            linger(transport);
            pjsip_transport_shutdown2(transport, PJ_TRUE);
        }
    }

    // Keeps a connection that is being shut down open for a while; beyond so many it is not kept.
    static void linger(pjsip_transport *transport)
    {
        if (lingering.size() >= kMostLingering)
            return;
        lingering.push_back({transport, kLingerBytes, {}});
        Lingering &entry = lingering.back();
        pj_timer_entry_init(&entry.timer, 0, &entry, &on_lingered);
        const pj_time_val delay = {kLingerSeconds, 0};
        pj_status_t status =
            pjsip_endpt_schedule_timer(pjsua_get_pjsip_endpt(), &entry.timer, &delay);
        if (status == PJ_SUCCESS)
            pjsip_transport_add_ref(transport);
        else
            lingering.pop_back();
    }

    static void on_lingered(pj_timer_heap_t *, pj_timer_entry *timer)
    {
        auto *entry = static_cast<Lingering *>(timer->user_data);
        pjsip_transport *transport = entry->transport;
        lingering.remove_if([entry](const Lingering &one) { return &one == entry; });
        pjsip_transport_dec_ref(transport);
    }

    // Whether this came by a connection of which nothing is read any more.
    static bool thrown_away(pjsip_transport *transport, size_t size)
    {
        for (Lingering &one : lingering) {
            if (one.transport != transport)
                continue;
            one.left -= size < one.left ? size : one.left;
            if (!one.left) {
                pjsip_endpt_cancel_timer(pjsua_get_pjsip_endpt(), &one.timer);
                on_lingered(nullptr, &one.timer);
            }
            return true;
        }
        return false;
    }

    static std::string answer_to_unread(pjsip_rx_data *rdata, int status, const void *data,
                                        size_t size)
    {
        Locked locked;
        std::string answer;
        PyObject *handler = current->state_->handler;
        pjsip_rx_data *before = deciding;
        deciding = rdata;
        PyObject *said =
            handler ? PyObject_CallMethod(handler, "on_unread", "(sisiN)", rdata->pkt_info.src_name,
                                          rdata->pkt_info.src_port,
                                          transport_of(rdata->tp_info.transport), status,
                                          bytes_of(data, size))
                    : nullptr;
        if (said && PyBytes_Check(said)) {
            answer.assign(PyBytes_AS_STRING(said), (size_t)PyBytes_GET_SIZE(said));
        } else {
            PyErr_Clear();
            ++current->failures_;
        }
        deciding = before;
        Py_XDECREF(said);
        return answer;
    }

    // Whether a dialog or an INVITE of ours has this request.
    static bool known(pjsip_rx_data *rdata)
    {
        if (rdata->msg_info.msg->line.req.method.id != PJSIP_CANCEL_METHOD)
            return in_dialog(rdata);
        pj_str_t key;
        return pjsip_tsx_create_key(rdata->tp_info.pool, &key, PJSIP_ROLE_UAS,
                                    pjsip_get_invite_method(), rdata) == PJ_SUCCESS &&
               pjsip_tsx_layer_find_tsx(&key, PJ_FALSE) != nullptr;
    }

    // Parses `size` bytes of rdata's packet, as the transport manager does it.
    static bool readable(pjsip_rx_data *rdata, size_t size)
    {
        auto &info = rdata->msg_info;
        pj_bzero(&info, sizeof info);
        pj_list_init(&info.parse_err);
        info.msg = pjsip_parse_rdata(rdata->pkt_info.packet, size, rdata);
        return info.msg && pj_list_empty(&info.parse_err) && info.cid && info.cid->id.slen &&
               info.from && info.to && info.via && info.cseq;
    }

    static void tell(const char *method, int first, int second)
    {
        if (!current)
            return;
        Locked locked;
        PyObject *handler = current->state_->handler;
        PyObject *done = handler ? PyObject_CallMethod(handler, method, "ii", first, second) : nullptr;
        told(done);
    }
};

NativeSignalling *NativeSignalling::State::current = nullptr;
pjsip_rx_data *NativeSignalling::State::deciding = nullptr;
std::string NativeSignalling::State::refusal = kRefusal;
unsigned NativeSignalling::State::watches = 0;
std::list<NativeSignalling::State::Lingering> NativeSignalling::State::lingering;
std::map<unsigned, pjsip_rx_data *> NativeSignalling::State::held;
unsigned NativeSignalling::State::holds = 0;

NativeSignalling::NativeSignalling(PyObject *handler, unsigned retry_after)
    : state_(new State()), failures_(0), errors_(0), shows_sent_(false)
{
    state_->retry_after = retry_after;
    State::init_module(state_->first, "mod-gateway-first", kBeforeAllLayers);
    state_->first.on_rx_request = &State::on_first;
    state_->first.on_rx_response = &State::on_response;
    state_->first.on_tx_request = &State::on_sent;
    state_->first.on_tx_response = &State::on_sent;
    State::init_module(state_->second, "mod-gateway-requests", kJustBeforePjsua);
    state_->second.on_rx_request = &State::on_second;
    state_->second.on_tx_response = &State::on_tx_response;
    // Behind pjsip's own usage (48), which answers a challenge with another BYE.
    State::init_module(state_->byes, "mod-gateway-byes", kJustBeforePjsua);
    state_->byes.on_tsx_state = &State::on_tsx_state;
    Py_INCREF(handler);
    state_->handler = handler;
}

NativeSignalling::~NativeSignalling()
{
    close();
    delete state_;
}

void NativeSignalling::open() PJSUA2_THROW(Error)
{
    if (State::current || !pjsua_get_pjsip_endpt())
        PJSUA2_RAISE_ERROR(PJ_EINVALIDOP);
    State::current = this;
    state_->opened = true;
    pjsip_tpmgr_set_drop_data_cb(pjsip_endpt_get_tpmgr(pjsua_get_pjsip_endpt()), &State::on_unread);
    for (pjsip_module *module : {&state_->first, &state_->second, &state_->byes}) {
        pj_status_t status = pjsip_endpt_register_module(pjsua_get_pjsip_endpt(), module);
        if (status != PJ_SUCCESS)
            PJSUA2_RAISE_ERROR(status);
    }
}

void NativeSignalling::close()
{
    // The endpoint's end has unregistered the modules.
    if (state_->opened && pjsua_get_pjsip_endpt()) {
        for (pjsip_module *module : {&state_->first, &state_->second, &state_->byes}) {
            if (module->id != -1)
                pjsip_endpt_unregister_module(pjsua_get_pjsip_endpt(), module);
        }
    }
    state_->opened = false;
    State::lingering.clear();  // with the endpoint went their timers and connections
    State::held.clear();       // and their pools
    if (State::current == this)
        State::current = nullptr;
    PyObject *handler = state_->handler;
    state_->handler = nullptr;
    Py_XDECREF(handler);
}

PyObject *NativeSignalling::headers(const std::string &name) const
{
    pjsip_rx_data *rdata = State::deciding;
    if (!rdata) {
        PyErr_SetString(PyExc_RuntimeError, "no message is being decided on");
        return nullptr;
    }
    PyObject *found = PyList_New(0);
    pj_str_t wanted = {const_cast<char *>(name.data()), (pj_ssize_t)name.size()};
    std::string text(PJSIP_MAX_PKT_LEN + 256, '\0');
    const pjsip_hdr *all = &rdata->msg_info.msg->hdr;
    for (const pjsip_hdr *hdr = all->next; found && hdr != all; hdr = hdr->next) {
        if (pj_stricmp(&hdr->name, &wanted) && pj_stricmp(&hdr->sname, &wanted))
            continue;
        int size = pjsip_hdr_print_on(const_cast<pjsip_hdr *>(hdr), &text[0], text.size());
        const char *colon = size > 0 ? (const char *)memchr(text.data(), ':', (size_t)size) : nullptr;
        if (!colon)
            continue;
        const char *end = text.data() + size;
        for (++colon; colon < end && *colon == ' '; ++colon) {
        }
        PyObject *value = text_of(colon, end - colon);
        if (!value || PyList_Append(found, value) != 0)
            Py_CLEAR(found);
        Py_XDECREF(value);
    }
    PyObject *result = found ? PyList_AsTuple(found) : nullptr;
    Py_XDECREF(found);
    return result;
}

bool NativeSignalling::receiveInstead(PyObject *bytes, bool known_only)
{
    pjsip_rx_data *came = State::deciding;
    char *text;
    Py_ssize_t size;
    if (!came || PyBytes_AsStringAndSize(bytes, &text, &size) != 0 || size <= 0 ||
        size >= PJSIP_MAX_PKT_LEN) {
        PyErr_Clear();
        return false;
    }
    pjsip_endpoint *endpoint = pjsua_get_pjsip_endpt();
    pj_pool_t *pool = pjsip_endpt_create_pool(endpoint, "instead%p", PJSIP_POOL_RDATA_LEN,
                                              PJSIP_POOL_RDATA_INC);
    auto *rdata = PJ_POOL_ZALLOC_T(pool, pjsip_rx_data);
    rdata->tp_info.pool = pool;
    rdata->tp_info.transport = came->tp_info.transport;
    rdata->tp_info.op_key.rdata = rdata;
    auto &packet = rdata->pkt_info;
    packet.timestamp = came->pkt_info.timestamp;
    packet.src_addr = came->pkt_info.src_addr;
    packet.src_addr_len = came->pkt_info.src_addr_len;
    memcpy(packet.src_name, came->pkt_info.src_name, sizeof packet.src_name);
    packet.src_port = came->pkt_info.src_port;
    // Parsing changes the packet: once to see whether it will do, and once for pjsip.
    auto put = [&] {
        memcpy(packet.packet, text, (size_t)size);
        packet.packet[size] = '\0';
        packet.len = size;
    };
    put();
    bool good = State::readable(rdata, (size_t)size) &&
                (!known_only || (rdata->msg_info.msg->type == PJSIP_REQUEST_MSG && State::known(rdata)));
    if (good) {
        put();
        // It may send, and so has to let go of the interpreter, which asks again for itself.
        Py_BEGIN_ALLOW_THREADS
        pjsip_tpmgr_receive_packet(pjsip_endpt_get_tpmgr(endpoint), rdata);
        Py_END_ALLOW_THREADS
    }
    pjsip_endpt_release_pool(endpoint, pool);
    return good;
}

unsigned NativeSignalling::hold()
{
    pjsip_rx_data *copy;
    if (!State::deciding || State::held.size() >= kMostHeld ||
        pjsip_rx_data_clone(State::deciding, 0, &copy) != PJ_SUCCESS)
        return 0;
    State::held[++State::holds] = copy;
    return State::holds;
}

bool NativeSignalling::resume(unsigned number)
{
    auto found = State::held.find(number);
    if (found == State::held.end() || State::current != this)
        return false;
    pjsip_rx_data *rdata = found->second;
    State::held.erase(found);
    State::make_reachable(rdata);
    pjsip_process_rdata_param param;
    pjsip_process_rdata_param_default(&param);
    param.start_mod = &state_->first;
    param.idx_after_start = 1;
    pj_status_t status =
        pjsip_endpt_process_rx_data(pjsua_get_pjsip_endpt(), rdata, &param, nullptr);
    pjsip_rx_data_free_cloned(rdata);
    return status == PJ_SUCCESS;
}

unsigned NativeSignalling::watchBye(Call &call)
{
    int id = call.getId();
    if (State::current != this || id < 0 || id >= (int)pjsua_call_get_max_count() ||
        pjsua_call_get_user_data(id) != &call)
        return 0;
    pjsip_inv_session *session = pjsua_var.calls[id].inv;
    pjsip_dialog *dialog = session ? session->dlg : nullptr;
    if (!dialog)
        return 0;
    auto *watch = static_cast<State::Watch *>(dialog->mod_data[state_->byes.id]);
    if (watch) {
        watch->done = false;
        return watch->number;
    }
    watch = PJ_POOL_ZALLOC_T(dialog->pool, State::Watch);
    if (pjsip_dlg_add_usage(dialog, &state_->byes, watch) != PJ_SUCCESS)
        return 0;
    return watch->number = ++State::watches;
}

int NativeSignalling::sendOptions(int account, const std::string &uri, int token)
{
    pj_str_t target = {const_cast<char *>(uri.data()), (pj_ssize_t)uri.size()};
    pjsip_tx_data *request;
    pj_status_t status =
        pjsua_acc_create_request(account, pjsip_get_options_method(), &target, &request);
    if (status == PJ_SUCCESS) {
        status = pjsip_endpt_send_request(pjsua_get_pjsip_endpt(), request, -1,
                                          (void *)(pj_ssize_t)token, &State::on_options);
    }
    return status;
}

int nativeRespond(const SipRxData &request, int status)
{
    auto *rdata = static_cast<pjsip_rx_data *>(request.pjRxData);
    pjsip_dialog *dialog = rdata ? pjsip_rdata_get_dlg(rdata) : nullptr;
    pjsip_transaction *transaction = rdata ? pjsip_rdata_get_tsx(rdata) : nullptr;
    if (!dialog || !transaction)
        return PJ_EINVALIDOP;
    return pjsip_dlg_respond(dialog, rdata, status, nullptr, nullptr, nullptr);
}

void nativeExplainRefusal(const std::string &reason)
{
    NativeSignalling::State::refusal = reason;
}

pjsip_rx_data *messageBeingDecided() { return NativeSignalling::State::deciding; }

unsigned nativeCallCount() { return pjsua_call_get_count(); }

void nativeLogLevel(int level) { pj_log_set_level(level); }

std::string nativeTlsLibrary() { return OpenSSL_version(OPENSSL_VERSION); }

} // namespace pj
