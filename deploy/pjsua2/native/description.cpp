// SPDX-License-Identifier: GPL-2.0-or-later
#include "description.hpp"
#include "signalling.hpp"

#include <cstring>

#include <pjsip.h>

namespace pj {
namespace {

/* Where it is; NULL without one. */
pjsip_msg_body *described(pjsip_rx_data *rdata)
{
    pjsip_msg *message = rdata ? rdata->msg_info.msg : NULL;
    pjsip_msg_body *body = message ? message->body : NULL;
    pjsip_media_type sdp;

    if (!body)
        return NULL;
    pjsip_media_type_init2(&sdp, (char *)"application", (char *)"sdp");
    if (pj_stricmp(&body->content_type.type, &sdp.type) == 0 &&
        pj_stricmp(&body->content_type.subtype, &sdp.subtype) == 0)
        return body;
    if (pj_stricmp2(&body->content_type.type, "multipart") != 0)
        return NULL;
    pjsip_multipart_part *part = pjsip_multipart_find_part(body, &sdp, NULL);
    return part ? part->body : NULL;
}

} // namespace

PyObject *sessionDescription()
{
    pjsip_msg_body *body = described(messageBeingDecided());
    if (!body || !body->data)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)body->data, (Py_ssize_t)body->len);
}

void replaceSessionDescription(PyObject *text)
{
    pjsip_rx_data *data = messageBeingDecided();
    pjsip_msg_body *body = described(data);
    char *bytes = NULL;
    Py_ssize_t length = 0;

    if (!body || PyBytes_AsStringAndSize(text, &bytes, &length) != 0) {
        PyErr_Clear();
        return;
    }
    char *copy = (char *)pj_pool_alloc(data->tp_info.pool, (pj_size_t)length + 1);
    std::memcpy(copy, bytes, (size_t)length);
    copy[length] = '\0';
    body->data = copy;
    body->len = (unsigned)length;
}

} // namespace pj
