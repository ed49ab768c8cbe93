"""What programs are: types, symbolic dims, ops, graphs, loops, their text, verifier and interpreter."""
