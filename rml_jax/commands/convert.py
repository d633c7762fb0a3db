"""Convert weights from any supported layout: rml-jax convert IN OUT [--to=transformers]

IN is a safetensors or PyTorch file, or a Hugging Face model folder. OUT is a safetensors file or, with
--to=transformers, a folder that transformers loads as a SegFormer encoder.
"""

from pathlib import Path

from rml_jax.commands import cli
from rml_jax.models import layouts
from rml_jax.models.weights import convert


@cli.command
def main(arguments=None):
    """Converts a file and prints which tensors were loaded and left out.

    Args:
      arguments: command-line arguments; None uses those of this process.
    """
    parser = cli.Parser("rml-jax convert", description=__doc__)
    parser.add_argument(
        "source", metavar="IN", help="safetensors or PyTorch file, or Hugging Face model folder"
    )
    parser.add_argument(
        "target", metavar="OUT", type=Path, help="file to write; a folder with --to=transformers"
    )
    parser.add_argument("--to", choices=(layouts.OURS, "transformers"), default=layouts.OURS)
    chosen = parser.parse_args(arguments)
    print(convert(chosen.source, chosen.target, chosen.to))
    print(f"written: {chosen.target}")
