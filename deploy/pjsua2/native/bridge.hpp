// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What became of the operations of pjmedia's conference bridge. It queues them for the thread of the
 * media clock, which pjsua2 would have enter the interpreter for each: all calls would wait for its lock.
 */
#pragma once

#include <Python.h>

#include <pjsua2.hpp>

namespace pj {

/** Have operations followed here, and no more by pjsua2. After libInit. */
void nativeWatchBridge();
/** How many connections have been taken away, or were found to be none, since the start. */
unsigned long nativeDisconnections();
/** How many operations have failed since the start. */
unsigned nativeBridgeFailures();
/** Those since the last time, some dozens at most: (operation, source, sink, status), by the numbers of
 *  ports; operations as in pjmedia_conf_op_type. */
PyObject *nativeTakeBridgeFailures();

} // namespace pj
