"""How operations reach the hardware: engines, recorded programs, memory, parameters, and checks of what users give."""
