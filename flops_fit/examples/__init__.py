"""Ready parts for sweeps of text and images. Nothing in the core imports them."""

from flops_fit.examples.glyphs import GlyphData
from flops_fit.examples.gpt import GPT, next_token_loss
from flops_fit.examples.images import ImageData
from flops_fit.examples.text import StdlibText
from flops_fit.examples.tokenized import TokenizedText
from flops_fit.examples.vit import ViT

__all__ = ["GPT", "GlyphData", "ImageData", "StdlibText", "TokenizedText", "ViT", "next_token_loss"]
