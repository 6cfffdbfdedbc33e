"""Which SIP requests get in, before pjsua makes calls of them."""
