"""Offline reinforcement learning for language models from logs of dialogues.

Decision: importing the package loads nothing, so that a corpus or an environment needs no torch and `ilql --help` is
quick; name the module that you want (`from ilql.decode import load_policy`). `import ilql.model` is what makes the
saved models known to `transformers.AutoModelForCausalLM`.
"""

__version__ = "0.1.0"
