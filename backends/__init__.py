"""Kernels to machine code; imports `ir` and `runtime`, never a pass or a front end."""
