"""Calls with other people's SIP: Asterisk, Kamailio, baresip. ``make interop`` runs them."""
