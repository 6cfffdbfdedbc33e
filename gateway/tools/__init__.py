"""Function tools of the model: what it is told of each, and what it may ask for. Nothing is run
here: :mod:`gateway.call` decides what a call of a tool leads to, the bridge carries it out.
"""
