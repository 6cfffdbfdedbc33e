"""Trunks: matching, accounts, registration, OPTIONS, NAT."""
