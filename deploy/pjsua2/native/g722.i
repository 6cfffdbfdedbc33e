// SPDX-License-Identifier: GPL-2.0-or-later
%{
#include "g722.hpp"
%}
%ignore pj::G722;
%ignore pj::g722_send_wide;
%feature("nothreadallow") pj::NativeG722::NativeG722;
%feature("nothreadallow") pj::NativeG722::decode;
%feature("nothreadallow") pj::NativeG722::encode;
%feature("nothreadallow") pj::NativeG722::narrow;
%include "g722.hpp"
