"""Other people's formats: runs as Minari datasets, policies as ONNX and plain torch, real data read from files."""
