// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The host names that pjsip may know. Its own way is to ask the system's resolver on the SIP thread,
 * which waits; patches/names-answered-without-waiting.patch has it ask this table instead.
 */
#pragma once

#include <Python.h>

namespace pj {

/** Answer pjsip's questions for names from the table from now on, and never by asking anybody. */
void answerNamesFromTable();

/** What a name stands for: a sequence of IP literals, IPv4 or IPv6; an empty one forgets it. */
void setNameAddresses(PyObject *name, PyObject *addresses);

} // namespace pj
