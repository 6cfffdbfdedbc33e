// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What stands between pjsip and pjsua: Python decides on every message before pjsua sees it, and is
 * told what became of the BYEs and of the OPTIONS that it sent.
 *
 * It fails closed: a request on which Python cannot decide is answered with 500 (an ACK dropped), a
 * response is dropped, and both are counted. All of it runs on the thread that polls pjsip.
 */
#pragma once

#include <Python.h>

#include <atomic>
#include <string>

#include <pjsua2.hpp>

struct pjsip_rx_data;

namespace pj {

class NativeSignalling {
public:
    /**
     * handler: a Python object with these methods. The first two return a decision: a tuple of an
     * int (-1 pass, 0 drop, else the status to answer with or, of a response, to take it for), a
     * tuple of (name, value) of header fields to add, and a reason phrase (empty: the usual one).
     *
     *  - on_message(*message): every request and response, before pjsip's own layers;
     *  - on_request(*message): a new request outside of dialogs, just before pjsua;
     *  - on_bye(watched, status): the end of a BYE that is watched: 0 could not be sent, 408 no
     *    answer, else the final status;
     *  - on_options(token, status): the answer to an OPTIONS; 0 for none;
     *  - on_unread(source address, source port, transport, status, bytes): what the parser gave up
     *    (400) or the buffer does not hold (513). Returns the bytes to send back, none for nothing.
     *    A connection whose next message would not be found any more is closed then, after two
     *    seconds in which what still comes is thrown away, so that the answer is read.
     *
     *  - on_sent(Call-ID, method of the CSeq, destination address, port, transport, bytes): each
     *    message that is sent, repetitions included, while showSent has asked for them.
     *
     * message: source address, source port, transport (udp, tcp, tls), our address, pjsip's
     * handle of the connection, method, status
     * (0: a request), the bytes of the message, those of its body (where it has a Content-Type),
     * whether it is for a dialog of ours, its Call-ID. All but the bytes are of pjsip's own parse.
     *
     * retry_after: seconds, for each 503 to an INVITE that does not say them; 0: none. A 488 without
     * a Reason gets one.
     */
    explicit NativeSignalling(PyObject *handler, unsigned retry_after = 0);
    ~NativeSignalling();

    /** Register with the endpoint of an initialised library. Throws Error. */
    void open() PJSUA2_THROW(Error);
    /** Let go of the handler; to be called once the library has been destroyed. */
    void close();

    /** Fields of this name of the message that is being decided on, as a tuple of str; of pjsip's
     *  own parse, printed by it. Raises RuntimeError outside of on_message and on_request. */
    PyObject *headers(const std::string &name) const;
    /** Take these bytes in place of what the handler is being asked about, from the same sender.
     *  `known_only`: only where a dialog or transaction of ours has them. False: not read, or not
     *  known, and nothing has happened. */
    bool receiveInstead(PyObject *bytes, bool known_only);
    /** Keep the message that on_message is being asked about, which is then dropped. Returns its
     *  number for resume, or 0 where too many are kept. */
    unsigned hold();
    /** Have pjsip's layers take a message that was kept. May send. False: there is none. */
    bool resume(unsigned number);
    /** Messages that were refused because Python could not decide on them. */
    unsigned failures() const { return failures_; }
    /** Times that on_sent, on_bye or on_options could not be called, or raised. */
    unsigned errors() const { return errors_; }
    /** Call on_sent, or not; from any thread. */
    void showSent(bool shown) { shows_sent_ = shown; }

    /** A BYE is about to be sent in the dialog of this call: watch it. Returns the number that
     *  on_bye is told, or 0 where the call has no dialog. */
    unsigned watchBye(Call &call);
    /** Send an OPTIONS request outside of dialogs, of this account. Returns pjsip's status. */
    int sendOptions(int account, const std::string &uri, int token);

    struct State;

private:
    NativeSignalling(const NativeSignalling &);
    NativeSignalling &operator=(const NativeSignalling &);

    State *state_;
    unsigned failures_;
    std::atomic<unsigned> errors_;
    std::atomic<bool> shows_sent_;
    friend struct State;
};

/** Answer a request within its dialog, in the callback that brought it. Returns pjsip's status. */
int nativeRespond(const SipRxData &request, int status);

/** The Reason header field (RFC 3326) of the next 488 that is sent without one. */
void nativeExplainRefusal(const std::string &reason);

#ifndef SWIG
/** What on_message or on_request is being asked about; NULL outside of them. */
pjsip_rx_data *messageBeingDecided();
#endif

/** Calls of the library, those that are ending included. */
unsigned nativeCallCount();
/** pjlib's log level, before an endpoint sets it. */
void nativeLogLevel(int level);
/** The TLS library that is loaded, by its own word. */
std::string nativeTlsLibrary();

} // namespace pj
