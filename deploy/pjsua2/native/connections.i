// SPDX-License-Identifier: GPL-2.0-or-later
// Who has connected; see connections.hpp.
%{
#include "connections.hpp"
%}
%include "connections.hpp"
