"""The LLVM backend: loop IR to object code."""
