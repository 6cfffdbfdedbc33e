// SPDX-License-Identifier: GPL-2.0-or-later
// Our own media port; see call_audio.hpp. Its calls are short and hold no lock that the clock
// thread could keep for long, so they keep the GIL instead of paying for letting go of it.
%{
#include "call_audio.hpp"
%}
%feature("nothreadallow") pj::NativeCallAudio;
%feature("nothreadallow") pj::NativeCallAudio::NativeCallAudio;
%feature("nothreadallow") pj::NativeCallAudio::put;
%feature("nothreadallow") pj::NativeCallAudio::flush;
%feature("nothreadallow") pj::NativeCallAudio::pause;
%feature("nothreadallow") pj::NativeCallAudio::expect;
%feature("nothreadallow") pj::NativeCallAudio::useLaw;
%feature("nothreadallow") pj::NativeCallAudio::take;
%feature("nothreadallow") pj::NativeCallAudio::awaitKeys;
%feature("nothreadallow") pj::NativeCallAudio::transition;
%feature("nothreadallow") pj::NativeCallAudio::queued;
%feature("nothreadallow") pj::NativeCallAudio::counters;
%feature("nothreadallow") pj::NativeCallAudio::record;
%feature("nothreadallow") pj::NativeCallAudio::takeTicks;
%feature("nothreadallow") pj::NativeCallAudio::startRecording;
%feature("nothreadallow") pj::NativeCallAudio::endRecording;
%feature("nothreadallow") pj::NativeCallAudio::silenceRecording;
%feature("nothreadallow") pj::NativeCallAudio::takeRecording;
%feature("nothreadallow") pj::NativeCallAudio::recordingCounters;
%feature("nothreadallow") pj::NativeCallAudio::logPackets;
%feature("nothreadallow") pj::NativeCallAudio::takePackets;
%feature("nothreadallow") pj::NativeCallAudio::levels;
%feature("nothreadallow") pj::NativeCallAudio::sent;
%feature("nothreadallow") pj::NativeCallAudio::pull;
%feature("nothreadallow") pj::NativeCallAudio::push;
%feature("nothreadallow") pj::NativeCallAudio::id;
%feature("nothreadallow") pj::NativeCallAudio::listen;
%feature("nothreadallow") pj::NativeCallAudio::bringTo;
%feature("nothreadallow") pj::NativeCallAudio::uplinkCounters;
%feature("nothreadallow") pj::NativeCallAudio::receive;
%feature("nothreadallow") pj::NativeCallAudio::tick;
%feature("nothreadallow") pj::NativeCallAudio::restart;
%feature("nothreadallow") pj::nativeReadyFd;
%feature("nothreadallow") pj::nativeReadyNoted;
%feature("nothreadallow") pj::nativeTakeReady;
%feature("nothreadallow") pj::nativeBeats;
%feature("nothreadallow") pj::nativeWaited;
%feature("nothreadallow") pj::nativeLateBeats;
%include "call_audio.hpp"
