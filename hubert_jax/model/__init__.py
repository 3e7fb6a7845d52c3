"""The network: pure functions and Linen modules; no mesh, no files, no TensorFlow."""
