"""How times are taken: in turns with a peer, and kept."""
