"""Everything that touches clients: doors, routes, and the way of the bytes between engine and client."""
