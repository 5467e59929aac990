"""How large should a GPT be, and on how many bytes of TinyStories, or of any text of yours?

python examples/gpt_tinystories.py                     # TinyStories, downloaded once through the package datasets
TEXT=my_texts/ python examples/gpt_tinystories.py      # a text, JSONL or parquet file, or a folder of them
"""

import os

import flops_fit
from flops_fit.examples import GPT, TokenizedText, next_token_loss

SEQ_LEN = 64


def data() -> TokenizedText:
    """Bytes, in windows; tokenizer="bpe" with the model's vocab_size would make them subwords."""
    return TokenizedText(path=os.environ.get("TEXT"), seq_len=SEQ_LEN, batch_size=4)


if __name__ == "__main__":
    result = flops_fit.find_optimal(
        model_cls=GPT,
        model_size_param="d_model",
        model_kwargs={"n_layer": 2, "vocab_size": 256, "seq_len": SEQ_LEN},
        dataset=data,  # a function, so that other processes can make the data too
        loss_fn=next_token_loss,
        compute_budgets=[2e10, 6e10, 2e11, 6e11],
        num_sizes_per_budget=5,
        size_multiple=8,
        flops="counted",
        lr=0.7,  # the model is in u-muP: one rate for all widths
        output_dir="outputs/gpt_tinystories",
    )
    print(result.chinchilla_table().to_string(index=False))
    result.report("outputs/gpt_tinystories/report")
