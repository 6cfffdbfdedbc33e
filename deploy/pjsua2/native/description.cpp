// SPDX-License-Identifier: GPL-2.0-or-later
#include "description.hpp"
#include "signalling.hpp"

#include <cstring>

#include <pjsip.h>

namespace pj {
namespace {

const int kDepth = 3; // of multiparts in multiparts

/* The body of the description in a multipart or in one within it (RFC 2046 section 5.1); NULL without. */
pjsip_msg_body *described_in(pj_pool_t *pool, pjsip_msg_body *multipart, pjsip_media_type *sdp,
                             int depth)
{
    pjsip_multipart_part *part = pjsip_multipart_find_part(multipart, sdp, NULL);
    if (part)
        return part->body;
    for (part = depth < kDepth ? pjsip_multipart_get_first_part(multipart) : NULL; part;
         part = pjsip_multipart_get_next_part(multipart, part)) {
        pjsip_msg_body *inner = part->body;
        if (pj_stricmp2(&inner->content_type.type, "multipart") != 0 || !inner->len)
            continue;
        inner = pjsip_multipart_parse(pool, (char *)inner->data, inner->len, &inner->content_type, 0);
        pjsip_msg_body *found = inner ? described_in(pool, inner, sdp, depth + 1) : NULL;
        if (found)
            return found;
    }
    return NULL;
}

/* Where it is; NULL without one. pjsip looks at the outer multipart only: one within another is made
 * the body of the message. */
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
    if (part)
        return part->body;
    pjsip_msg_body *inner = described_in(rdata->tp_info.pool, body, &sdp, 0);
    if (inner) {
        message->body = inner;
        if (rdata->msg_info.ctype)
            pjsip_media_type_cp(rdata->tp_info.pool, &rdata->msg_info.ctype->media,
                                &inner->content_type);
    }
    return inner;
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
