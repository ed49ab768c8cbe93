"""Front ends: NumPy functions and ONNX files into the graph IR."""
