# SPDX-License-Identifier: GPL-2.0-or-later
"""SRTP and SRTCP as a telephone sends them: AES_CM_128_HMAC_SHA1_80 (RFC 3711)."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES, SALT_BYTES = 16, 14
_TAG_BYTES = 10
_HEADER_BYTES = 12


def _counter_mode(key: bytes, counter: int, data: bytes) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(16)))
    return cipher.encryptor().update(data)


class Protection:
    """Of one sender, whose packets are given in any order within half the sequence numbers.

    Args:
        tag_bytes: those of RTP's tag: 4 with the suite ``_32``.
        roll_over: how often the sequence numbers of each source have wrapped before.
    """

    def __init__(
        self, key: bytes, salt: bytes, tag_bytes: int = _TAG_BYTES, *, roll_over: int = 0
    ) -> None:
        master = int.from_bytes(salt)

        def derived(label: int, size: int) -> bytes:
            return _counter_mode(key, (master ^ label << 48) << 16, bytes(size))

        self._key, self._rtcp_key = derived(0, KEY_BYTES), derived(3, KEY_BYTES)
        self._authentication, self._rtcp_authentication = derived(1, 20), derived(4, 20)
        self._salt = int.from_bytes(derived(2, SALT_BYTES))
        self._rtcp_salt = int.from_bytes(derived(5, SALT_BYTES))
        self._tag_bytes = tag_bytes
        self._before = roll_over
        self._sources: dict[int, tuple[int, int]] = {}
        """How often each source has wrapped, and its highest sequence number since, by SSRC."""
        self._rtcp_index = 0

    def protect(self, packet: bytes) -> bytes:
        """The packet as it goes out."""
        sequence, ssrc = int.from_bytes(packet[2:4]), int.from_bytes(packet[8:_HEADER_BYTES])
        roll_over, highest = self._sources.get(ssrc, (self._before, -1))
        if highest - sequence > 1 << 15:
            roll_over, highest = roll_over + 1, -1
        self._sources[ssrc] = roll_over, max(highest, sequence)
        index = roll_over << 16 | sequence
        counter = self._salt << 16 ^ ssrc << 64 ^ index << 16
        sealed = packet[:_HEADER_BYTES] + _counter_mode(self._key, counter, packet[_HEADER_BYTES:])
        signed = sealed + roll_over.to_bytes(4)
        tag = hmac.new(self._authentication, signed, hashlib.sha1).digest()[: self._tag_bytes]
        return sealed + tag

    def protect_rtcp(self, packet: bytes) -> bytes:
        """The same of RTCP (RFC 3711 section 3.4)."""
        self._rtcp_index += 1
        ssrc = int.from_bytes(packet[4:8])
        counter = self._rtcp_salt << 16 ^ ssrc << 64 ^ self._rtcp_index << 16
        sealed = packet[:8] + _counter_mode(self._rtcp_key, counter, packet[8:])
        sealed += (1 << 31 | self._rtcp_index).to_bytes(4)
        return sealed + hmac.new(self._rtcp_authentication, sealed, hashlib.sha1).digest()[:10]
