# SPDX-License-Identifier: GPL-2.0-or-later
"""SRTP as a telephone sends it: AES_CM_128_HMAC_SHA1_80 (RFC 3711)."""

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
    """Of one sender, whose packets are given in any order within half the sequence numbers."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        master = int.from_bytes(salt)

        def derived(label: int, size: int) -> bytes:
            return _counter_mode(key, (master ^ label << 48) << 16, bytes(size))

        self._key = derived(0, KEY_BYTES)
        self._authentication = derived(1, 20)
        self._salt = int.from_bytes(derived(2, SALT_BYTES))
        self._roll_over, self._highest = 0, -1

    def protect(self, packet: bytes) -> bytes:
        """The packet as it goes out."""
        sequence = int.from_bytes(packet[2:4])
        if self._highest - sequence > 1 << 15:
            self._roll_over, self._highest = self._roll_over + 1, -1
        self._highest = max(self._highest, sequence)
        ssrc = int.from_bytes(packet[8:_HEADER_BYTES])
        index = self._roll_over << 16 | sequence
        counter = self._salt << 16 ^ ssrc << 64 ^ index << 16
        sealed = packet[:_HEADER_BYTES] + _counter_mode(self._key, counter, packet[_HEADER_BYTES:])
        signed = sealed + self._roll_over.to_bytes(4)
        tag = hmac.new(self._authentication, signed, hashlib.sha1).digest()[:_TAG_BYTES]
        return sealed + tag
