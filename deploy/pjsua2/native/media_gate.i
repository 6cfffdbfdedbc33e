// Which streams may send; see media_gate.hpp.
%{
#include "media_gate.hpp"
%}
%include "media_gate.hpp"
