/*
 * The session description of a message that pjsip has received and not looked into yet: read it,
 * and put a mended one in its place, before pjmedia's parser sees it (gateway.sip.sdp).
 */
#pragma once

#include <Python.h>

namespace pj {

/** The description in this pjsip_rx_data, of a whole body or one part of it; None without one. */
PyObject *sessionDescription(unsigned long long rdata);

/** Have pjsip take these bytes for the description in this pjsip_rx_data. */
void replaceSessionDescription(unsigned long long rdata, PyObject *text);

} // namespace pj
