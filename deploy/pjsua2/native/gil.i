// SPDX-License-Identifier: GPL-2.0-or-later
// Read before pjsua2.i. Upstream wraps with -threads: every call into C++ lets go of the GIL and
// takes it back. For a field of a frame that is two lock operations for a copy of eight bytes, on
// the clock thread, 50 times a second and call. For the buffer's own two functions it is an error:
// they use Python objects, and must hold the GIL.
%feature("nothreadallow") pj::MediaFrame::MediaFrame;
%feature("nothreadallow") pj::MediaFrame::type;
%feature("nothreadallow") pj::MediaFrame::buf;
%feature("nothreadallow") pj::MediaFrame::size;
%feature("nothreadallow") std::vector<unsigned char>::vector;
%feature("nothreadallow") std::vector<unsigned char>::size;
%feature("nothreadallow") std::vector<unsigned char>::clear;
%feature("nothreadallow") std::vector<unsigned char>::assign_from_bytes;
%feature("nothreadallow") std::vector<unsigned char>::copy_to_bytearray;
