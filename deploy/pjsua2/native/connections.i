// Who has connected; see connections.hpp.
%{
#include "connections.hpp"
%}
%include "connections.hpp"
