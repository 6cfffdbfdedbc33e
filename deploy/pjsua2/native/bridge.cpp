// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge.hpp"

#include <atomic>
#include <mutex>
#include <vector>

extern "C" {
#include <pjsua-lib/pjsua_internal.h>
}

namespace pj {
namespace {

constexpr size_t kMostKept = 64;

struct Failure {
    int operation;
    unsigned source, sink;
    int status;
};

std::mutex mutex;
std::vector<Failure> failures;
std::atomic<unsigned> failed{0};
std::atomic<unsigned long> disconnected{0};

// On the thread of the media clock; on that of signalling for a port that is taken away before its
// first beat, and for what was to become of it.
void on_operation(const pjmedia_conf_op_info *info)
{
    const bool disconnects = info->op_type == PJMEDIA_CONF_OP_DISCONNECT_PORTS;
    if (disconnects)
        disconnected.fetch_add(1, std::memory_order_release);
    if (info->status == PJ_SUCCESS || info->status == PJ_ECANCELLED)
        return;
    failed.fetch_add(1, std::memory_order_relaxed);
    const auto &param = info->op_param;
    Failure one{info->op_type, param.add_port.port, param.add_port.port, info->status};
    if (info->op_type == PJMEDIA_CONF_OP_CONNECT_PORTS)
        one.sink = param.connect_ports.sink;
    else if (disconnects)
        one.sink = param.disconnect_ports.sink;
    std::lock_guard<std::mutex> hold(mutex);
    if (failures.size() < kMostKept)
        failures.push_back(one);
}

} // namespace

void nativeWatchBridge() { pjmedia_conf_set_op_cb(pjsua_var.mconf, &on_operation); }

unsigned long nativeDisconnections() { return disconnected.load(std::memory_order_acquire); }

unsigned nativeBridgeFailures() { return failed.load(std::memory_order_relaxed); }

PyObject *nativeTakeBridgeFailures()
{
    std::vector<Failure> taken;
    {
        std::lock_guard<std::mutex> hold(mutex);
        taken.swap(failures);
    }
    PyObject *list = PyList_New((Py_ssize_t)taken.size());
    for (size_t i = 0; list && i < taken.size(); ++i)
        PyList_SET_ITEM(list, (Py_ssize_t)i,
                        Py_BuildValue("(iIIi)", taken[i].operation, taken[i].source, taken[i].sink,
                                      taken[i].status));
    return list;
}

} // namespace pj
