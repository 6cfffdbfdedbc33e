"""The SIP user agent on pjsua2. The only package that imports pjsua2."""
