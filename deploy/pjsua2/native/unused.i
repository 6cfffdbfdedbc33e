// SPDX-License-Identifier: GPL-2.0-or-later
// Read before pjsua2.i: what the gateway does not use is not wrapped, which halves the time that the
// wrapper takes to compile. Video, presence, messages, tones, sound devices and files of settings.
// Its lists are those of VECTORS in pjbuild/wrapper.py.
%ignore readObject;
%ignore writeObject;
%ignore pj::PersistentObject;
%ignore pj::PersistentDocument;
%ignore pj::ContainerNode;
%ignore pj::JsonDocument;

%ignore pj::Buddy;
%ignore pj::BuddyInfo;
%ignore pj::BuddyConfig;
%ignore pj::FindBuddyMatch;
%ignore pj::PresenceStatus;
%ignore pj::PresNotifyParam;
%ignore pj::OnIncomingSubscribeParam;
%ignore pj::OnInstantMessageParam;
%ignore pj::OnInstantMessageStatusParam;
%ignore pj::OnTypingIndicationParam;
%ignore pj::SendInstantMessageParam;
%ignore pj::SendTypingIndicationParam;
%ignore pj::Call::sendInstantMessage;
%ignore pj::Call::sendTypingIndication;

%ignore pj::VidDevManager;
%ignore pj::VideoRecorder;
%ignore pj::VideoWindow;
%ignore pj::VideoWindowInfo;
%ignore pj::VideoPreview;
%ignore pj::VideoPreviewOpParam;
%ignore pj::VideoMedia;
%ignore pj::VideoMediaOpParam;
%ignore pj::VideoMediaTransmitParam;
%ignore pj::VideoDevInfo;
%ignore pj::VidConfPortInfo;
%ignore pj::VidCodecParam;
%ignore pj::MediaFormatVideo;
%ignore pj::CallVidSetStreamParam;
%ignore pj::Endpoint::vidDevManager;

%ignore pj::ToneGenerator;
%ignore pj::ToneDesc;
%ignore pj::ToneDigit;
%ignore pj::ToneDigitMapDigit;
%ignore pj::AudioMediaAiPort;
%ignore pj::AudioDevInfo;
%ignore pj::ExtraAudioDevice;
%ignore pj::CodecOpusConfig;
%ignore pj::CodecParam;
%ignore pj::CodecParamInfo;
%ignore pj::CodecParamSetting;
%ignore pj::SrtpCrypto;

%ignore pj::AuthChallenge;
%ignore pj::DigestChallenge;
%ignore pj::DigestCredential;
%ignore pj::PendingJob;
%ignore pj::Endpoint::utilAddPendingJob;
%ignore pj::OnNatDetectionCompleteParam;
%ignore pj::OnNatCheckStunServersCompleteParam;
%ignore pj::OnIpChangeProgressParam;
%ignore pj::IpChangeParam;
