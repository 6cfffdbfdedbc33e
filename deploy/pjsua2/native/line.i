// SPDX-License-Identifier: GPL-2.0-or-later
// Bad lines for callers that test; see line.hpp.
%{
#include "line.hpp"
%}
%include "line.hpp"
