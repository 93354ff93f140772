"""Training of the taggers: PyTorch here and nowhere else, ONNX files out."""
