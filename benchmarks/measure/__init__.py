"""Takes times, in alternating blocks with a peer, and stores them."""
