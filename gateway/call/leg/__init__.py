"""The SIP side of a call: answering, hang-up, transfer, hold, timers."""
