"""A causal language model of Hugging Face's transformers, from its config and with fresh weights, on its usual batches.

Its batches are mappings and its outputs objects; a factory gives the model the one method that is missing. See
hf_causal_lm.yaml for the same from YAML.
"""

import datasets
import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

import flops_fit
from flops_fit.examples.text import stdlib_bytes


def causal_lm(
    hidden_size: int, num_hidden_layers: int = 2, num_attention_heads: int = 2, seq_len: int = 64
) -> nn.Module:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=256,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=seq_len,
        use_cache=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    looked_up = model.get_input_embeddings().weight.numel()
    model.num_params = lambda: sum(p.numel() for p in model.parameters()) - looked_up
    return model


def next_token_loss(outputs, labels: torch.Tensor) -> torch.Tensor:
    """Labels are the inputs themselves, as transformers has it; what is not to be scored would be -100."""
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class PackedBytes(pl.LightningDataModule):
    """Python's own library as a data set of the package datasets: {"input_ids", "labels"}, packed without padding."""

    def __init__(self, seq_len: int = 64, batch_size: int = 8, val_windows: int = 256) -> None:
        super().__init__()
        self.seq_len, self.batch_size, self.val_windows = seq_len, batch_size, val_windows

    def setup(self, stage: str) -> None:
        train, val, _ = stdlib_bytes()
        self.train, self.val = self._packed(train[:2_000_000]), self._packed(val[: self.val_windows * self.seq_len])

    def _packed(self, tokens: torch.Tensor) -> datasets.Dataset:
        windows = tokens[: len(tokens) // self.seq_len * self.seq_len].view(-1, self.seq_len).long().numpy()
        return datasets.Dataset.from_dict({"input_ids": windows, "labels": windows}).with_format("torch")

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=64)


def data() -> PackedBytes:
    return PackedBytes()


if __name__ == "__main__":
    result = flops_fit.find_optimal(
        model_cls=causal_lm,
        model_size_param="hidden_size",
        sizes=[  # a ladder: width, depth and heads grow together
            {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1},
            {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
            {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3},
        ],
        dataset=data,
        loss_fn=next_token_loss,
        compute_budgets=[1e10, 2e10, 4e10],
        flops="counted",
        lr=4e-3,
        output_dir="outputs/hf_causal_lm",
    )
    print(result.chinchilla_table().to_string(index=False))
