"""What is served: a trained model as ONNX, in int8 where it stays good, calibrated, and run without torch."""
