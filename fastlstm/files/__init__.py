"""Files that are whole or absent, and checked before anything is made of them."""
