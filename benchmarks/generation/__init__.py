"""``python -m benchmarks.generation``: language models in slots, beside what one would take instead, on one machine.

Parts of one run, each in rounds in which everything that is compared has its turn:

- ``throughput``: slots, onnxruntime-genai and ctranslate2 on the same model (``throughput.py``);
- ``serving``: a core in front of the engine beside the engine alone (``serving.py``);
- ``turns``: what the second turn of a conversation saves (there, too);
- ``load``: aiperf, a load generator that others wrote (``load_generator.py``).
"""
