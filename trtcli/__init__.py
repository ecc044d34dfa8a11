"""An open, trtexec-like ONNX engine builder and benchmarker."""
