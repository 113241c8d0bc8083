"""Training: of the flow, of the network behind it, and of both together."""
