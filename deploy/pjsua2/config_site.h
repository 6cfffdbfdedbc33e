// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pjproject's compile-time limits for a gateway that carries a thousand G.711 calls in one process.
 * README.md beside this file says what each costs. A value can be overridden for an experiment with
 * PJSUA2_CFLAGS=-DPJSUA_MAX_CALLS=2048; the build's cache keeps such a build apart.
 */

/* Calls. maxCalls in UaConfig still has to ask for them: pjsua2's own default is 4. */
#ifndef PJSUA_MAX_CALLS
#define PJSUA_MAX_CALLS 1280
#endif

/* A call occupies two ports of the bridge: its stream and the port of ours that it is connected to.
 * The rest is for ports that are still being removed, prompts and recorders. */
#ifndef PJSUA_MAX_CONF_PORTS
#define PJSUA_MAX_CONF_PORTS (2 * PJSUA_MAX_CALLS + 512)
#endif
#define PJSUA_MAX_PLAYERS 256
#define PJSUA_MAX_RECORDERS 256

/* Trunks and registrations; no presence. */
#define PJSUA_MAX_ACC 128
#define PJSUA_MAX_BUDDIES 4

/* m= lines of an offer that are read; further ones are ignored. Each costs static memory in every
 * one of PJSUA_MAX_CALLS slots, used or not. */
#define PJMEDIA_MAX_SDP_MEDIA 8

/* Sockets of one epoll queue. The media queue holds RTP and RTCP of every call, for half a second
 * after its end too, and of every m= line of an offer until it is answered; the SIP queue, a second
 * one of the same size, listeners and TCP or TLS connections. */
#ifndef PJ_IOQUEUE_MAX_HANDLES
#define PJ_IOQUEUE_MAX_HANDLES (4 * PJSUA_MAX_CALLS + 3072)
#endif
#define PJ_IOQUEUE_MAX_EVENTS_IN_SINGLE_POLL 64

/* Connections that wait to be accepted: where there are more, the kernel lets clients try again
 * after a second. TLS has PJ_SOMAXCONN. */
#define PJSIP_TCP_TRANSPORT_BACKLOG 1024
#define PJ_SOMAXCONN 1024
#define PJSIP_MAX_NET_EVENTS 16
#define PJSIP_MAX_TIMED_OUT_ENTRIES 64

/* A transaction outlives its message by half a minute (RFC 3261 timers B, F, H and J), so a hundred
 * calls a second keep some ten thousand. Rows of hash tables: a power of two less one. */
#define PJSIP_MAX_TSX_COUNT (64 * 1024 - 1)
#define PJSIP_MAX_DIALOG_COUNT (16 * 1024 - 1)
/* The heap grows by itself; this is where it starts. */
#define PJSIP_MAX_TIMER_COUNT 8192

/* A message with a long Identity or SDP still fits; a longer one over UDP is answered 513. */
#define PJSIP_MAX_PKT_LEN 8000
#define PJ_LOG_MAX_SIZE (PJSIP_MAX_PKT_LEN + 500)
#define PJSIP_MAX_URL_SIZE 512

/* The kernel cuts both to net.core.rmem_max and wmem_max. */
#define PJSIP_UDP_SO_RCVBUF_SIZE (4 * 1024 * 1024)
#define PJSIP_UDP_SO_SNDBUF_SIZE (1024 * 1024)

#define PJ_HAS_IPV6 1

/* Keys of SRTP by DTLS (RFC 5764) besides SDES; a trunk has to ask for them. */
#define PJMEDIA_SRTP_HAS_DTLS 1

/* No packet begins an SRTP session anew: anybody can send one again. */
#define PJMEDIA_SRTP_CHECK_SSRC_ON_RESTART 0
#define PJMEDIA_SRTP_CHECK_RTP_SEQ_ON_RESTART 0

#define PJ_LOG_MAX_LEVEL 5

/* G.711, and G.722 and Opus by native/wide_codecs.cpp, which are codecs of 8 kHz for the bridge: nothing
 * to resample, to show or to play on this machine. */
#define PJMEDIA_HAS_VIDEO 0
#define PJMEDIA_HAS_L16_CODEC 0
#define PJMEDIA_HAS_G722_CODEC 1
#define PJMEDIA_HAS_LEGACY_SOUND_API 0
#define PJMEDIA_AUDIO_DEV_HAS_NULL_AUDIO 1

/* The gateway sends 100 Trying itself, once it has noted the call where a crash does not lose it. */
#define PJSUA_DISABLE_AUTO_SEND_100 1
