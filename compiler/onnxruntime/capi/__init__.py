"""Where ONNX Runtime keeps its extension module; programs import exceptions and sessions from here."""
