// SPDX-License-Identifier: GPL-2.0-or-later
// The table of host names; see names.hpp.
%{
#include "names.hpp"
%}
%feature("nothreadallow") pj::setNameAddresses;
%include "names.hpp"
