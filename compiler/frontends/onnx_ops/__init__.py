"""The ONNX operators, one function each, mapped on the graph IR."""
