"""From a kernel's Python function to machine code, and to threads."""
