"""Models and adapters out of transformers' layout: GGUF, safetensors read without torch."""
