// SPDX-License-Identifier: GPL-2.0-or-later
#include "names.hpp"

#include <cctype>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <pjlib.h>

namespace pj {
namespace {

std::mutex mutex_;
std::map<std::string, std::vector<pj_sockaddr>> table_;

std::string lowered(const char *text, size_t length)
{
    std::string name(text, length);
    while (!name.empty() && name.back() == '.')
        name.pop_back();
    for (char &c : name)
        c = (char)std::tolower((unsigned char)c);
    return name;
}

pj_status_t lookUp(int af, const pj_str_t *name, unsigned *count, pj_addrinfo found[])
{
    const unsigned most = *count;
    std::lock_guard<std::mutex> held(mutex_);
    const auto entry = table_.find(lowered(name->ptr, (size_t)name->slen));

    *count = 0;
    if (entry == table_.end())
        return PJ_ERESOLVE;
    for (const pj_sockaddr &address : entry->second) {
        if (*count == most)
            break;
        if (af != pj_AF_UNSPEC() && address.addr.sa_family != af)
            continue;
        pj_addrinfo &one = found[(*count)++];
        pj_bzero(&one, sizeof(one));
        pj_sockaddr_cp(&one.ai_addr, &address);
        pj_ansi_strxcpy(one.ai_canonname, entry->first.c_str(), sizeof(one.ai_canonname));
    }
    return *count ? PJ_SUCCESS : PJ_ERESOLVE;
}

} // namespace

void answerNamesFromTable()
{
    pj_name_lookup = &lookUp;
}

void setNameAddresses(PyObject *name, PyObject *addresses)
{
    Py_ssize_t length = 0;
    const char *text = PyUnicode_AsUTF8AndSize(name, &length);
    PyObject *items = text ? PySequence_Fast(addresses, "a sequence of addresses") : NULL;
    std::vector<pj_sockaddr> kept;

    if (!items) {
        PyErr_Clear();
        return;
    }
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); ++i) {
        const char *literal = PyUnicode_AsUTF8(PySequence_Fast_GET_ITEM(items, i));
        if (!literal) {
            PyErr_Clear();
            continue;
        }
        pj_str_t given = pj_str((char *)literal);
        const int af = pj_strchr(&given, ':') ? pj_AF_INET6() : pj_AF_INET();
        pj_sockaddr address;
        if (pj_sockaddr_init(af, &address, &given, 0) == PJ_SUCCESS)
            kept.push_back(address);
    }
    Py_DECREF(items);
    std::lock_guard<std::mutex> held(mutex_);
    if (kept.empty())
        table_.erase(lowered(text, (size_t)length));
    else
        table_[lowered(text, (size_t)length)] = kept;
}

} // namespace pj
