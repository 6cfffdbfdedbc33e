// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The session description of a message that pjsip has received and not looked into yet: read it,
 * and put a mended one in its place, before pjmedia's parser sees it (gateway.sip.messages.sdp).
 */
#pragma once

#include <Python.h>

namespace pj {

/** The description in the message that is being decided on (signalling.hpp), its whole body or one
 *  part of it, as bytes; None without one. */
PyObject *sessionDescription();

/** Have pjsip take these bytes for it. */
void replaceSessionDescription(PyObject *text);

} // namespace pj
