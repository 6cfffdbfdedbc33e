// SPDX-License-Identifier: GPL-2.0-or-later
%{
#include "wide_codecs.hpp"
%}
%ignore pj::Resampler;
%ignore pj::G722;
%ignore pj::PacketDecoder;
%ignore pj::send_wide;
%ignore pj::kPcmu;
%ignore pj::kPcma;
%ignore pj::kG722;
%ignore pj::kOpus;
%feature("nothreadallow") pj::NativeG722::NativeG722;
%feature("nothreadallow") pj::NativeG722::decode;
%feature("nothreadallow") pj::NativeG722::encode;
%feature("nothreadallow") pj::NativeNarrow::NativeNarrow;
%feature("nothreadallow") pj::NativeNarrow::narrow;
%include "wide_codecs.hpp"
