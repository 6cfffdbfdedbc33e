"""Makes the plan of one call out of configuration, route and INVITE. Pure."""
