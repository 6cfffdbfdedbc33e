// SPDX-License-Identifier: GPL-2.0-or-later
// What stands between pjsip and pjsua; see signalling.hpp. What uses Python objects keeps the GIL;
// what may send, and so may wait for a name to be resolved, lets go of it.
%{
#include "signalling.hpp"
%}
%feature("nothreadallow") pj::NativeSignalling::NativeSignalling;
%feature("nothreadallow") pj::NativeSignalling::~NativeSignalling;
%feature("nothreadallow") pj::NativeSignalling::close;
%feature("nothreadallow") pj::NativeSignalling::headers;
%feature("nothreadallow") pj::NativeSignalling::receiveInstead;
%feature("nothreadallow") pj::NativeSignalling::failures;
%feature("nothreadallow") pj::NativeSignalling::errors;
%feature("nothreadallow") pj::NativeSignalling::showSent;
%feature("nothreadallow") pj::nativeCallCount;
%include "signalling.hpp"
