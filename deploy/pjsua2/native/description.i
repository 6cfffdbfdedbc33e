// SPDX-License-Identifier: GPL-2.0-or-later
// Reading and replacing the session description of a received message; see description.hpp.
%{
#include "description.hpp"
%}
%feature("nothreadallow") pj::sessionDescription;
%feature("nothreadallow") pj::replaceSessionDescription;
%include "description.hpp"
