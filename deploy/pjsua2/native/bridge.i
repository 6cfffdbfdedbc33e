// SPDX-License-Identifier: GPL-2.0-or-later
// What became of the bridge's operations; see bridge.hpp.
%{
#include "bridge.hpp"
%}
%feature("nothreadallow") pj::nativeDisconnections;
%feature("nothreadallow") pj::nativeBridgeFailures;
%feature("nothreadallow") pj::nativeTakeBridgeFailures;
%include "bridge.hpp"
