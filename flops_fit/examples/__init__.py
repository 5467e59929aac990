"""Ready parts for sweeps: a byte-level GPT and the text that every Python ships. Nothing in the core imports them."""

from flops_fit.examples.gpt import GPT, next_token_loss
from flops_fit.examples.text import StdlibText

__all__ = ["GPT", "StdlibText", "next_token_loss"]
