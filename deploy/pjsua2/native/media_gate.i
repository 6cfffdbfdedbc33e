// SPDX-License-Identifier: GPL-2.0-or-later
// Which streams may send; see media_gate.hpp.
%{
#include "media_gate.hpp"
%}
%include "media_gate.hpp"
