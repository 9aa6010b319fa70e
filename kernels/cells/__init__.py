"""The recurrent cells over a sequence, forward and backward."""
